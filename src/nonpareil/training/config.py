"""Settings of `DistillationTrainer`: transformers' own, TRL's names for drawing, and the method's."""

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from functools import wraps
from typing import Any, ClassVar, Self

import torch
from transformers import TrainingArguments

from nonpareil.errors import ConfigError
from nonpareil.methods import plain_settings, spec_of, where_it_belongs
from nonpareil.methods.base import Method
from nonpareil.models.devices import best_device, fast_dtype
from nonpareil.models.distributed import check_launch
from nonpareil.models.zero import check_zero_settings, zero_requested
from nonpareil.setting_types import Limits, check_value, shown
from nonpareil.settings import check_settings, option, settings_of
from nonpareil.training.adapter_checks import check_adapter
from nonpareil.training.inherited import LIMITS
from nonpareil.training.inherited_checks import check_accelerator, check_inherited, in_our_words
from nonpareil.training.settings import DistillationSettings
from nonpareil.training.settings.method import check_anchor
from nonpareil.training.settings.template import template_kwargs
from nonpareil.training.settings.vllm import check_vllm


def _naming_unknown(cls: type["DistillationConfig"]) -> type["DistillationConfig"]:
    """The class, whose constructor says in place of Python's `TypeError` where a setting that it lacks belongs."""
    own = cls.__init__

    @wraps(own)
    def construct(self: "DistillationConfig", *args: Any, **given: Any) -> None:
        known = settings_of(cls)
        for name, value in given.items():
            if name not in known:
                raise ConfigError(where_it_belongs(name, value, given.get("method", cls.method), known))
        own(self, *args, **given)

    cls.__init__ = construct  # type: ignore[method-assign]
    return cls


@_naming_unknown
@dataclass
class DistillationConfig(DistillationSettings, TrainingArguments):  # type: ignore[misc]  # bf16=None: see there
    """`transformers.TrainingArguments`, and what distilling best-of-N needs besides.

    A step has `per_device_train_batch_size` x `gradient_accumulation_steps` prompts per process. They set its
    statistics, in whatever split, never its memory, which `max_tokens_per_batch` bounds. `method` is a name, whose
    settings keep their defaults, or an object that holds them: `method=BOND(n=4)`.

    Raises:
        ConfigError: a setting under which the method would be another one.
    """

    LIMITS: ClassVar[Mapping[str, Limits]] = LIMITS

    remove_unused_columns: bool = option(
        False,
        "Reward functions receive dataset columns, so none is removed.",
        unread="rewards are given all columns",
    )

    def __post_init__(self) -> None:
        """Refuse what cannot work, resolve `bf16`, then let transformers do the same."""
        self._check_method()
        if self.include_num_input_tokens_seen is False:  # "no", as HfArgumentParser and TRL's give it
            self.include_num_input_tokens_seen = "no"
        check_settings(self)
        self.chat_template_kwargs = template_kwargs(self.chat_template_kwargs) or None
        device = torch.device("cpu") if self.use_cpu else best_device()
        if device.type == "cpu":
            self.use_cpu = True
        if self.bf16 is None:
            self.bf16 = not self.fp16 and fast_dtype(device) is torch.bfloat16
        check_anchor(self)
        of_flags: dict[Any, str] = {True: "group", False: "none"}  # as TRL reads them
        self.scale_rewards = of_flags.get(self.scale_rewards, self.scale_rewards)
        self.init()
        check_inherited(self)
        check_launch()
        self.shard_weights = zero_requested() or self.shard_weights  # ZeRO-3 shards them in another way
        self._check_sharding()
        check_adapter(self, self.use_peft)
        check_vllm(self, self.max_completion_length)
        with in_our_words():
            super().__post_init__()
        check_accelerator(self)
        self._join_processes()
        # A process trains on one GPU: transformers would wrap the model in DataParallel and take on more prompts.
        self._n_gpu = min(self._n_gpu, 1)
        self._check_processes()

    def _check_method(self) -> None:
        """Refuse what is neither a method's name nor a method."""
        if isinstance(self.method, str):
            check_value("method", self.method, str)
        elif not isinstance(self.method, Method):
            raise ConfigError(
                f"method={shown(self.method)} must be text, or an object of a subclass of "
                "nonpareil.methods.base.Method (docs/own-method.md)"
            )

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

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it, for loggers and files: a method by its name, and its settings."""
        plain = super().to_dict()
        if isinstance(self.method, Method):
            plain |= {"method": spec_of(type(self.method)), "method_settings": plain_settings(self.method)}
        return plain
