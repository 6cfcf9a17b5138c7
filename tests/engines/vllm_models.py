"""Tiny models with head sizes that vLLM's attention takes, saved as a user's would be."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from nonpareil.models.logprobs import TokenSequences
from tests.tiny import LLAMA, make_tokenizer

VLLM_LLAMA: dict[str, Any] = {
    **LLAMA,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 384,
}
CANARIES = TokenSequences([[1, 7, 8], [1, 9], [1, 12, 13, 14]], [[9, 10, 2], [16, 17, 18, 6, 7], [8, 8]])


def tied_llama(seed: int = 0, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = LlamaConfig(**{**VLLM_LLAMA, **changes}, tie_word_embeddings=True)
    return AutoModelForCausalLM.from_config(config).float().eval()


def save(model: PreTrainedModel, folder: Path) -> str:
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)
