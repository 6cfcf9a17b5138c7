"""What happens around a step: the anchor moves, metrics go to disk, Ctrl-C ends cleanly."""

import json
import math
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState, ProgressCallback

from nonpareil.files import write_bytes
from nonpareil.models.anchors import Anchor
from nonpareil.models.distributed import any_process
from nonpareil.training.costs import Spent

METRICS_FILE = "metrics.jsonl"


class AnchorCallback(TrainerCallback):
    """Moves the anchor after each optimizer step; a moving average stays where the policy did."""

    def __init__(self, anchor: Anchor, policy_moves: Callable[[], bool]):
        self.anchor, self.policy_moves = anchor, policy_moves

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """J-BOND's Algorithm 2, step 5; iterative BOND's refresh."""
        if self.policy_moves() or not self.anchor.rate:
            self.anchor.after_step(kwargs["model"], state.global_step)


class EndsAsDecided(TrainerCallback):
    """Puts back the ids that end a completion: transformers' Trainer adds the tokenizer's, and would save them."""

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.ends = [getattr(config, "eos_token_id", None) for config in self._configs()]

    def _configs(self) -> list[Any]:
        return [self.model.config, self.model.generation_config]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """After transformers, and before anything is drawn."""
        for config, ends in zip(self._configs(), self.ends, strict=True):
            config.eos_token_id = ends


class MetricsFile(TrainerCallback):
    """Appends every log line to `metrics.jsonl`; on resume, lines behind the checkpoint are dropped."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Forget what a run that is taken up again had logged after its checkpoint."""
        if not state.is_world_process_zero:
            return
        path = Path(str(args.output_dir)) / METRICS_FILE
        kept = []
        if path.is_file() and state.global_step:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            kept = [
                line for line in lines if (step := _step_of(line)) is not None and step <= state.global_step
            ]
        write_bytes(path, "".join(line + "\n" for line in kept).encode())

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """One JSON object per line; what is not a finite number is null."""
        if not state.is_world_process_zero:
            return
        logs = {k: v for k, v in kwargs["logs"].items() if k != "total_flos"}
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in logs.items()}
        with (Path(str(args.output_dir)) / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, **finite}) + "\n")


def _step_of(line: str) -> int | None:
    """None for a line that a kill cut short; every other is followed by its checkpoint."""
    try:
        logged = json.loads(line)
    except ValueError:
        return None
    step = logged.get("step") if isinstance(logged, dict) else None
    return step if isinstance(step, int) else None


class CompactProgress(ProgressCallback):
    """transformers' progress bar, with the metrics that matter beside it in place of a dictionary above it."""

    SHOWN = ("reward", "kl_to_anchor", "entropy", "step_time")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Steps before a resume are shown as done, and count in no rate and no time left."""
        super().on_train_begin(args, state, control, **kwargs)
        self.current_step = state.global_step
        if (bar := self.training_bar) is not None:
            bar.initial = bar.n = bar.last_print_n = state.global_step
            bar.refresh()

    @property
    def on_terminal(self) -> bool:
        """Whether the bar is there, and somebody may watch it."""
        return self.training_bar is not None and self.training_bar.fp.isatty()

    def describe(self, text: str) -> None:
        """Show what the step is at, before the bar."""
        if self.training_bar is not None:
            self.training_bar.set_description_str(text)

    def write(self, line: str) -> None:
        """Say something on a line of its own, where the bar is."""
        if self.training_bar is not None:
            self.training_bar.write(f"nonpareil: {line}", file=self.training_bar.fp)

    def on_log(  # type: ignore[override]
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """All metrics are in `metrics.jsonl`."""
        if self.training_bar is not None:
            logs = kwargs["logs"]
            self.training_bar.set_postfix({k: f"{logs[k]:.3g}" for k in self.SHOWN if k in logs})


class StopCleanly(TrainerCallback):
    """The first Ctrl-C finishes the step, saves a checkpoint and stops; a second one interrupts.

    So do SIGTERM, and SIGHUP (the terminal is gone) unless it was being ignored, as under nohup.
    `every`: steps between states that can be resumed; those in between share one batch of draws.
    """

    def __init__(self, every: int = 1) -> None:
        self.stopped = False  # by everyone's decision
        self.every = every
        self._heard = False  # in this process; a signal that comes while the others are asked stays heard
        self._previous: dict[int, Any] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Python delivers signals to the main thread only; elsewhere Ctrl-C stays as it is."""
        self.stopped = self._heard = False
        if threading.current_thread() is threading.main_thread():
            numbers = [signal.SIGINT, signal.SIGTERM]
            if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
                numbers.append(signal.SIGHUP)
            for number in numbers:
                self._previous[number] = signal.signal(number, self._stop)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Between steps the state is whole, and can be saved."""
        self.stopped = any_process(self._heard)  # the signal may reach one process a step later
        if self.stopped and state.global_step % self.every == 0:
            control.should_save = control.should_training_stop = True

    def restore(self) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _stop(self, number: int, frame: Any) -> None:
        self._heard = True
        if number != signal.SIGHUP:  # which the shell and the kernel may both send
            signal.signal(number, self._previous[number])


class StepsAsAsked(TrainerCallback):
    """Saves, logs and evaluates as often as asked now; on resume transformers does it as the checkpoint says."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """From the settings, as at a start."""
        state.compute_steps(args, state.max_steps)


class LastWholeStep(TrainerCallback):
    """Knows after which step policy, anchor, optimizer and counts belong together; hears of a step last.

    `step` is None while they are being changed.
    """

    def __init__(self, spent: Spent, *others: ExportableState) -> None:
        self.step: int | None = None
        self.spent = spent
        self.counts: tuple[ExportableState, ...] = (spent, *others)
        self._sums: list[dict[str, Any]] = []
        self._tokens = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """As it starts, or is taken up."""
        self.on_step_end(args, state, control)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The policy is about to move."""
        self.step = None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """All have moved."""
        self.step, self._tokens = state.global_step, state.num_input_tokens_seen
        self._sums = [counted.state()["attributes"] for counted in self.counts]

    def go_back(self, state: TrainerState) -> None:
        """Take back what a step that failed has counted."""
        state.num_input_tokens_seen = self._tokens
        for counted, sums in zip(self.counts, self._sums, strict=True):
            vars(counted).update(sums)
