"""Settings of `DistillationTrainer`: transformers' own, TRL's names for drawing, and the method's."""

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from transformers import TrainingArguments

from nonpareil.errors import ConfigError
from nonpareil.models.devices import best_device, fast_dtype
from nonpareil.models.distributed import check_launch
from nonpareil.models.zero import check_zero_settings, zero_requested
from nonpareil.setting_types import Limits
from nonpareil.settings import check_settings, option
from nonpareil.training.adapter_checks import check_adapter
from nonpareil.training.inherited import LIMITS
from nonpareil.training.inherited_checks import check_accelerator, check_inherited, in_our_words
from nonpareil.training.settings import DistillationSettings
from nonpareil.training.settings.method import check_anchor
from nonpareil.training.settings.vllm import check_vllm

METHOD_SETTINGS = (
    "n",
    "num_generations",
    "num_reference_samples",
    "quantile_estimator",
    "jeffreys_weight",
    "kl_coef",
    "imitate",
    "bound",
    "contrast",
    "sft_weight",
    "target_floor",
    "baseline",
    "num_iterations",
    "epsilon",
)


def _setting(text: str) -> Any:
    """A setting of the method; None is the method's own default."""
    return option(None, text)


@dataclass
class DistillationConfig(DistillationSettings, TrainingArguments):  # type: ignore[misc]  # bf16=None: see there
    """`transformers.TrainingArguments`, and what distilling best-of-N needs besides.

    A step has `per_device_train_batch_size` x `gradient_accumulation_steps` prompts a process. They set its
    statistics, in whatever split, never its memory, which `max_tokens_per_batch` bounds.

    Raises:
        ConfigError: a setting under which the method would be another one.
    """

    LIMITS: ClassVar[Mapping[str, Limits]] = LIMITS

    remove_unused_columns: bool = option(
        False,
        "Reward functions receive dataset columns, so none is removed.",
        unread="rewards are given all columns",
    )

    n: int | None = _setting("The N whose best-of-N is the target (all but jbond and rloo).")
    num_generations: int | None = _setting("Completions of the policy a prompt and step.")
    num_reference_samples: int | None = _setting("Fresh completions of the anchor a prompt and step.")
    quantile_estimator: str | None = _setting(
        "harmonic, plug_in, inclusive_plug_in or two_sample; jbond: two_sample, or tie_aware (0/1 rewards)."
    )
    jeffreys_weight: float | None = _setting("Weight of the backward KL; the forward KL has the rest.")
    kl_coef: float | None = _setting("Weight of KL(policy || anchor): J-BOND's gamma; RLOO's penalty.")
    imitate: str | None = _setting("winner of n draws, or all draws with their rank weights.")
    bound: str | None = _setting("vBoN's: exact or l1.")
    contrast: str | None = _setting("BoNBoN's: ipo (the paper's) or dpo (its code's).")
    sft_weight: float | None = _setting("BoNBoN's weight of the SFT term.")
    target_floor: float | None = _setting("Regression's: no target log-ratio is lower, nats.")
    baseline: str | None = _setting(
        "Mean return of the other draws of the batch (of the reward's part, over prompts whose anchor rewards "
        "differ), or of the prompt."
    )
    num_iterations: int | None = _setting("vBoN's PPO: optimizer steps on one batch of draws.")
    epsilon: float | None = _setting("vBoN's PPO: clip range of the per-token ratios.")

    def __post_init__(self) -> None:
        """Refuse what cannot work, resolve `bf16`, then let transformers do the same."""
        check_settings(self)
        device = torch.device("cpu") if self.use_cpu else best_device()
        if device.type == "cpu":
            self.use_cpu = True
        if self.bf16 is None:
            self.bf16 = not self.fp16 and fast_dtype(device) is torch.bfloat16
        check_anchor(self)
        check_inherited(self)
        check_launch()
        self.shard_weights = zero_requested() or self.shard_weights  # ZeRO-3 shards them in another way
        self._check_sharding()
        check_vllm(self, self.max_completion_length)
        check_adapter(self, self.use_peft)
        with in_our_words():
            super().__post_init__()
        check_accelerator(self)
        self._join_processes()
        # A process trains on one GPU: transformers would wrap the model in DataParallel and take on more prompts.
        self._n_gpu = min(self._n_gpu, 1)
        self._check_processes()

    def _check_sharding(self) -> None:
        """Refuse ways of running on many devices that would silently be something else."""
        if zero_requested():
            check_zero_settings(self.optim, self.fp16)
            if self.use_vllm:
                raise ConfigError(
                    "use_vllm with ZeRO-3 is not supported: its anchor is not scored in shards; take "
                    "distributed_type: MULTI_GPU and --shard_weights true"
                )
        for name in ("load_best_model_at_end", "save_on_each_node"):
            if self.shard_weights and getattr(self, name):
                raise ConfigError(
                    f"{name}=true with shard_weights cannot be: one process writes whole checkpoints; remove it"
                )

    def _join_processes(self) -> torch.device:
        """Of several processes, make one group: transformers does when it is first asked for the device."""
        return self.device

    def _check_processes(self) -> None:
        """Refuse what does not go with the number of processes that were started."""
        if self.shard_weights and self.world_size == 1:
            raise ConfigError(
                "shard_weights=true with one process has nothing to share; start several: "
                "torchrun --nproc_per_node 2 -m nonpareil distill ..."
            )
        if self.use_vllm and self.vllm_mode == "colocate" and self.world_size > 1:
            raise ConfigError(
                f"vllm_mode=colocate draws in one process, and {self.world_size} were started; start a server and "
                "give vllm_mode=server"
            )

    @property
    def prompts_per_step(self) -> int:
        """Of an optimizer step, over all processes; the last one of an epoch may have fewer."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.world_size

    def with_whole_steps(self) -> Self:
        """The same training for transformers' loop: each step is one batch, and not several that add up.

        Baselines and means over prompts are then the step's; the passes that add up are formed by their tokens.
        """
        whole = copy(self)
        whole.per_device_train_batch_size *= self.gradient_accumulation_steps
        whole.gradient_accumulation_steps = 1
        return whole

    def policy_dtype(self) -> str:
        """What the policy is loaded in: float32 where it is trained, else what matrices are multiplied in."""
        computes = self.compute_dtype(torch.float32)
        return str(computes).removeprefix("torch.") if self.use_peft else "float32"

    def compute_dtype(self, default: torch.dtype) -> torch.dtype:
        """What matrices are multiplied in; `default` where neither bf16 nor fp16 is on."""
        return torch.bfloat16 if self.bf16 else torch.float16 if self.fp16 else default

    def method_settings(self) -> dict[str, Any]:
        """The settings of the method that were given."""
        return {name: value for name in METHOD_SETTINGS if (value := getattr(self, name)) is not None}
