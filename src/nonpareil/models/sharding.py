"""Weights in shards, one per process (FSDP2; `zero` has DeepSpeed's), and back.

Checkpoints are whole, so any number of processes resumes them.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor

from nonpareil.errors import DataError, ModelError
from nonpareil.models.distributed import num_processes, process_index
from nonpareil.models.stored_places import stored_places
from nonpareil.models.zero import (
    ZeroOptimizer,
    engine_of,
    gather,
    is_partition,
    part_of,
    partition,
    put,
    zero_requested,
)

WITHIN = "_nonpareil_within"


def shard(model: nn.Module, device: torch.device, compute_dtype: torch.dtype | None = None) -> nn.Module:
    """Split the weights of each block, and of what is left, over all processes; in place.

    `device`: of a kind that they train on. `compute_dtype`: what the forward pass gathers weights in; gradients
    are still reduced in float32.
    """
    if zero_requested():
        return partition(model)
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (num_processes(),))  # by default the machine's, used or not
    precision = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
    blocks = set(getattr(model, "_no_split_modules", None) or ())
    for module in list(model.modules()):
        if type(module).__name__ in blocks:
            fully_shard(module, mesh=mesh, mp_policy=precision)
    # By default the outermost weights would stay gathered after a pass that has no backward one.
    fully_shard(model, mesh=mesh, mp_policy=precision, reshard_after_forward=True)
    setattr(model, WITHIN, MethodType(_call, model))
    register_fsdp_forward_method(model, WITHIN)
    return model


def within(model: nn.Module, function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(model, ...)`, which may use inner modules: their weights are gathered as for a forward pass."""
    if zero := engine_of(model):
        return zero.engine(function, *arguments)
    return (
        getattr(model, WITHIN)(function, *arguments)
        if hasattr(model, WITHIN)
        else function(model, *arguments)
    )


def _call(model: nn.Module, function: Callable[..., Any], *arguments: Any) -> Any:
    return function(model, *arguments)


def output_head(model: Any) -> Callable[[Tensor], Tensor]:
    """The last layer, for use `within` the model as often as this process likes."""
    head = model.get_output_embeddings()
    # DeepSpeed's hooks gather at each call, and every process must call as often; its weight is there (`zero`).
    return head.forward if engine_of(model) else head


def is_sharded(model: nn.Module) -> bool:
    """Whether its weights are shards."""
    return any(isinstance(parameter, DTensor) or is_partition(parameter) for parameter in model.parameters())


def is_empty(model: nn.Module) -> bool:
    """Whether its weights are still to be read; see `empty.empty_policy`."""
    return any(parameter.is_meta for parameter in model.parameters())


def make_room(model: Any, device: torch.device) -> None:
    """Memory for the weights, or shards, of an empty model; what is in it is undefined until they are read."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.to_empty(device=device)
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    model.tie_weights()


def whole(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor, or the tensor itself; called by all processes."""
    if is_partition(tensor):
        return gather(tensor)
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_shape(tensor: Any) -> torch.Size:
    """The shape that `whole` would have."""
    return torch.Size(tensor.ds_shape if is_partition(tensor) else tensor.shape)


def local(tensor: Tensor) -> Tensor:
    """This process's shard, which shares its memory, or the tensor itself."""
    if is_partition(tensor):
        return part_of(tensor)
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def copy_whole(target: Tensor, source: Tensor) -> None:
    """Copy a whole tensor into one that may be sharded."""
    if is_partition(target):
        put(target, source)
        return
    if isinstance(target, DTensor):
        source = distribute_tensor(
            source.to(device=target.device, dtype=target.dtype), target.device_mesh, target.placements
        )
    target.copy_(source)


def whole_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The model's state with whole tensors, in the first process's memory; the other processes' is empty.

    An accelerator holds one whole weight at a time. Tied weights stay one tensor, so that saving finds them.
    """
    gathered: dict[int, Tensor] = {}
    state = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) not in gathered:
            gathered[id(value)] = keep_whole(value)
        state[name] = gathered[id(value)]
    return state if process_index() == 0 else {}


def keep_whole(tensor: Tensor) -> Tensor:
    """The whole tensor on the CPU of the first process; nothing in the others, which take part in gathering it."""
    gathered = whole(tensor).detach()
    return gathered.cpu().contiguous() if process_index() == 0 else gathered.new_empty(0)


def load_whole_state_dict(
    model: nn.Module, directory: Path, read_whole: Callable[[Path], Mapping[str, Tensor]]
) -> None:
    """Read a plain checkpoint's weights, and the buffers it holds, into a sharded model, one file at a time.

    A checkpoint that names its weights otherwise than the model does (fused experts) is read by `read_whole`.

    Raises:
        DataError: it lacks a weight.
    """
    own = model.state_dict(keep_vars=True)
    missing = {id(value): name for name, value in own.items()}

    def take(stored: Mapping[str, Tensor]) -> None:
        for name, value in stored.items():
            if name in own and id(own[name]) in missing:
                copy_whole(own[name], value)
                del missing[id(own[name])]

    places = stored_places(directory)
    for file in sorted(set(places.values())):
        take({name: value for name, value in load_file(file).items() if places.get(name) == file})
    if missing:
        try:
            take(read_whole(directory))
        except ModelError as error:
            name = min(missing.values())
            raise DataError(f"{directory} lacks {name}; resume from another checkpoint") from error


def whole_optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """As the optimizer of an unsharded model would say it, in the first process's memory."""
    if isinstance(inner := getattr(optimizer, "optimizer", optimizer), ZeroOptimizer):
        return inner.whole_state()
    state = optimizer.state_dict()
    moments = {
        index: {name: keep_whole(v) if isinstance(v, Tensor) else v for name, v in values.items()}
        for index, values in state["state"].items()
    }
    return {**state, "state": moments}


def shard_optimizer_state(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The opposite: each weight's moments placed as the weight is."""
    if isinstance(getattr(optimizer, "optimizer", optimizer), ZeroOptimizer):
        return state  # which takes its parts itself
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]

    def placed(weight: Tensor, value: Any) -> Any:
        if not (isinstance(value, Tensor) and value.dim() > 0 and isinstance(weight, DTensor)):
            return value
        if value.shape != weight.shape:
            raise DataError(
                f"an optimizer state of shape {tuple(value.shape)} for a weight of {tuple(weight.shape)}: the "
                "checkpoint is of another model, or not whole; resume from another one"
            )
        return distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements)

    moments = {
        index: {name: placed(weights[index], value) for name, value in values.items()}
        for index, values in state["state"].items()
    }
    return {**state, "state": moments}
