"""Tiny real models and tokenizers, saved to disk and loaded as a user's would be."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from nonpareil.records import ScoreRequest

SPECIALS = ["<unk>", "<s>", "</s>", "<pad>", "<user>", "<assistant>"]
WORDS = [
    "a",
    "the",
    "film",
    "was",
    "good",
    "bad",
    "great",
    "dull",
    "long",
    "short",
    "very",
    "not",
    "and",
    "but",
]
# As many do, it writes the BOS itself.
CHAT_TEMPLATE = "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} </s>{% endfor %}"


def make_tokenizer(
    words: Sequence[str] = WORDS, *, pad: str | None = "<pad>", chat: bool = False, bert: bool = False
) -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate([*SPECIALS, *words])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ending = " </s>" if bert else ""
    core.post_processor = processors.TemplateProcessing(
        single=f"<s> $A{ending}", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    names: dict[str, Any] = (
        {"cls_token": "<s>", "sep_token": "</s>"} if bert else {"bos_token": "<s>", "eos_token": "</s>"}
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        pad_token=pad,
        additional_special_tokens=["<user>", "<assistant>"],
        **names,
    )
    tokenizer.chat_template = CHAT_TEMPLATE if chat else None
    return tokenizer


def llama_config(vocabulary: int = len(SPECIALS) + len(WORDS), **changes: Any) -> LlamaConfig:
    settings: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "num_labels": 1,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
        "initializer_range": 0.4,  # wide, so that the scores of random weights lie apart
    }
    return LlamaConfig(**{**settings, **changes})


def make_llama(**changes: Any) -> LlamaForSequenceClassification:
    torch.manual_seed(0)
    return LlamaForSequenceClassification(llama_config(**changes)).eval()


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., str]:
    """Write a model and its tokenizer to a new directory, which a test then loads."""

    def write(model: Any, tokenizer: Any | None, name: str = "rm") -> str:
        model.save_pretrained(tmp_path / name)
        if tokenizer is not None:
            tokenizer.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return write


@pytest.fixture
def llama_rm(save: Callable[..., str]) -> str:
    return save(make_llama(), make_tokenizer(chat=True))


@pytest.fixture
def bert_rm(save: Callable[..., str]) -> str:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(SPECIALS) + len(WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        num_labels=1,
        pad_token_id=3,
        initializer_range=0.4,
    )
    return save(BertForSequenceClassification(config).eval(), make_tokenizer(bert=True), "bert")


@pytest.fixture
def causal_lm(save: Callable[..., str]) -> str:
    torch.manual_seed(0)
    return save(LlamaForCausalLM(llama_config()), make_tokenizer(), "lm")


def request_of(*pairs: tuple[Any, Any], **columns: list[Any]) -> ScoreRequest:
    """A request of (prompt, completion) pairs."""
    return ScoreRequest([p for p, _ in pairs], [c for _, c in pairs], [[7]] * len(pairs), columns)


def varied_request(rows: int = 16) -> ScoreRequest:
    """Distinct texts of 3 to 24 words."""
    generator = torch.Generator().manual_seed(1)
    pairs = []
    for row in range(rows):
        length = 2 + (row * 7) % 22
        words = [WORDS[i] for i in torch.randint(len(WORDS), (length,), generator=generator).tolist()]
        pairs.append(("the film was ", " ".join([*words, WORDS[row % len(WORDS)]])))
    return request_of(*pairs)


def shared_folder() -> Path:
    """Where the project's shared models lie: $NONPAREIL_SHARED, else beside the checkout."""
    default = Path(__file__).resolve().parents[3] / "shared"
    return Path(os.environ.get("NONPAREIL_SHARED", default))
