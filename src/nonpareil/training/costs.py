"""What a run has spent, and its loss: summed over resumes, kept in checkpoints, written beside the model."""

import math
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from nonpareil.files import write_json
from nonpareil.models.distributed import any_process

SPENT_FILE = "spent.json"


class Spent(TrainerCallback, ExportableState):
    """Counts what each step spends, keeps the sums in checkpoints, and stops at a limit of seconds.

    `completions_drawn` and `tokens_drawn` (prompts included, once per completion) are the run's own, not those of
    stored groups; `tokens_trained` went through a forward and backward pass, a prompt once for the completions that
    share its row; `seconds` are those of steps. The losses are summed beside them, since transformers forgets those
    before a resume.
    """

    def __init__(self, max_seconds: float | None = None):
        self.max_seconds = max_seconds
        self.completions_drawn = self.tokens_drawn = self.tokens_trained = 0
        self.seconds = self.loss_sum = 0.0
        self.losses = 0
        self._begun = 0.0
        self._first_step = 0

    def add_draws(self, completions: int, tokens: int) -> None:
        """Drawn in a step."""
        self.completions_drawn += completions
        self.tokens_drawn += tokens

    def add_loss(self, loss: float) -> None:
        """Of a step; one on nothing has none, NaN."""
        if not math.isnan(loss):
            self.loss_sum += loss
            self.losses += 1

    @property
    def mean_loss(self) -> float:
        """Over all steps of the run that had one, those before a resume included; NaN where none had."""
        return self.loss_sum / self.losses if self.losses else math.nan

    def summary(self, logs: dict[str, float], state: TrainerState) -> dict[str, float]:
        """transformers' last metrics, put right after a resume or an early end.

        Its loss is that of the steps since the resume over the number of all. Its rates are over the seconds since
        then, and before 5.24 of all planned steps. `train_loss` becomes the whole run's, rates those of the steps
        that were taken.
        """
        logs = {**logs, "train_loss": self.mean_loss}
        if logs.get("train_steps_per_second"):  # 0 or none where nothing was left to train
            per_second = (state.global_step - self._first_step) / logs["train_runtime"]
            scale = per_second / logs["train_steps_per_second"]
            logs |= {name: value * scale for name, value in logs.items() if name.endswith("_per_second")}
        return logs

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "args": {},
            "attributes": {
                "completions_drawn": self.completions_drawn,
                "tokens_drawn": self.tokens_drawn,
                "tokens_trained": self.tokens_trained,
                "seconds": self.seconds,
                "loss_sum": self.loss_sum,
                "losses": self.losses,
            },
        }

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Go on from the sums of the checkpoint, where there is one."""
        self._first_step = state.global_step
        kept: Any = state.stateful_callbacks
        vars(self).update(kept.get(type(self).__name__, {}).get("attributes", {}))
        if not state.global_step:
            self.loss_sum, self.losses = 0.0, 0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The clock of a step starts."""
        self._begun = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add the step's seconds; stop where they are used up."""
        self.seconds += time.perf_counter() - self._begun
        if self.max_seconds is not None and any_process(self.seconds >= self.max_seconds):
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write spent.json."""
        if not state.is_world_process_zero:
            return
        sums = {k: v for k, v in self.state()["attributes"].items() if k not in ("loss_sum", "losses")}
        sums["steps"] = state.global_step
        path = Path(str(args.output_dir)) / SPENT_FILE
        write_json(path, {**sums, "peak_memory_bytes": peak_memory_bytes()})


def peak_memory_bytes() -> int:
    """Most memory this process has held: of the accelerator where there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
