"""The options of choosing among completions that are stored. Plain dataclasses, read without importing torch."""

from dataclasses import dataclass
from typing import ClassVar

from nonpareil.settings import CheckedOptions, option

READS_ANSWERS = "a rule that reads answers"
READS_SIMILARITY = "a rule that reads similarities"
"""Readers; `commands.selection` says when they are absent."""


@dataclass
class ChoiceOptions(CheckedOptions):
    """How rules of selection read texts."""

    HEADING: ClassVar = "Options"

    answers: str = option(
        "final",
        "What of a completion votes: final, its last \\boxed{}, what follows ####, or its last number; or whole.",
        choices=("final", "whole"),
        reader=READS_ANSWERS,
    )
    similarity: str = option(
        "chrf",
        "How two completions are compared: chrf (sacrebleu's) or words, the share in common.",
        choices=("chrf", "words"),
        reader=READS_SIMILARITY,
    )
