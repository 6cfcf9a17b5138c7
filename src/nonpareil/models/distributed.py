"""Several processes as one: each computes its share, and all of them know the whole batch.

Every function is the identity in a single process, and is called by all processes in the same order.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nonpareil.errors import ConfigError

T = TypeVar("T")

BUCKET_ELEMENTS = 2**25
"""Gradients that travel together: 128 MiB in float32."""


def num_processes() -> int:
    """Processes of this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_index() -> int:
    """This process among them."""
    return dist.get_rank() if num_processes() > 1 else 0


def my_share(items: Sequence[T]) -> list[T]:
    """Every so-many-eth item: the share of this process. `gather_shares` undoes it."""
    return list(items[process_index() :: num_processes()])


def gather_shares(mine: Sequence[T]) -> list[T]:
    """All processes' results, in the order that the items had before `my_share`."""
    count = num_processes()
    if count == 1:
        return list(mine)
    parts: list[list[T]] = [[] for _ in range(count)]
    dist.all_gather_object(parts, list(mine))
    total = sum(map(len, parts))
    return [parts[i % count][i // count] for i in range(total)]


def any_process(flag: bool) -> bool:
    """Whether the flag is up in some process: a decision to stop must be everyone's."""
    return sum_over_processes(float(flag)) > 0


def of_first_process(ask: Callable[[], T]) -> T:
    """What the first process is told, for all of them."""
    if num_processes() == 1:
        return ask()
    told: list[Any] = [ask() if process_index() == 0 else None]
    dist.broadcast_object_list(told, src=0)
    return told[0]


@torch.no_grad()
def make_equal(model: nn.Module) -> None:
    """Give every process the first one's weights: gradients are summed as of one model."""
    if num_processes() > 1:
        for parameter in model.parameters():
            dist.broadcast(parameter.data, src=0)


def sum_over_processes(value: float) -> float:
    """The sum of each process's number."""
    return sum(of_each_process(value))  # in one order everywhere, so that all processes hold the same number


def max_over_processes(value: int) -> int:
    """The largest of each process's number."""
    return max(of_each_process(value))


def of_each_process(value: T) -> list[T]:
    """Each process's value, in their order."""
    if num_processes() == 1:
        return [value]
    values = [value] * num_processes()
    dist.all_gather_object(values, value)
    return values


@torch.no_grad()
def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add up the gradients of all processes; one that has none counts as zero, unless no process has any."""
    if num_processes() == 1:
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    masks = of_each_process([parameter.grad is not None for parameter in trained])
    bucket: list[Tensor] = []
    for parameter, has_some in zip(trained, zip(*masks, strict=True), strict=True):
        if not any(has_some):
            continue  # as in one process, where the optimizer then leaves the weight alone
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        bucket.append(parameter.grad)
        if sum(gradient.numel() for gradient in bucket) >= BUCKET_ELEMENTS:
            _sum_together(bucket)
            bucket = []
    if bucket:
        _sum_together(bucket)


def _sum_together(gradients: list[Tensor]) -> None:
    flat = torch.cat([gradient.flatten().float() for gradient in gradients])
    dist.all_reduce(flat)
    parts = flat.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def first_process_first(action: Callable[[], None]) -> None:
    """Let the first process act, on the file system say, before any goes on."""
    if process_index() == 0:
        action()
    wait_for_all()


def wait_for_all() -> None:
    """Go on when every process has come here."""
    if num_processes() > 1:
        dist.barrier()


def end_processes() -> bool:
    """Wait for all processes, then part; True in the one that goes on alone (and writes)."""
    if num_processes() == 1:
        return True
    first = process_index() == 0
    wait_for_all()
    dist.destroy_process_group()
    return first


def check_launch() -> None:
    """Refuse launches under which accelerate silently does something else than asked for.

    Raises:
        ConfigError: `accelerate launch --cpu --num_processes 2` (starts one process), or accelerate's FSDP.
    """
    cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1")
    if cpu and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        raise ConfigError(
            "accelerate launch was asked for several processes on the CPU, and has silently started one; use "
            "torchrun --nproc_per_node 2 -m nonpareil ..."
        )
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("true", "1"):
        raise ConfigError(
            "distributed_type: FSDP in accelerate's config is not used here (on the CPU it would silently be DDP); "
            "take distributed_type: MULTI_GPU, and give --shard_weights true: FSDP2 then shards policy, anchor and "
            "optimizer state"
        )
