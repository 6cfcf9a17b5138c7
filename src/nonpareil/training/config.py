"""Settings of `DistillationTrainer`: transformers' own, TRL's names for drawing, and the method's."""

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from transformers import TrainingArguments

from nonpareil.errors import ConfigError
from nonpareil.files import jsonable
from nonpareil.methods import spec_of
from nonpareil.methods.base import Method
from nonpareil.models.devices import best_device, fast_dtype
from nonpareil.records import SamplingParams
from nonpareil.setting_types import Limits, shown
from nonpareil.settings import check_settings, option
from nonpareil.training.checks import check_scale
from nonpareil.training.inherited import LIMITS
from nonpareil.training.inherited_checks import check_accelerator, check_inherited, in_our_words

if TYPE_CHECKING:
    NameOrMethod = str | Method
else:
    NameOrMethod = str  # transformers' HfArgumentParser would call the other with a flag's text


@dataclass
class DistillationConfig(TrainingArguments):
    """`transformers.TrainingArguments`, and what distilling best-of-N needs besides.

    A step has `per_device_train_batch_size` x `gradient_accumulation_steps` prompts a process. They set its
    statistics, in whatever split, never its memory, which `max_tokens_per_batch` bounds. `method` is a name, whose
    settings keep their defaults, or an object that holds them: `method=BOND(n=4)`.

    Raises:
        ConfigError: a setting under which the method would be another one.
    """

    LIMITS: ClassVar[Mapping[str, Limits]] = LIMITS

    learning_rate: float = option(3e-6, "Peak learning rate of AdamW.", above=0, at_most=1000)
    per_device_train_batch_size: int = option(
        128, "Prompts a step, of each process; times gradient_accumulation_steps.", at_least=1
    )
    logging_steps: float = option(
        10, "Steps between logged metrics.", above=0, why="below 1 a share of all steps"
    )
    remove_unused_columns: bool = option(
        False,
        "Reward functions receive dataset columns, so none is removed.",
        unread="rewards are given all columns",
    )
    bf16: bool | None = option(  # type: ignore[assignment]
        None, "Compute in bfloat16. Default: where this machine gains from it."
    )
    max_completion_length: int = option(256, "Most tokens drawn a completion.", at_least=1)
    temperature: float = option(
        1.0,
        "Of the policy: drawing, log-probs and loss all apply it.",
        above=0,
        why="best-of-N needs draws that differ",
    )
    top_p: float = option(
        1.0, "Refused below 1: log-probs would not be those drawn from.", above=0, at_most=1
    )
    top_k: int = option(0, "Refused above 0, for the same reason.", at_least=0)
    min_p: float = option(0.0, "Refused above 0, for the same reason.", at_least=0, below=1)
    method: NameOrMethod = option(
        "jbond",
        "jbond, bond, vbon, bonbon, sft_bon, regression, rloo, or path/to/file.py:Class.",
        also=(Method,),
    )
    anchor_ema_rate: float | None = option(
        None,
        "Share of the policy that the anchor takes on after each step. jbond: 0.02.",
        above=0,
        at_most=1,
        why="1 makes the anchor the last policy",
    )
    anchor_refresh_steps: int | None = option(
        None, "Make the anchor a copy of the policy every so many steps (BOND).", at_least=1
    )
    frozen_parameters: list[str] | None = option(
        None, "Parts of names of parameters that are not trained, such as embed_tokens."
    )
    use_peft: bool = option(False, "Train a LoRA adapter; the anchor is a second one on the same base model.")
    lora_r: int = option(16, "Rank of the adapter.", at_least=1, of="use_peft")
    lora_alpha: int = option(
        32, "The adapter's output is scaled by lora_alpha / lora_r.", at_least=1, of="use_peft"
    )
    lora_target_modules: list[str] | None = option(
        None, "Layers that get an adapter. Default: PEFT's choice; all-linear for all.", of="use_peft"
    )
    shard_weights: bool = option(
        False,
        "Split policy, anchor and optimizer state over the processes, by FSDP2. Accelerate's config "
        "may ask for ZeRO-3 in its place.",
    )
    use_vllm: bool = option(False, "Draw with vLLM, which gets policy and anchor whenever they have moved.")
    vllm_mode: str = option(
        "colocate",
        "colocate: in this process; server: a vLLM server on loopback.",
        choices=("colocate", "server"),
    )
    vllm_server_base_url: str | None = option(
        None, "Of the server, such as http://127.0.0.1:8000 (vllm_mode=server)."
    )
    vllm_gpu_memory_utilization: float | None = option(
        None,
        "Share of the device for colocated vLLM: weights and cache. Default: .3.",
        above=0,
        at_most=1,
        why="a share of the memory",
    )
    vllm_importance_sampling_correction: bool = option(
        False, "Weight each of the policy's draws by what the trainer says over what vLLM said."
    )
    vllm_importance_sampling_cap: float | None = option(
        None, "Largest such weight of a completion. Default: 2.", at_least=1, why="the weight of agreement"
    )
    max_train_seconds: float | None = option(
        None, "Stop after so many seconds of training steps, resumes included.", above=0
    )
    max_tokens_per_batch: int = option(
        16384, "Tokens, padding included, of one forward pass; bounds memory.", at_least=1
    )
    reward_weights: list[float] | None = option(None, "One weight a reward; default 1 each.")
    reward_timeout: float | None = option(
        None, "Seconds a Python reward may take; then its rewards are null.", above=0
    )
    trust_remote_code: bool = option(
        False, "Run the code that a model, tokenizer or reward model brings along (auto_map)."
    )
    log_completions: bool = option(True, "Write completions and rewards to Parquet every logging_steps.")

    def __post_init__(self) -> None:
        """Refuse what cannot work, resolve `bf16`, then let transformers do the same."""
        if not isinstance(self.method, str | Method):
            raise ConfigError(
                f"method={shown(self.method)} must be text, or an object whose class is a subclass of "
                "nonpareil.methods.base.Method (docs/own-method.md)"
            )
        check_settings(self)
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
        if self.anchor_ema_rate is not None and self.anchor_refresh_steps is not None:
            raise ConfigError("anchor_ema_rate and anchor_refresh_steps: an anchor moves one way; give one")
        check_inherited(self)
        check_scale(self)
        with in_our_words():
            super().__post_init__()
        check_accelerator(self)
        _ = self.device  # of several processes, this makes them a group
        # A process trains on one GPU: transformers would wrap the model in DataParallel and take on more prompts.
        self._n_gpu = min(self._n_gpu, 1)
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

    @property
    def importance_cap(self) -> float | None:
        """Largest importance weight of a completion; None without correction."""
        return (
            (self.vllm_importance_sampling_cap or 2.0) if self.vllm_importance_sampling_correction else None
        )

    def lora_config(self) -> Any:
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
            settings = {name: _plain(value) for name, value in vars(self.method).items()}
            plain |= {"method": spec_of(type(self.method)), "method_settings": settings}
        return plain

    def sampling(self, seed: int) -> SamplingParams:
        """How completions are drawn."""
        return SamplingParams(self.max_completion_length, self.temperature, seed=seed)


def _plain(value: Any) -> Any:
    """As JSON has it; text where it has no form for it."""
    try:
        return jsonable(value, keep_infinities=True)
    except TypeError:
        return str(value)
