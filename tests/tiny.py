"""Tiny real language models and what to compare them with: plain transformers, one unpadded sequence at a time."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3NextConfig,
)

from nonpareil.engines.transformers import TransformersEngine
from nonpareil.records import Draws, Prompt, SamplingParams

WORDS = ["a", "the", "film", "was", "good", "bad", "great", "dull", "long", "short", "very", "not", "and"]
VOCABULARY = ["<unk>", "<s>", "</s>", "<pad>", "<user>", "<assistant>", *WORDS]
BOS, END, PAD = 1, 2, 3
GOOD = VOCABULARY.index("good")

LLAMA: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": BOS,
    "eos_token_id": END,
    "pad_token_id": PAD,
    "initializer_range": 0.2,  # wide, so that random weights give distributions far from uniform
}
HYBRID = {
    **LLAMA,
    "head_dim": 8,
    "num_experts": 0,
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama_grouped_heads": lambda: LlamaConfig(**LLAMA),
    "tied": lambda: LlamaConfig(**LLAMA, tie_word_embeddings=True),
    "mistral_sliding": lambda: MistralConfig(**LLAMA, sliding_window=4),
    "gemma2_capped": lambda: Gemma2Config(
        **LLAMA, head_dim=8, sliding_window=4, final_logit_softcapping=3.0, attn_implementation="eager"
    ),
    "gpt2": lambda: GPT2Config(
        vocab_size=len(VOCABULARY),
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=4,
        bos_token_id=BOS,
        eos_token_id=END,
        pad_token_id=PAD,
        initializer_range=0.2,
    ),
    "opt": lambda: OPTConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        bos_token_id=BOS,
        eos_token_id=END,
        pad_token_id=PAD,
        init_std=0.2,
    ),
    "bloom_without_window": lambda: BloomConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        n_layer=2,
        n_head=4,
        bos_token_id=BOS,
        eos_token_id=END,
        pad_token_id=PAD,
        initializer_range=0.2,
    ),
    "linear_and_full_attention": lambda: Qwen3NextConfig(**HYBRID),
}


def make_tokenizer(*, pad: str = "<pad>", padding_side: str = "left") -> PreTrainedTokenizerFast:
    """One word per token; `<s>` in front."""
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token=pad,
        padding_side=padding_side,
        additional_special_tokens=["<user>", "<assistant>"],
    )


def said(ids: Sequence[int], ends: Collection[int] = (END,)) -> str:
    """What ids of `make_tokenizer` say behind a prompt: every word but the end and the borders."""
    own = ids[:-1] if ids and ids[-1] in ends else ids
    return "".join(f" {VOCABULARY[token]}" for token in own if token not in (0, BOS, END, PAD))


def make_model(kind: str = "llama_grouped_heads", seed: int = 0, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = CONFIGS[kind]()
    for name, value in changes.items():
        assert hasattr(config, name), name
        setattr(config, name, value)
    return AutoModelForCausalLM.from_config(config).float().eval()


def make_engine(model: PreTrainedModel | None = None, **settings: Any) -> TransformersEngine:
    return TransformersEngine(model or make_model(), make_tokenizer(), **settings)


def favour(model: PreTrainedModel, token: int, by: float) -> PreTrainedModel:
    """Raise one token's logit everywhere, through a bias in the (untied) head."""
    head = model.get_output_embeddings()
    biased = nn.Linear(head.in_features, head.out_features)
    biased.load_state_dict({"weight": head.weight.detach(), "bias": torch.zeros(head.out_features)})
    with torch.no_grad():
        biased.bias[token] = by
    model.set_output_embeddings(biased)
    return model


def prompts_of(*rows: Sequence[int]) -> list[Prompt]:
    return [Prompt(f"p{i}-{len(ids)}", f"prompt {i}", list(ids)) for i, ids in enumerate(rows)]


UNEVEN = prompts_of([1, 7, 8, 9, 10, 11, 12], [1, 7], [1, 9, 9, 8, 7, 12, 13, 14, 15, 6], [5], [1, 17, 16])
"""Prompts of 1 to 10 tokens."""


@torch.no_grad()
def forced_logits(model: PreTrainedModel, prompt: Sequence[int], completion: Sequence[int]) -> Tensor:
    """Float32 logits `[completion, vocabulary]` of one unpadded sequence, without a cache."""
    ids = torch.tensor([[*prompt, *completion]])
    logits = model(input_ids=ids, use_cache=False).logits[0].float()
    return logits[len(prompt) - 1 : -1]


def forced_logprobs(
    model: PreTrainedModel, prompt: Sequence[int], completion: Sequence[int], temperature: float = 1.0
) -> Tensor:
    """Of each completion token, by transformers' own forward pass and a whole log_softmax."""
    logprobs = (forced_logits(model, prompt, completion) / temperature).log_softmax(-1)
    return logprobs.gather(-1, torch.tensor([completion]).T)[:, 0]


def worst_error(
    model: PreTrainedModel, prompts: Sequence[Prompt], drawn: Sequence[Draws], sampling: SamplingParams
) -> float:
    """Largest distance of a recorded log-prob from the teacher-forced one, nats."""
    errors = [
        (forced_logprobs(model, prompt.token_ids, ids, sampling.temperature) - torch.tensor(recorded)).abs()
        for prompt, draws in zip(prompts, drawn, strict=True)
        for ids, recorded in zip(draws.completion_token_ids, draws.logprobs, strict=True)
    ]
    assert errors
    return torch.cat(errors).max().item()
