"""Weights in DeepSpeed's ZeRO-3 partitions: what `sharding` does with FSDP2, where accelerate's config asks for it.

DeepSpeed's engine is driven here and not by accelerate, which would take an optimizer step after every pass of
a batch, and on a CPU would silently leave DeepSpeed out.
"""

import copy
import importlib.util
import logging
import os
import sys
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nonpareil.errors import ConfigError, ModelError

ENGINE = "_nonpareil_engine"
LAUNCH = "ACCELERATE_DEEPSPEED_"
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd")
"""Those that treat each number of a weight alone."""
SETTINGS: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 1,  # names only: passes, their sums and clipping are ours
    "gradient_accumulation_steps": 1,
    "gradient_clipping": 0.0,  # 1.0 unless told otherwise
    "zero_allow_untested_optimizer": True,
    "steps_per_print": 2**62,
    "zero_optimization": {
        "stage": 3,
        # Processes run passes of unlike shape: each gather must follow from the module alone, not from a trace.
        "stage3_prefetch_bucket_size": 0,
        "stage3_max_reuse_distance": 0,
        "stage3_param_persistence_threshold": 0,
        "memory_efficient_linear": False,  # would replace torch's linear in the whole program
    },
}


@cache
def zero_requested() -> bool:
    """Whether accelerate's config asks for DeepSpeed; from then on accelerate itself knows nothing of it.

    Raises:
        ConfigError: DeepSpeed in another way than ZeRO-3 with the weights where they compute, or not installed.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() not in ("true", "1"):
        return False
    stage = os.environ.get(f"{LAUNCH}ZERO_STAGE", "2")  # accelerate's default
    if stage != "3":
        raise ConfigError(
            f"zero_stage: {stage} in accelerate's config is not supported: policy and anchor would be whole "
            "in every process; give zero_stage: 3, or distributed_type: MULTI_GPU"
        )
    for name in ("OFFLOAD_OPTIMIZER_DEVICE", "OFFLOAD_PARAM_DEVICE"):
        place = os.environ.get(f"{LAUNCH}{name}", "none")
        if place != "none":
            raise ConfigError(f"{name.lower()}: {place} in accelerate's config is not supported; give none")
    if "ACCELERATE_DEEPSPEED_CONFIG_FILE" in os.environ:
        raise ConfigError(
            "deepspeed_config_file in accelerate's config is not read; give zero_stage: 3 there, and optimizer, "
            "clipping, accumulation and bf16 to nonpareil"
        )
    if importlib.util.find_spec("deepspeed") is None:
        raise ConfigError('DeepSpeed is not installed; pip install "nonpareil[deepspeed]"')
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "false"
    return True


def check_zero_settings(optim: str, fp16: bool) -> None:
    """Refuse what DeepSpeed would do otherwise than an unsharded training.

    Raises:
        ConfigError: float16, or an optimizer that looks at a weight's shape, which is flat here.
    """
    if fp16:
        raise ConfigError("fp16=true with ZeRO-3 is not supported; give bf16=true, or neither")
    name = getattr(optim, "value", optim)
    if name not in OPTIMIZERS:
        raise ConfigError(
            f"optim={name} with ZeRO-3 is not supported: it would see parts of weights, flattened; "
            f"give one of {', '.join(OPTIMIZERS)}"
        )


def is_partition(tensor: Tensor) -> bool:
    """Whether this is a weight of which DeepSpeed holds a part in each process."""
    return hasattr(tensor, "ds_tensor")


def partition(model: nn.Module) -> nn.Module:
    """Split every weight over all processes, in place.

    Raises:
        ModelError: a weight that is not in float32.
    """
    for name, weight in model.named_parameters():
        if weight.dtype != torch.float32:
            raise ModelError(f"{name} is in {weight.dtype}; ZeRO-3 needs a policy in float32: model.float()")
    deepspeed = _deepspeed()
    deepspeed.zero.Init(module=model, config_dict_or_path=SETTINGS, dtype=torch.float32)
    return model


def part_of(weight: Any) -> Tensor:
    """This process's part of a partitioned weight, flat and padded at the end; shares its memory."""
    return weight.ds_tensor.data


def gather(weight: Any, part: Tensor | None = None) -> Tensor:
    """A partitioned weight, or what is split as it is, as one whole tensor; called by all processes."""
    mine = part_of(weight) if part is None else part
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, mine)
    return torch.cat(parts)[: weight.ds_numel].view(weight.ds_shape)


@torch.no_grad()
def put(weight: Any, value: Tensor) -> None:
    """Give a partitioned weight the value of a whole tensor."""
    from deepspeed.utils import safe_set_local_fp32_param

    part_of(weight).copy_(my_part(weight, value))
    if hasattr(weight, "_z3_optimizer"):  # which has a copy of its own, and writes that back at each step
        safe_set_local_fp32_param(weight, part_of(weight))


def my_part(weight: Any, value: Tensor) -> Tensor:
    """What `part_of` would be if the weight were `value`."""
    size = part_of(weight).numel()
    start = min(dist.get_rank() * size, value.numel())
    here = value.flatten()[start : start + size].to(part_of(weight))
    return nn.functional.pad(here, (0, size - here.numel()))


def engine_of(model: nn.Module) -> Any:
    """The engine that trains the model, or None."""
    return model.__dict__.get(ENGINE)


