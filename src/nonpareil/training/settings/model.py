"""How the policy is read; names as TRL has them."""

from dataclasses import dataclass
from typing import Any, ClassVar

from nonpareil.models.model_init import (
    ATTENTION_HELP,
    ATTENTIONS,
    EIGHT_BIT_HELP,
    FOUR_BIT_HELP,
    GGUF_HELP,
    KWARGS_HELP,
    NESTED_HELP,
    QUANT_TYPE_HELP,
    QUANT_TYPES,
    STORAGE_HELP,
    STORAGES,
    ModelInit,
    model_init,
)
from nonpareil.settings import option


@dataclass
class ModelSettings:
    """What from_pretrained is told of a policy that is named by its path."""

    HEADING: ClassVar = "Policy"

    attn_implementation: str | None = option(None, ATTENTION_HELP, choices=ATTENTIONS)
    model_init_kwargs: dict[str, Any] | str | None = option(None, KWARGS_HELP)
    gguf_file: str | None = option(None, GGUF_HELP)
    load_in_4bit: bool = option(False, FOUR_BIT_HELP)
    load_in_8bit: bool = option(False, EIGHT_BIT_HELP)
    bnb_4bit_quant_type: str = option("nf4", QUANT_TYPE_HELP, choices=QUANT_TYPES, of="load_in_4bit")
    use_bnb_nested_quant: bool = option(False, NESTED_HELP, of="load_in_4bit")
    bnb_4bit_quant_storage: str | None = option(None, STORAGE_HELP, choices=STORAGES, of="load_in_4bit")

    def init(self) -> ModelInit:
        """How the policy, and the reference, is read.

        Raises:
            ConfigError: as `models.model_init.model_init`.
        """
        return model_init(self, gguf_file=self.gguf_file)
