"""A LoRA adapter in place of all weights."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from nonpareil.settings import option

if TYPE_CHECKING:
    from peft import LoraConfig


@dataclass
class LoraSettings:
    """What the adapter is; these settings are read with `use_peft`. Names as TRL's ModelConfig has them."""

    HEADING: ClassVar = "LoRA"

    use_peft: bool = option(False, "Train a LoRA adapter; the anchor is a second one on the same base model.")
    lora_r: int = option(16, "Rank of the adapter.", at_least=1, of="use_peft")
    lora_alpha: int = option(
        32, "The adapter's output is scaled by lora_alpha / lora_r.", at_least=1, of="use_peft"
    )
    lora_dropout: float = option(
        0.0,
        "Share of an adapter's inputs dropped in the passes that give the gradient (TRL: .05). Draws and KL are of "
        "the policy without it, and a loss that compares its log-probs with those of the draws takes on the noise.",
        at_least=0,
        below=1,
        of="use_peft",
    )
    lora_target_modules: list[str] | None = option(
        None, "Layers that get an adapter. Default: PEFT's choice; all-linear for all.", of="use_peft"
    )
    lora_target_parameters: list[str] | None = option(
        None,
        "Parameters that get an adapter, by the end of their names: experts in one tensor "
        "(mlp.experts.gate_up_proj). Without lora_target_modules these alone.",
        of="use_peft",
    )
    lora_modules_to_save: list[str] | None = option(
        None,
        "Layers that are trained whole beside the adapter, such as embed_tokens or lm_head; policy and anchor have "
        "copies of their own.",
        of="use_peft",
    )
    use_rslora: bool = option(False, "Scale by lora_alpha / sqrt(lora_r) instead.", of="use_peft")
    use_dora: bool = option(
        False,
        "Also learn the length of each row of an adapted weight (DoRA), of linear layers; slower to train.",
        of="use_peft",
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
            r=self.lora_r,
            lora_alpha=self.lora_alpha,
            lora_dropout=self.lora_dropout,
            target_modules=targets,
            target_parameters=self.lora_target_parameters,
            modules_to_save=self.lora_modules_to_save,
            use_rslora=self.use_rslora,
            use_dora=self.use_dora,
            task_type="CAUSAL_LM",
        )
