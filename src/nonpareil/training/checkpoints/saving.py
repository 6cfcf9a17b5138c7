"""Checkpoints of policy, anchor and optimizer: whole, exact, and finished runs taken up as they are."""

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerState
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput

from nonpareil.errors import DataError, DivergedError, NonpareilError, NotFiniteError
from nonpareil.models.adapters import is_adapted, plain_model
from nonpareil.models.anchors import Anchor
from nonpareil.models.distributed import first_process_first, num_processes, process_index, wait_for_all
from nonpareil.models.loading import end_token_ids, stored_state
from nonpareil.models.sharding import (
    load_whole_state_dict,
    shard_optimizer_state,
    whole_optimizer_state,
    whole_state_dict,
)
from nonpareil.models.trained import keep_temperature
from nonpareil.terminal import reason_of, tell
from nonpareil.training.callbacks import EndsAsDecided, LastWholeStep, StepsAsAsked, StopCleanly
from nonpareil.training.checkpoints.files import (
    PARTIAL,
    STATE_FILE,
    begin,
    checkpoint_step,
    checkpoints_in,
    publish,
    read_list,
    write_list,
)
from nonpareil.training.checkpoints.identity import MAY_CHANGE
from nonpareil.training.checkpoints.resume import checkpoint_to_resume, refuse_another_run
from nonpareil.training.costs import Spent
from nonpareil.training.sharding import ShardingTrainer
from nonpareil.training.step.accumulate import Accumulator
from nonpareil.training.step.descent import check_policy


class NotSaved(DataError):
    """A checkpoint or a result that could not be written; those written before are as they were."""


