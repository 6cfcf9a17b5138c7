"""The anchor that a policy is compared with, and the working copy that draws from policy and anchor in turn."""

import copy
import os
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from nonpareil.errors import DataError
from nonpareil.models.devices import best_device, cast_weights
from nonpareil.models.distributed import process_index
from nonpareil.models.sharding import (
    copy_whole,
    is_empty,
    is_sharded,
    keep_whole,
    local,
    make_room,
    whole,
    whole_shape,
)

ANCHOR_FILE = "anchor.safetensors"


class Anchor:
    """What the policy is compared with: the reference it was, a copy refreshed now and then, or a moving average.

    `rate`: `anchor <- (1 - rate) * anchor + rate * policy` after each step (J-BOND); `refresh_steps`: a copy of
    the policy every so many steps (iterative BOND); neither: the reference, for good.

    Kept in float32 whatever the policy is in: in bfloat16 an increment below about 2^-9 of a weight rounds
    away, and the anchor would stand still. This one is a whole model;
    `adapters.AdapterAnchor` is a second adapter on the policy's base.
    """

    def __init__(self, policy: PreTrainedModel, rate: float = 0.0, refresh_steps: int = 0):
        self.rate, self.refresh_steps = rate, refresh_steps
        self.module = copy.deepcopy(policy).float().eval().requires_grad_(False)

    @property
    def moves(self) -> bool:
        """Whether its weights change, and so belong to a checkpoint."""
        return bool(self.rate or self.refresh_steps)

    def after_step(self, policy: nn.Module, step: int) -> None:
        """Move, where this is a step after which the anchor moves; `step` optimizer steps are done."""
        if self.rate:
            self._move(policy, self.rate)
        elif self.refresh_steps and step % self.refresh_steps == 0:
            self._move(policy, 1.0)

    def weights(self) -> dict[str, Tensor]:
        """Its own weights by name, float32; a tied weight once."""
        return dict(self.module.named_parameters())

    def weights_of(self, policy: nn.Module) -> list[Tensor]:
        """The policy's weights, in the order of `weights`."""
        return list(policy.parameters())

    @torch.no_grad()
    def _move(self, policy: nn.Module, rate: float) -> None:
        # Shard by shard, where weights are sharded: both are split alike.
        ours = [local(weight) for weight in self.weights().values()]
        theirs = [local(weight).detach().to(torch.float32) for weight in self.weights_of(policy)]
        torch._foreach_lerp_(ours, theirs, rate)
        self._copy_buffers(policy)

    def _copy_buffers(self, policy: nn.Module) -> None:
        for mine, other in zip(self.module.buffers(), policy.buffers(), strict=True):
            mine.copy_(other)

    def save(self, directory: Path) -> None:
        """Write the anchor's weights, whole, beside a checkpoint; called by all processes, the first one writes."""
        tensors = {name: keep_whole(weight) for name, weight in self.weights().items()}
        if process_index() > 0:
            return
        partial = directory / f"{ANCHOR_FILE}.tmp"
        save_file(tensors, partial)
        os.replace(partial, directory / ANCHOR_FILE)

    def load(self, directory: Path) -> None:
        """Read the anchor back on resume.

        Raises:
            DataError: the checkpoint holds no anchor of this model; starting it anew would silently change
                the method.
        """
        path = directory / ANCHOR_FILE
        if not path.is_file():
            raise DataError(
                f"{path} is missing: the checkpoint cannot be resumed exactly; resume from another one"
            )
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise DataError(f"{path} cannot be read ({error}); resume from another checkpoint") from error
        weights = self.weights()
        unlike = [n for n, p in weights.items() if n not in tensors or tensors[n].shape != whole_shape(p)]
        if unlike or len(tensors) != len(weights):
            raise DataError(
                f"{path} is the anchor of another model (first difference: {(unlike or ['more weights'])[0]}); "
                "resume with the model it was trained from"
            )
        for name, weight in weights.items():
            copy_whole(weight, tensors[name])


class WorkingCopy:
    """One model in the compute type that takes on the weights of policy or anchor to draw and score.

    Drawing token by token from float32 weights under autocast would cast them, and the key cache, at every
    token; this casts once per step, and holds one copy for both models.
    """

    def __init__(self, policy: PreTrainedModel, dtype: torch.dtype, device: torch.device | None = None):
        """`device`: of a policy whose weights are still to be read; else the copy lies where the policy does."""
        copied = cast(PreTrainedModel, copy.deepcopy(policy).eval().requires_grad_(False))
        self.model = cast_weights(copied, dtype)
        if is_empty(self.model):
            make_room(self.model, device or best_device())

    @torch.no_grad()
    def load(self, source: nn.Module) -> PreTrainedModel:
        """Take on the weights of `source`, cast to the compute type."""
        if is_sharded(source):
            for weight, shard in zip(self.model.parameters(), source.parameters(), strict=True):
                weight.copy_(whole(shard).detach())  # one gathered weight at a time
        else:
            torch._foreach_copy_(list(self.model.parameters()), [p.detach() for p in source.parameters()])
        for mine, other in zip(self.model.buffers(), source.buffers(), strict=True):
            mine.copy_(other)
        return self.model