class ZeroOptimizer(torch.optim.Optimizer):
    """DeepSpeed's engine around a model and its optimizer, as an optimizer whose gradients are DeepSpeed's.

    `autocast` is entered around each forward pass: DeepSpeed leaves the weights in float32.
    """

    def __init__(self, model: Any, optimizer: torch.optim.Optimizer, autocast: Callable[[], Any]):
        if type(optimizer) not in (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD):
            raise ConfigError(
                f"the optimizer {type(optimizer).__name__} with ZeRO-3 is not supported; give AdamW"
            )
        deepspeed = _deepspeed()
        self.weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        self.sizes = [len(group["params"]) for group in optimizer.param_groups]
        self.engine = deepspeed.initialize(model=model, optimizer=optimizer, config=SETTINGS)[0]
        self.inner, self.param_groups = optimizer, optimizer.param_groups
        self.state, self.defaults = optimizer.state, optimizer.defaults
        if any(optimizer.state.values()):
            raise ModelError(
                "this version of DeepSpeed steps before the first step; pip install -U deepspeed (0.19.8 works)"
            )
        # The output head is called once per chunk, and processes differ in chunks: gathered for the whole pass.
        for weight in model.get_output_embeddings().parameters():
            deepspeed.zero.register_external_parameter(model, weight)
        model.forward = partial(_forward, model, autocast)
        model.__dict__[ENGINE] = self  # not a module of the model

    def backward(self, loss: Tensor) -> None:
        """Add the mean over processes of the loss's gradient to what each process holds of it."""
        self.engine.set_gradient_accumulation_boundary(False)
        self.engine.backward(loss, scale_wrt_gas=False)
        self._gradients = True

    _gradients = False

    @torch.no_grad()
    def clip(self, parameters: Any, max_norm: float, norm_type: float = 2.0) -> Tensor:
        """As `torch.nn.utils.clip_grad_norm_`, of the gradients that DeepSpeed holds; returns the norm before."""
        from deepspeed.utils import safe_get_local_grad, safe_set_local_grad

        total = torch.zeros((), device=part_of(self.weights[0]).device)
        if not self._gradients:
            return total
        gradients = [safe_get_local_grad(weight) for weight in self.weights]
        total += sum(gradient.float().square().sum() for gradient in gradients)
        dist.all_reduce(total)
        norm = total.sqrt()
        factor = max_norm / (norm + 1e-6)
        if factor < 1:
            for weight, gradient in zip(self.weights, gradients, strict=True):
                safe_set_local_grad(weight, gradient * factor)
        return norm

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Nothing without a gradient, as where every weight's gradient is None."""
        if self._gradients:
            self.engine.set_gradient_accumulation_boundary(True)
            self.engine.step()
            # DeepSpeed would add the next step's second pass to what a weight unused in its first one has here.
            self.forget_gradients()

    def forget_gradients(self) -> None:
        """As if there had been no backward pass since the last step."""
        from deepspeed.utils import safe_set_local_grad

        if self._gradients:
            for weight in self.weights:
                safe_set_local_grad(weight, torch.zeros_like(part_of(weight)))
            self._gradients = False

    def zero_grad(self, set_to_none: bool = True) -> None:
        """DeepSpeed does, after each step."""

    def state_dict(self) -> dict[str, Any]:
        """Without moments, which `whole_state` gathers: one process alone may ask for this."""
        return {"state": {}, "param_groups": self._groups()}

    def whole_state(self) -> dict[str, Any]:
        """As the optimizer of an unsharded model would say it, on the CPU; called by all processes."""
        from deepspeed.utils import safe_get_local_optimizer_state

        def entry(weight: Any, name: str, value: Any) -> Any:
            if _is_moment(value):
                return gather(weight, safe_get_local_optimizer_state(weight, name)).cpu()
            # Its own, or whoever loads this counts one weight's steps for all.
            return value.clone() if isinstance(value, Tensor) else value

        some: dict[str, Any] = next(iter(self.state.values()), {})
        state = {
            index: {name: entry(weight, name, value) for name, value in some.items()}
            for index, weight in enumerate(self.weights)
            if some
        }
        return {"state": state, "param_groups": self._groups()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what `whole_state` gave, whatever the number of processes then."""
        from deepspeed.utils import safe_set_local_optimizer_state

        for ours, theirs in zip(self.param_groups, state_dict["param_groups"], strict=True):
            ours.update({name: value for name, value in theirs.items() if name != "params"})
        if not state_dict["state"]:
            return
        some = next(iter(state_dict["state"].values()))
        for flat in self.engine.optimizer.fp32_partitioned_groups_flat:
            self.state[flat] = {
                name: torch.zeros_like(flat) if _is_moment(value) else copy.deepcopy(value)
                for name, value in some.items()
            }
        for index, weight in enumerate(self.weights):
            for name, value in state_dict["state"][index].items():
                if _is_moment(value):
                    safe_set_local_optimizer_state(weight, my_part(weight, value), name)

    def _groups(self) -> list[dict[str, Any]]:
        """The groups' settings, and the numbers of their weights."""
        starts = [sum(self.sizes[:i]) for i in range(len(self.sizes))]
        return [
            {**group, "params": list(range(start, start + size))}
            for group, start, size in zip(self.param_groups, starts, self.sizes, strict=True)
        ]


def _deepspeed() -> Any:
    """The library, telling what it does on stderr: stdout is the command's answer."""
    import deepspeed

    for handler in logging.getLogger("DeepSpeed").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)
    return deepspeed


def _is_moment(value: Any) -> bool:
    """One number for each of the weight's, unlike the count of steps."""
    return isinstance(value, Tensor) and value.dim() > 0


def _forward(model: nn.Module, autocast: Callable[[], Any], function: Callable[..., Any], *given: Any) -> Any:
    """In place of the model's forward, so that DeepSpeed's hooks are around any use of inner modules."""
    with autocast():
        return function(model, *given)
