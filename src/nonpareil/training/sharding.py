"""A Trainer whose weights may lie in shards over the processes."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer

from nonpareil.engines.load_check import check_scoring
from nonpareil.errors import ModelError
from nonpareil.models.anchors import Anchor
from nonpareil.models.loading import stored_state
from nonpareil.models.logprobs import output_head_is_plain
from nonpareil.models.sharding import is_empty, load_whole_state_dict, make_room
from nonpareil.models.sharding import shard as shard_model
from nonpareil.models.zero import ZeroOptimizer, engine_of, zero_requested
from nonpareil.training.config import DistillationConfig


class ShardingTrainer(Trainer):
    """A Trainer that shards its policy and anchor where `args.shard_weights` says so."""

    args: DistillationConfig
    model: nn.Module
    anchor: Anchor | None
    read_in_shards = False
    """Whether no process held a whole model while the weights were read."""

    def shard(self, policy: PreTrainedModel, weights: Path | None) -> None:
        """Split policy and anchor over the processes; where they are empty, shards are read from a folder now.

        Raises:
            ModelError: logits that ZeRO-3 cannot form in chunks, or as `check_scoring`.
        """
        if zero_requested() and not output_head_is_plain(policy):
            raise ModelError(
                f"{type(policy).__name__} scales or caps its logits behind the output head, which ZeRO-3 does not "
                "support; take distributed_type: MULTI_GPU and --shard_weights true"
            )
        dtype = self.args.compute_dtype(policy.dtype)
        models = [policy, self.anchor.module] if self.anchor is not None else [policy]
        for model in models:
            shard_model(model, self.args.device, dtype)
            if weights is not None:
                self.read_in_shards = True
                make_room(model, self.args.device)
                load_whole_state_dict(model, weights, stored_state)
            if not zero_requested():
                output_head_is_plain(model)  # asked by all processes together, and not amid a pass
        if self.read_in_shards:
            check_scoring(policy, trained=True)

    def _move_model_to_device(self, model: Any, device: torch.device) -> None:
        if not is_empty(model):
            super()._move_model_to_device(model, device)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Under ZeRO-3, DeepSpeed's engine with it."""
        optimizer = super().create_optimizer(model)
        if zero_requested() and engine_of(self.model) is None:
            zero = ZeroOptimizer(self.model, optimizer, self.accelerator.autocast)
            self.optimizer = optimizer = zero
            self.accelerator.clip_grad_norm_ = zero.clip
        return optimizer
