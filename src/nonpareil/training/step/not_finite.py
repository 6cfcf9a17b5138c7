"""Prompts whose numbers in a step are NaN or infinite: left out and counted. Too many of them end the training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from nonpareil.engines.finite import not_finite
from nonpareil.errors import DivergedError, NotFiniteError
from nonpareil.models.distributed import process_index
from nonpareil.terminal import tell

PATIENCE = 5
"""Steps in a row that lose most of their prompts, before the training ends."""
METRIC = "dropped/non_finite"


@dataclass(frozen=True)
class NotFinite:
    """A prompt that is left out of a step."""

    prompt_id: str
    quantity: str
    """What is NaN or infinite, with its place."""
    of_model: bool
    """Whether the model's numbers are at fault; else those that were worked out of them and of rewards."""

    def __str__(self) -> str:
        return f"prompt {self.prompt_id}: {self.quantity} is NaN or infinite"


def of_logprobs(prompt_id: str, named: Mapping[str, Sequence[Sequence[float]]]) -> NotFinite | None:
    """The first log-prob of a prompt's completions that is no number; `named` says whose they are."""
    for whose, logprobs in named.items():
        if (place := not_finite(logprobs)) is not None:
            return logprob_at(prompt_id, whose, *place)
    return None


def logprob_at(prompt_id: str, whose: str, completion: int, token: int) -> NotFinite:
    """A log-prob that is no number, by its place."""
    place = f"the log-prob {whose}, completion {completion}, token {token} (counted from 0),"
    return NotFinite(prompt_id, place, of_model=True)


def refuse_all_bad(step: int, dropped: Sequence[NotFinite]) -> NoReturn:
    """End a training whose model gives no numbers for any prompt of a step.

    Raises:
        DivergedError: naming the first prompt.
    """
    raise DivergedError(
        f"step {step}: the model gives no numbers for any of the step's {len(dropped)} prompts ({dropped[0]}): the "
        "training diverged"
    )


class Dropped:
    """Tells of the first prompt that is left out, and ends a training that goes on losing most of them."""

    def __init__(self) -> None:
        self.in_a_row = 0
        self._told = False

    def note(self, step: int, dropped: Sequence[NotFinite], kept: int) -> None:
        """One step's, the same on every process; `kept` prompts of it were trained on.

        Raises:
            DivergedError: none was, for the model's numbers.
            NotFiniteError: most prompts were lost in several steps in a row.
        """
        if dropped and not kept and all(one.of_model for one in dropped):
            refuse_all_bad(step, dropped)
        if dropped and not self._told and process_index() == 0:
            tell(
                f"step {step}, {dropped[0]}; it is left out of the step. {METRIC} counts such prompts, and nothing "
                "more is said of them"
            )
        self._told = self._told or bool(dropped)
        self.in_a_row = self.in_a_row + 1 if len(dropped) > kept else 0
        if self.in_a_row >= PATIENCE:
            raise NotFiniteError(
                f"step {step}: for the {PATIENCE}th step in a row most prompts are left out, {len(dropped)} of "
                f"{len(dropped) + kept} now (the first is {dropped[0]})"
            )
