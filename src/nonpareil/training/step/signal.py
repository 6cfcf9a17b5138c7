"""Steps whose rewards or credits tell nothing: they move nothing, and are counted and told; a run is an error."""

from typing import Any, NamedTuple

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from nonpareil.errors import RewardError
from nonpareil.methods.base import Method, ScoredDraws, Targets
from nonpareil.methods.credited import CreditedMethod
from nonpareil.models.distributed import process_index
from nonpareil.terminal import tell
from nonpareil.training.callbacks import StopCleanly

PATIENCE = 5
"""Steps in a row without signal, before something is said of them."""


class _Words(NamedTuple):
    """What is said of a step that tells nothing, in the present and in the past, and what helps."""

    untold: str
    were_untold: str
    remedy: str


_REWARDS = _Words(
    "the rewards of no prompt tell its completions apart",
    "the rewards of no prompt told its completions apart",
    "see whether the reward has any variance on such completions, draw more completions per prompt, take more "
    "prompts per step, leave out prompts that are always or never solved, or raise temperature",
)
_CREDITS = _Words(
    "no prompt has credits that tell candidates apart",
    "no prompt had credits that told candidates apart",
    "make credits of all prompts that are trained on, of completions whose rewards did not fail, by a value that "
    "varies from one next token to another (credited_completions, likeliest, from_tail)",
)
_UNCUT = _Words(
    "no prompt has rewards that tell its completions apart and one of those that ended by itself",
    "no prompt had rewards that told its completions apart and one of those that ended by itself",
    "raise max_completion_length, or train on completions that were cut too (mask_truncated_completions=false); "
    f"for rewards that tie, {_REWARDS.remedy}",
)
ENOUGH_REWARDS = 64
"""Rewards that are seen before two values are taken for all that there are."""


class Signal(TrainerCallback, ExportableState):
    """Knows of each step whether any prompt's rewards or credits tell something; the sums are kept in checkpoints.

    `moves`: whether the last step moved the policy. Where it does not, the optimizer has no gradient (so that
    neither rounding, momentum nor weight decay moves a weight), and a moving average of the policy stays too.

    Such a step's prompts lose their pull to the anchor, so that with few prompts per step, of which often none
    tells anything, training ends beyond best-of-n; with many, hardly any step is lost.
    """

    def __init__(self, method: Method, stopper: StopCleanly, *, masks_truncated: bool = False):
        self.stopper = stopper
        self._credited = isinstance(method, CreditedMethod)
        self._words = _CREDITS if self._credited else _UNCUT if masks_truncated else _REWARDS
        self.moves = True
        self.moved = self.still = self.lost = self._in_a_row = 0
        self._hint: str | None = method.hint_for_two_rewards
        self._values: set[float] = set()
        self._seen = 0

    def note(self, step: int, draws: ScoredDraws, targets: Targets, trained_on: int, dropped: int) -> bool:
        """Whether this step moves the policy; alike on every process.

        `trained_on`: how many prompts the step has; `dropped`: how many were left out as giving no numbers.
        """
        self.moves = trained_on > 0 and (targets.signal is None or bool(targets.signal.any()))
        self.moved += self.moves
        # Those left out may have had rewards that tell something, and what leaves no prompt is told of by others.
        told = trained_on > 0 or self._without_credits(draws)
        tied = told and not dropped and not self.moves
        self.lost += not self.moves and not tied
        self.still += tied
        self._in_a_row = self._in_a_row + 1 if tied else 0
        if self._in_a_row == PATIENCE and process_index() == 0:
            tell(
                f"step {step}: for the {PATIENCE}th step in a row {self._words.untold}, so nothing was learnt; "
                f"{self._words.remedy}"
            )
        self._look_for_two_rewards(draws)
        return self.moves

    def _without_credits(self, draws: ScoredDraws) -> bool:
        """Whether a step on no prompt lacks credits: its rewards did not all fail."""
        return self._credited and not bool(draws.anchor_rewards.isnan().all())

    def _look_for_two_rewards(self, draws: ScoredDraws) -> None:
        if self._hint is None:
            return
        for rewards in (draws.policy_rewards, draws.anchor_rewards):
            valid = rewards[~rewards.isnan()]
            self._seen += valid.numel()
            self._values |= set(valid.unique().tolist())
        if len(self._values) > 2:
            self._hint = None
        elif len(self._values) == 2 and self._seen >= ENOUGH_REWARDS:
            if process_index() == 0:
                tell(self._hint)
            self._hint = None

    @property
    def metrics(self) -> dict[str, float]:
        """Of the last step; logged as a mean over steps."""
        return {"frac_steps_without_signal": float(not self.moves)}

    def check(self) -> None:
        """At a training's end: refuse one whose rewards told nothing, unless it was interrupted.

        Raises:
            RewardError: no step moved the policy, and in one at least that was for rewards that tie.
        """
        if self.moved or self.stopper.stopped:
            return
        lost = "prompts were lost to failed rewards or to numbers that are none"
        if self.still:
            others = f" in {self.still} of them, and in {self.lost} {lost}" if self.lost else ""
            raise RewardError(
                f"none of the {self.still + self.lost} steps moved the policy: "
                f"{self._words.were_untold}{others}; {self._words.remedy}"
            )
        if self.lost and process_index() == 0:
            tell(
                f"none of the {self.lost} steps moved the policy, which is as it was: {lost}; mend those, or make "
                "the rewards smaller"
            )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        names = ("moved", "still", "lost", "_in_a_row")
        return {"args": {}, "attributes": {name: getattr(self, name) for name in names}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Go on from the sums of the checkpoint; a training from its beginning has none."""
        kept: Any = state.stateful_callbacks
        vars(self).update(kept.get(type(self).__name__, {}).get("attributes", {}))
        if not state.global_step:
            self.moved = self.still = self.lost = self._in_a_row = 0


def resting_scaler(accelerator: Any, signal: Signal) -> Any:
    """fp16's scaler, or None; it insists on gradients, so that in a step without them optimizer and scaler rest.

    They are asked again in the next step: the loop says anew each time whether gradients are complete.
    """
    scaler = getattr(accelerator, "scaler", None)
    if scaler is None:
        return None
    clip = accelerator.clip_grad_norm_

    def clip_or_rest(parameters: Any, *args: Any, **kwargs: Any) -> Any:
        if signal.moves:
            return clip(parameters, *args, **kwargs)
        accelerator.gradient_state._set_sync_gradients(False)
        return torch.zeros(())

    accelerator.clip_grad_norm_ = clip_or_rest
    return scaler
