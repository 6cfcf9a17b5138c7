"""Checkpoints of policy, anchor and optimizer: whole, exact, and finished runs taken up as they are."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerState
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.trainer_utils import TrainOutput

from nonpareil.errors import DataError
from nonpareil.models.anchors import Anchor
from nonpareil.models.loading import stored_state
from nonpareil.models.sharding import (
    load_whole_state_dict,
    shard_optimizer_state,
    whole_optimizer_state,
    whole_state_dict,
)
from nonpareil.training.callbacks import StopCleanly, is_finished, last_whole_checkpoint
from nonpareil.training.placement import PlacingTrainer


class CheckpointingTrainer(PlacingTrainer):
    """A Trainer that also saves and restores the anchor, and saves shards as whole weights."""

    optimizer: torch.optim.Optimizer
    stopper: StopCleanly

    @property
    def _moving_anchor(self) -> Anchor | None:
        return self.anchor if self.anchor is not None and self.anchor.moves else None

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """A plain checkpoint of the policy, or of its adapter; called by all processes, the first one writes."""
        state = whole_state_dict(self.model) if self.args.shard_weights else None
        if self.args.should_save:
            self._save(output_dir or str(self.args.output_dir), state_dict=state)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """The anchor is saved with them, before transformers deletes an older checkpoint."""
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.shard_weights:
            state = whole_optimizer_state(self.optimizer)
            if self.args.should_save:
                torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
        if self._moving_anchor is not None:
            self._moving_anchor.save(Path(output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.args.shard_weights:
            load_whole_state_dict(self.model, Path(resume_from_checkpoint), stored_state)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """By way of the CPU: transformers loads onto the device of each process, whole."""
        if checkpoint is None:
            return
        state, schedule = (
            torch.load(Path(checkpoint) / name, map_location="cpu", weights_only=True)
            for name in (OPTIMIZER_NAME, SCHEDULER_NAME)
        )
        if self.args.shard_weights:
            state = shard_optimizer_state(state, self.optimizer)
        self.optimizer.load_state_dict(state)
        self.lr_scheduler.load_state_dict(schedule)  # type: ignore[union-attr]

    def train(  # type: ignore[override]
        self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any
    ) -> TrainOutput:
        """Train; `resume_from_checkpoint` is a checkpoint's path, or True for the last whole one.

        Raises:
            DataError: there is no checkpoint to resume from, or it lacks its anchor.
        """
        if resume_from_checkpoint is True:
            last = last_whole_checkpoint(Path(str(self.args.output_dir)), self._moving_anchor is not None)
            if last is None:
                raise DataError(
                    f"resume_from_checkpoint=true, but {self.args.output_dir} holds no whole checkpoint; "
                    "start without it"
                )
            resume_from_checkpoint = str(last)
        if resume_from_checkpoint and self._moving_anchor is not None:
            self._moving_anchor.load(Path(resume_from_checkpoint))
        if resume_from_checkpoint and is_finished(Path(resume_from_checkpoint), self.args.max_steps):
            return self._take_up_finished(resume_from_checkpoint)
        try:
            return super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)
        finally:
            self.stopper.restore()

    def _take_up_finished(self, checkpoint: str) -> TrainOutput:
        """The end of a run whose last checkpoint was its last step; transformers would take one step more."""
        self._load_from_checkpoint(checkpoint)
        self.state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
        self.callback_handler.on_train_begin(self.args, self.state, self.control)
        self.callback_handler.on_train_end(self.args, self.state, self.control)
        self.stopper.restore()
        return TrainOutput(self.state.global_step, 0.0, {})
