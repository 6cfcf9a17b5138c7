"""A tiny real policy, its tokenizer, prompts and real reward functions."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from nonpareil.engines.transformers import TransformersEngine
from nonpareil.records import Group, Prompt, SamplingParams
from nonpareil.rewards import CombinedReward, FunctionReward
from nonpareil.rollouts import RolloutResult, draw_and_score, tokenize_prompts

WORDS = ["a", "the", "film", "was", "good", "bad", "great", "dull", "long", "short", "very", "not", "and"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SAMPLING = SamplingParams(max_completion_length=6, seed=3)


def make_tokenizer(
    *, chat: bool = False, template: str = "<s> $A", eos: str = "</s>"
) -> PreTrainedTokenizerFast:
    """BOS 1, EOS 2 unless told otherwise; `template` says which special tokens surround a text."""
    vocabulary = ["<unk>", "<s>", "</s>", "<pad>", "<user>", "<assistant>", *WORDS]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token=eos,
        pad_token="<pad>",
        additional_special_tokens=["<user>", "<assistant>"],
    )
    tokenizer.chat_template = CHAT_TEMPLATE if chat else None
    return tokenizer


def make_engine(tokenizer: PreTrainedTokenizerFast | None = None) -> TransformersEngine:
    tokenizer = tokenizer or make_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        initializer_range=0.3,
    )
    return TransformersEngine(LlamaForCausalLM(config).eval(), tokenizer)


@functools.cache
def one_engine() -> TransformersEngine:
    """That of every run which asks for no engine of its own: making one draws and scores to check it."""
    return make_engine()


def make_prompts(count: int = 8) -> list[Prompt]:
    texts = [f"the film was {WORDS[i % 5]}" for i in range(count)]
    rows = [{"prompt": text, "answer": i} for i, text in enumerate(texts)]
    return tokenize_prompts(rows, make_tokenizer())


def length(completions: list[str], **columns: Any) -> list[float]:
    return [float(len(text.split())) for text in completions]


def count_of_good(completions: list[str], **columns: Any) -> list[float]:
    return [text.split().count("good") + text.split().count("great") + 0.1 for text in completions]


def combined(*functions: Callable[..., Any], weights: Sequence[float] | None = None) -> CombinedReward:
    return CombinedReward([FunctionReward(f) for f in (functions or (length,))], weights)


def never() -> Any:
    raise AssertionError("this must not be made")


def roll(output_dir: Path, **changes: Any) -> RolloutResult:
    """`draw_and_score` on 8 prompts in 4 shards, 4 completions each."""
    settings: dict[str, Any] = {
        "prompts": make_prompts(),
        "engine": one_engine,
        "reward": combined(),
        "sampling": SAMPLING,
        "num_generations": 4,
        "output_dir": output_dir,
        "model_info": {"path": "tiny", "fingerprint": "sha256:0"},
        "shard_size": 2,
    }
    return draw_and_score(**{**settings, **changes})


def shards(folder: Path) -> list[Path]:
    return sorted((folder / "data").glob("*.parquet"))


def state(paths: list[Path]) -> list[tuple[bytes, int]]:
    """Content and time of writing: equal where a file was left alone."""
    return [(path.read_bytes(), path.stat().st_mtime_ns) for path in paths]


def group_of(
    rewards: Sequence[float | None] | None,
    completions: Sequence[str] | None = None,
    *,
    prompt: Any = "the film was",
    prompt_id: str = "p-0",
    finish_reasons: Sequence[str] | None = None,
    **columns: Any,
) -> Group:
    """A hand-made group, one token per completion."""
    texts = list(completions) if completions else [f"text {i}" for i in range(len(rewards or []))]
    reasons = list(finish_reasons) if finish_reasons else ["stop"] * len(texts)
    return Group(
        prompt_id=prompt_id,
        prompt=prompt,
        prompt_token_ids=[1, 7],
        completions=texts,
        completion_token_ids=[[5 + i] for i in range(len(texts))],
        finish_reasons=reasons,  # type: ignore[arg-type]
        logprobs=[[-0.5]] * len(texts),
        rewards=None if rewards is None else list(rewards),
        columns=columns,
    )


@pytest.fixture
def rollouts(tmp_path: Path) -> RolloutResult:
    return roll(tmp_path / "out")
