"""What happens around a step: the anchor moves and is saved, metrics go to disk, Ctrl-C ends cleanly."""

import json
import math
import os
import signal
import threading
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from nonpareil.models.anchors import ANCHOR_FILE, Anchor
from nonpareil.models.distributed import any_process

METRICS_FILE = "metrics.jsonl"
RESUMED_FILES = ("trainer_state.json", "optimizer.pt", "scheduler.pt")


class AnchorCallback(TrainerCallback):
    """Moves the anchor after each optimizer step."""

    def __init__(self, anchor: Anchor):
        self.anchor = anchor

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """J-BOND's Algorithm 2, step 5; iterative BOND's refresh."""
        self.anchor.after_step(kwargs["model"], state.global_step)


class MetricsFile(TrainerCallback):
    """Appends every log line to `metrics.jsonl`; on resume, lines behind the checkpoint are dropped."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Forget what a run that is taken up again had logged after its checkpoint."""
        if not state.is_world_process_zero:
            return
        path = Path(str(args.output_dir)) / METRICS_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        if path.is_file() and state.global_step:
            lines = path.read_text(encoding="utf-8").splitlines()
            kept = [
                line for line in lines if _is_whole(line) and json.loads(line)["step"] <= state.global_step
            ]
        partial = path.with_suffix(".tmp")
        partial.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        os.replace(partial, path)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """One JSON object a line; what is not a finite number is null."""
        if not state.is_world_process_zero:
            return
        logs = {k: v for k, v in kwargs["logs"].items() if k != "total_flos"}
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in logs.items()}
        with (Path(str(args.output_dir)) / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, **finite}) + "\n")


def _is_whole(line: str) -> bool:
    """False for a last line that a kill cut short; every other is followed by its checkpoint."""
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


class CompactProgress(ProgressCallback):
    """transformers' progress bar, with the figures that matter beside it in place of a dictionary above it."""

    SHOWN = ("reward", "kl", "entropy", "step_time")

    def on_log(  # type: ignore[override]
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """All figures are in `metrics.jsonl`."""
        if self.training_bar is not None:
            logs = kwargs["logs"]
            self.training_bar.set_postfix({k: f"{logs[k]:.3g}" for k in self.SHOWN if k in logs})


class StopCleanly(TrainerCallback):
    """The first Ctrl-C (or SIGTERM) finishes the step, saves a checkpoint and stops; a second one interrupts.

    `every`: steps between states that can be resumed; those in between share one batch of draws.
    """

    def __init__(self, every: int = 1) -> None:
        self.stopped = False
        self.every = every
        self._previous: dict[int, Any] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Python delivers signals to the main thread only; elsewhere Ctrl-C stays as it is."""
        self.stopped = False
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._stop)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Between steps the state is whole, and can be saved."""
        self.stopped = any_process(self.stopped)  # the signal may reach one process a step later
        if self.stopped and state.global_step % self.every == 0:
            control.should_save = control.should_training_stop = True

    def restore(self) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _stop(self, number: int, frame: Any) -> None:
        self.stopped = True
        signal.signal(number, self._previous[number])


def last_whole_checkpoint(output_dir: Path, with_anchor: bool = True) -> Path | None:
    """The newest checkpoint with all its files, the anchor among them where it moves."""
    files = (*RESUMED_FILES, ANCHOR_FILE) if with_anchor else RESUMED_FILES
    found = [
        path
        for path in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        # transformers resumes without an optimizer state, silently, where that is missing.
        if path.name.rsplit("-", 1)[1].isdigit() and all((path / name).is_file() for name in files)
    ]
    return max(found, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)


def is_finished(checkpoint: Path, max_steps: int) -> bool:
    """Whether a checkpoint is at the end of its run: at `max_steps`, else at the run's own."""
    path = checkpoint / "trainer_state.json"
    if not path.is_file():
        return False
    state = json.loads(path.read_text(encoding="utf-8"))
    return state["global_step"] >= (max_steps if max_steps > 0 else state["max_steps"])
