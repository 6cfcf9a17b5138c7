"""How a value is fitted, and what credits are made of it."""

from dataclasses import dataclass
from typing import ClassVar

from nonpareil.setting_types import SEED
from nonpareil.settings import option

MAKES_CREDITS = "what makes credits"
"""The reader of their settings; a distillation makes some where its method reads credits and none are given."""


@dataclass
class FitSettings:
    """How a value is fitted to stored groups. Every weight but the embeddings is trained, by AdamW."""

    HEADING: ClassVar = "Fit"

    bins: int = option(
        16, "Bins of the quantile that a prefix's distribution has.", at_least=2, why="one tells nothing"
    )
    learning_rate: float | None = option(
        None, "Its height. Default: .25 / the model's width, 5e-4 at most.", above=0
    )
    num_train_epochs: int = option(1, "Times that each completion is read; more remember them.", at_least=1)
    per_device_train_batch_size: int = option(128, "Completions of a step.", at_least=1)
    max_tokens_per_batch: int = option(
        16384, "Tokens, padding included, of one forward pass; bounds memory.", at_least=1
    )
    held_out_share: float = option(
        0.1, "Of the prompts, for the report; they are not fitted.", above=0, at_most=0.9
    )
    seed: int = option(
        0, "Of the order of completions, and of which prompts are held out.", at_least=0, at_most=SEED
    )


@dataclass
class CreditSettings:
    """What is credited: next tokens of some stored completions, for one target."""

    HEADING: ClassVar = "Credits"

    target_n: float = option(
        4.0,
        "Strength: the target wins as often as best-of-n.",
        above=1,
        why="best-of-1 is the reference itself",
        reader=MAKES_CREDITS,
    )
    target: str = option(
        "tilt",
        "tilt (the exponential tilt, of the least KL for its win rate) or best_of_n.",
        choices=("tilt", "best_of_n"),
        reader=MAKES_CREDITS,
    )
    credited_completions: int = option(
        1, "Completions of each prompt that are credited.", at_least=1, reader=MAKES_CREDITS
    )
    likeliest: int = option(
        16, "Likeliest next tokens to credit at each position.", at_least=1, reader=MAKES_CREDITS
    )
    from_tail: int = option(8, "Further ones, drawn from the rest.", at_least=0, reader=MAKES_CREDITS)

    @property
    def candidates(self) -> int:
        """At each position, with the completion's own token."""
        return 1 + self.likeliest + self.from_tail