class CheckpointingTrainer(ShardingTrainer):
    """A Trainer that also saves and restores the anchor, and saves shards as whole weights."""

    optimizer: torch.optim.Optimizer
    stopper: StopCleanly
    whole: LastWholeStep
    identity: dict[str, Any]
    """What decides the training; checkpoints of another one are refused."""
    planned: int
    """Optimizer steps of the training in all."""
    accumulator: Accumulator
    _partial: Path | None = None
    """Where a checkpoint is being written."""
    _saved_step = 0

    @property
    def _moving_anchor(self) -> Anchor | None:
        return self.anchor if self.anchor is not None and self.anchor.moves else None

    def watch(self, spent: Spent, *others: ExportableState) -> None:
        """Follow the steps from now on, behind the callbacks that there are; hold completions to where they end."""
        model = plain_model(self.model)
        self.identity["end_token_ids"] = sorted(end_token_ids(model, self.processing_class))  # type: ignore[arg-type]
        self.add_callback(EndsAsDecided(model))
        self.whole = LastWholeStep(spent, *others)
        self.add_callback(StepsAsAsked())
        self.add_callback(self.whole)

    @property
    def _folder(self) -> Path:
        return Path(str(self.args.output_dir))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """A plain checkpoint of the policy, or of its adapter; called by all processes, the first one writes."""
        state = whole_state_dict(self.model) if self.args.shard_weights else None
        if self.args.should_save:
            folder = output_dir or str(self.args.output_dir)
            self._save(folder, state_dict=state)
            keep_temperature(folder, self.args.temperature)
            if is_adapted(
                self.model
            ):  # PEFT leaves it to the base, which need not end where this policy does
                plain_model(self.model).generation_config.save_pretrained(folder)
                self.args.init().keep(folder)

    @contextmanager
    def _written(self, name: str) -> Iterator[Path]:
        """A folder to write to, for all processes; it goes again when that fails, unless it was there before."""
        folder = self._folder / f"{name}{PARTIAL}"
        with self.reporting(folder.with_suffix("")):
            first_process_first(partial(begin, folder))
        try:
            with self.reporting(folder.with_suffix("")):
                yield folder
                wait_for_all()
        except NotSaved:
            if process_index() == 0:
                shutil.rmtree(folder, ignore_errors=True)
            raise

    @contextmanager
    def reporting(self, path: Path) -> Iterator[None]:
        """A full disk, and the like, in one line.

        Raises:
            DataError: naming what could not be written, and why.
        """
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            if isinstance(error, NonpareilError):
                raise
            reason = _reason(error, self._folder)
            raise NotSaved(f"{path} could not be written: {reason}") from error

    def _get_output_dir(self, trial: Any) -> str:
        """Where transformers puts a checkpoint."""
        return str(self._partial or super()._get_output_dir(trial=trial))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Whole or not at all, and of numbers; older ones go only when the new one is there."""
        self.check_policy()
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with self._written(name) as self._partial:
            try:
                super()._save_checkpoint(model, trial)
                wait_for_all()  # each has written its random state
                if process_index() == 0:
                    self._publish(self._partial / name)
            finally:
                self._partial = None
        self._saved_step = self.state.global_step

    def check_policy(self) -> None:
        """See `descent.check_policy`; before anything is written.

        Raises:
            DivergedError: the weights are not worth keeping.
        """
        check_policy(plain_model(self.model), self.anchor, self.accumulator, self.state.global_step)

    def _publish(self, written: Path) -> None:
        target, best = self._folder / written.name, self.state.best_model_checkpoint
        if best is not None and Path(best) == written:
            self.state.best_model_checkpoint = str(target)
            self.state.save_to_json(str(written / STATE_FILE))
        write_list(written, self.state.global_step, self.identity)
        publish(written, target)
        written.parent.rmdir()

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """By `CardedTrainer`, from where the checkpoint then lies: transformers would copy it into output_dir."""

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """The anchor is saved with them."""
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
        scheduler: Any = self.lr_scheduler
        scheduler.load_state_dict(schedule)
        if isinstance(scheduler, LambdaLR):  # the next step's rate, where the number of steps is another now
            rates = [
                b * f(scheduler.last_epoch)
                for b, f in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
            ]
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            scheduler._last_lr = rates

    def train(  # type: ignore[override]
        self, resume_from_checkpoint: str | Path | bool | None = None, **kwargs: Any
    ) -> TrainOutput:
        """Train; `resume_from_checkpoint` is a checkpoint's path, or True for the last whole one.

        An error inside the loop saves a checkpoint of the last whole step first, where one process trains.

        Raises:
            DataError: there is no checkpoint to resume from, it is not whole, or a file cannot be written.
            ConfigError: no such checkpoint, or one of a training with other settings.
        """
        checkpoint = checkpoint_to_resume(resume_from_checkpoint, self._folder)
        if checkpoint is not None:
            # Where all weights are in the checkpoint, or needed no more, those given are not read.
            read = is_adapted(self.model) or (self.anchor is not None and not self.anchor.moves)
            may_change = MAY_CHANGE if read else MAY_CHANGE | {"model"}
            for change in refuse_another_run(checkpoint, self.identity, self.planned, may_change):
                if process_index() == 0:
                    tell(f"resume: {change}")
            # By its list: a copied folder may have any name.
            self._saved_step = (read_list(checkpoint) or {})["step"]
            if self._moving_anchor is not None:
                self._moving_anchor.load(checkpoint)
        with self._recorded():
            if checkpoint is not None and self._saved_step == self.planned:
                output = self._take_up_finished(str(checkpoint))
            else:
                output = self._train_on(checkpoint, **kwargs)
        output.metrics.update(self.whole.spent.summary(output.metrics, self.state))
        return output._replace(training_loss=self.whole.spent.mean_loss)

    def _recorded(self) -> AbstractContextManager[None]:
        """Entered once nothing can be refused any more, for the time in which files are written."""
        return nullcontext()

    def _train_on(self, checkpoint: Path | None, **kwargs: Any) -> TrainOutput:
        try:
            return super().train(None if checkpoint is None else str(checkpoint), **kwargs)
        except Exception as error:
            self._save_last_whole_step(error)
            if isinstance(error, NotFiniteError):
                raise NotFiniteError(f"{error}. {self._way_on(isinstance(error, DivergedError))}") from error
            if isinstance(error, OSError) and not isinstance(error, NonpareilError):
                raise DataError(f"training ended at step {self.state.global_step}: {error}") from error
            raise
        finally:
            self.stopper.restore()

    def _save_last_whole_step(self, error: Exception) -> None:
        """So that an error costs one step and no more; not of several processes, which may not all know of it."""
        step = self.whole.step
        resumable = step and step > self._saved_step and step % self.stopper.every == 0
        if not resumable or num_processes() > 1 or isinstance(error, NotSaved | DivergedError):
            return
        self.whole.go_back(self.state)
        try:
            self._save_checkpoint(self.model, None)
        except (NotSaved, DivergedError) as unsaved:
            tell(f"nothing after step {self._saved_step} is kept: {unsaved}")
        else:
            tell(
                f"an error ends the training after step {step}, of which {self._folder}/checkpoint-{step} is kept"
            )

    def _way_on(self, diverged: bool) -> str:
        """What is left of a training whose numbers are none; of one that diverged, from before its last step."""
        steps = [checkpoint_step(path.name) or 0 for path in checkpoints_in(self._folder)]
        good = [step for step in steps if step < self.state.global_step or not diverged]
        if not good:
            return "No good checkpoint is there: begin anew, with a lower learning_rate or rewards of another scale"
        return (
            f"The last good checkpoint is {self._folder}/checkpoint-{good[0]}: resume it once the cause is mended, "
            "or train on from it as a model, with a lower learning_rate"
        )

    def _take_up_finished(self, checkpoint: str) -> TrainOutput:
        """The end of a run whose last checkpoint was its last step; transformers would take one step more."""
        self._load_from_checkpoint(checkpoint)
        self.state = TrainerState.load_from_json(str(Path(checkpoint) / STATE_FILE))
        self.state.init_training_references(self, self.planned, self.state.num_train_epochs, None)
        self.callback_handler.on_train_begin(self.args, self.state, self.control)
        self.callback_handler.on_train_end(self.args, self.state, self.control)
        self.stopper.restore()
        return TrainOutput(self.state.global_step, 0.0, {})


def _reason(error: Exception, folder: Path) -> str:
    """In one line; torch and safetensors do not say that a disk is full."""
    said = reason_of(error)
    with suppress(OSError):
        if not isinstance(error, OSError) and shutil.disk_usage(folder).free < 2**24:
            said += "; the disk is full"
    return said
