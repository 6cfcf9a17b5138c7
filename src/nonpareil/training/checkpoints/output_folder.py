"""A training's folder: held by one process, its files listed as ours, and no other file deleted."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput

from nonpareil.folders import held_folder, writing
from nonpareil.markers import OutputFolder
from nonpareil.models.distributed import process_index, wait_for_all
from nonpareil.terminal import tell
from nonpareil.training.callbacks import METRICS_FILE
from nonpareil.training.card import CARD, OWNER, is_writable
from nonpareil.training.checkpoints.carded import CardedTrainer
from nonpareil.training.checkpoints.files import PARTIAL, STATE_FILE, checkpoint_step, leftovers, remove_empty
from nonpareil.training.step.signal import Signal


class ListingTrainer(CardedTrainer):
    """A Trainer that is alone in its folder, and deletes older checkpoints only where it wrote them."""

    signal: Signal

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, **kwargs: Any) -> TrainOutput:  # type: ignore[override]
        """As `CardedTrainer`; the folder is held meanwhile, by the first process for all.

        Raises:
            ConfigError: another process writes to the folder, or it cannot be written to.
            RewardError: no step moved the policy.
        """
        with self._alone():
            trained = super().train(resume_from_checkpoint, **kwargs)
            self.signal.check()
            return trained

    def save_finished(self) -> None:
        """The policy, its tokenizer, its card and, last, the trainer's state, in output_dir; by all processes.

        Raises:
            DataError: it could not be written; checkpoints are as they were.
            DivergedError: the policy's weights are no numbers, or give none; nothing is written.
        """
        self.check_policy()
        with self.reporting(self._folder):
            with self._into_place() as staging:
                self.save_model(staging)
                if staging is not None and not is_writable(self._folder / CARD):
                    tell(f"{self._folder / CARD} is not ours, so no model card was written")
                    Path(staging, CARD).unlink(missing_ok=True)
            with self._into_place() as staging:
                if staging is not None:
                    self.state.save_to_json(os.path.join(staging, STATE_FILE))
        self.note_saved(self._folder)

    @contextmanager
    def _into_place(self) -> Iterator[str | None]:
        """For the first process a folder whose files then go to output_dir, listed."""
        folder = self._listing()
        if folder is None:
            yield None
        else:
            with folder.staged() as staging:
                yield str(staging)

    def _listing(self) -> OutputFolder | None:
        """Where the first process lists what is written; None in the others."""
        if process_index() > 0:
            return None
        folder = held_folder(Path(str(self.args.output_dir)) / METRICS_FILE)
        at_home = folder is not None and os.path.realpath(str(self.args.output_dir)) == str(folder.path)
        return folder if at_home else None

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with ExitStack() as stack:
            if process_index() == 0 and self._listing() is None:
                stack.enter_context(writing(str(self.args.output_dir), OWNER, other="another distillation"))
            wait_for_all()
            yield

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        """List what loggers write; a training that is refused before leaves the folder as it was."""
        with ExitStack() as stack:
            if (folder := self._listing()) is not None:
                _clear_leftovers(folder)
                stack.enter_context(folder.adding(METRICS_FILE))
                # TensorBoard's files, which name the process that writes them.
                events = f"*tfevents.*.{socket.gethostname()}.{os.getpid()}.*"
                stack.enter_context(folder.adding("runs", [events]))
            yield

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As `CardedTrainer`, in folders that are listed; then the oldest of ours go."""
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        folder, limit = self._listing(), self.args.save_total_limit
        with ExitStack() as stack:
            if folder is not None:
                stack.enter_context(self.reporting(folder.path / name))
                _clear_leftovers(folder)
                stack.enter_context(folder.adding(name))
                # Nobody else makes a folder of this name: all that a kill leaves there is ours.
                stack.enter_context(folder.adding(f"{name}{PARTIAL}", ["?*"]))
            super()._save_checkpoint(model, trial)
        if folder is not None and limit:
            delete_older(folder, limit, self.state.best_model_checkpoint)


def _clear_leftovers(folder: OutputFolder) -> None:
    """Delete what a kill left of checkpoints that were being written; of others' files there, none."""
    for partial in leftovers(folder.path):
        folder.delete(partial.name)
        remove_empty(partial)


def delete_older(folder: OutputFolder, limit: int, best: str | None = None) -> None:
    """Delete the oldest checkpoints that are listed as ours, until `limit` are left; the last and the best stay."""
    ours = sorted(filter(checkpoint_step, folder.entries()), key=lambda name: checkpoint_step(name) or 0)
    spared = {name for name in ours if name in (ours[-1], Path(best or "").name)}
    extra = max(0, len(ours) - max(limit, len(spared)))
    for name in [name for name in ours if name not in spared][:extra]:
        folder.delete(name)
