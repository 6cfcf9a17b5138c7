"""Settings of `DistillationTrainer`: transformers' own, TRL's names for drawing, and the method's."""

from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from nonpareil.engines.transformers import check_sampling
from nonpareil.errors import ConfigError
from nonpareil.models.devices import best_device, fast_dtype
from nonpareil.records import SamplingParams


@dataclass
class DistillationConfig(TrainingArguments):
    """`transformers.TrainingArguments`, and what distilling best-of-N needs besides.

    `per_device_train_batch_size` counts prompts; it sets the statistics of a step, never its memory, which
    `max_tokens_per_batch` bounds.

    Raises:
        ConfigError: a setting under which the method would be another one.
    """

    learning_rate: float = field(default=3e-6, metadata={"help": "Peak learning rate of AdamW."})
    per_device_train_batch_size: int = field(default=128, metadata={"help": "Prompts a step."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between logged metrics."})
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Reward functions receive dataset columns, so none is removed."}
    )
    bf16: bool | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Compute in bfloat16. Default: where this machine gains from it."}
    )
    max_completion_length: int = field(default=256, metadata={"help": "Most tokens drawn a completion."})
    temperature: float = field(
        default=1.0, metadata={"help": "Of the policy: drawing, log-probs and loss all apply it."}
    )
    top_p: float = field(
        default=1.0, metadata={"help": "Refused below 1: log-probs would not be those drawn from."}
    )
    top_k: int = field(default=0, metadata={"help": "Refused above 0, for the same reason."})
    min_p: float = field(default=0.0, metadata={"help": "Refused above 0, for the same reason."})
    jeffreys_weight: float = field(
        default=0.5, metadata={"help": "Weight of the backward KL; the forward KL has the rest."}
    )
    kl_coef: float = field(
        default=0.0, metadata={"help": "Weight of KL(policy || anchor): the paper's gamma."}
    )
    anchor_ema_rate: float = field(
        default=0.02, metadata={"help": "Share of the policy that the anchor takes on after each step."}
    )
    max_tokens_per_batch: int = field(
        default=16384, metadata={"help": "Tokens, padding included, of one forward pass; bounds memory."}
    )
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "One weight a reward; default 1 each."}
    )
    reward_timeout: float | None = field(
        default=None, metadata={"help": "Seconds a Python reward may take; then its rewards are null."}
    )
    log_completions: bool = field(
        default=True, metadata={"help": "Write completions and rewards to Parquet every logging_steps."}
    )

    def __post_init__(self) -> None:
        """Resolve `bf16`, refuse what cannot work, then let transformers do the same."""
        device = torch.device("cpu") if self.use_cpu else best_device()
        if device.type == "cpu":
            self.use_cpu = True
        if self.bf16 is None:
            self.bf16 = not self.fp16 and fast_dtype(device) is torch.bfloat16
        kept = {"top_p": self.top_p < 1, "top_k": self.top_k > 0, "min_p": self.min_p > 0}
        for name, truncates in kept.items():
            if truncates:
                raise ConfigError(
                    f"{name}={getattr(self, name)} draws from a part of the vocabulary, whose log-probs are not "
                    "the policy's: the KL and the policy gradient would be wrong without an error. "
                    f"Remove {name}; use temperature to sharpen"
                )
        if not 0 < self.anchor_ema_rate <= 1:
            raise ConfigError(
                f"anchor_ema_rate={self.anchor_ema_rate} must lie in (0, 1]; 1 makes the anchor the last policy"
            )
        if self.max_tokens_per_batch < 1:
            raise ConfigError(f"max_tokens_per_batch={self.max_tokens_per_batch} must be at least 1")
        check_sampling(self.sampling(self.seed))
        super().__post_init__()

    def sampling(self, seed: int) -> SamplingParams:
        """How completions are drawn."""
        return SamplingParams(self.max_completion_length, self.temperature, seed=seed)
