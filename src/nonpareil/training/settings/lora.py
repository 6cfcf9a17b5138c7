"""A LoRA adapter in place of all weights."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nonpareil.settings import option

if TYPE_CHECKING:
    from peft import LoraConfig


@dataclass
class LoraSettings:
    """What the adapter is; `lora_` settings are read with `use_peft`."""

    use_peft: bool = option(False, "Train a LoRA adapter; the anchor is a second one on the same base model.")
    lora_r: int = option(16, "Rank of the adapter.", at_least=1, of="use_peft")
    lora_alpha: int = option(
        32, "The adapter's output is scaled by lora_alpha / lora_r.", at_least=1, of="use_peft"
    )
    lora_target_modules: list[str] | None = option(
        None, "Layers that get an adapter. Default: PEFT's choice; all-linear for all.", of="use_peft"
    )

    def lora_config(self) -> "LoraConfig | None":
        """The adapter of these settings, or None without `use_peft`."""
        if not self.use_peft:
            return None
        from peft import LoraConfig

        targets: Any = self.lora_target_modules
        if targets == ["all-linear"]:
            targets = "all-linear"
        return LoraConfig(
            r=self.lora_r, lora_alpha=self.lora_alpha, target_modules=targets, task_type="CAUSAL_LM"
        )
