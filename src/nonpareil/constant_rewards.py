"""Rewards that tell no completion of a prompt from another: no choice among them can follow such a reward."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from nonpareil.terminal import tell

FEWEST_GROUPS = 4
"""That a reward ties in throughout before a training says so: some are seldom met."""


class RewardSpread:
    """By reward, how many groups could have shown a difference, and whether any did."""

    def __init__(self) -> None:
        """Nothing seen yet."""
        self._groups: Counter[str] = Counter()
        self._varies: set[str] = set()

    def add(self, name: str, values: Iterable[Sequence[float | None]]) -> None:
        """The scores of one reward, group by group; nulls, and groups with a single score, show nothing."""
        for group in values:
            known = [value for value in group if value is not None]
            self.count(name, len(known) > 1, len(set(known)) > 1)

    def count(self, name: str, groups: int, varies: bool) -> None:
        """So many groups with two scores or more, and whether two of one group differ."""
        self._groups[name] += groups
        if varies:
            self._varies.add(name)

    def include(self, other: "RewardSpread") -> None:
        """What another has seen, of other groups."""
        self._groups.update(other._groups)
        self._varies |= other._varies

    def add_all(self, groups: Iterable[Mapping[str, Sequence[float | None]]]) -> None:
        """The scores of groups, each by reward."""
        for by_name in groups:
            for name, values in by_name.items():
                self.add(name, [values])

    def constant(self) -> list[str]:
        """The rewards that have tied in every group so far, of at least one."""
        return [name for name, count in self._groups.items() if count and name not in self._varies]

    def tell(self, names: Iterable[str], where: str, fewest: int = 1) -> None:
        """Say once of each reward among these that it has tied in every group so far, of at least so many."""
        constant = self.constant()
        for name in names:
            if name in constant and self._groups[name] >= fewest:
                tell_constant(name, self._groups[name], where)


OF_FUNCTIONS = (
    "In a chat a completion is a list of one message, so len(completion) is always 1 and "
    'completion[-1]["content"] is the text'
)
OF_VERIFIERS = {
    "accuracy": r"accuracy reads LaTeX alone (\boxed{2}, $2$) unless it is accuracy:read=any",
    "format": "format is 1 only where an answer has all tags of its style, which the prompts must ask for",
    "instructions": "instructions is 1 only where all are followed, unless it is instructions:score_by=fraction",
    "length": "length with at_most is 0 for all answers that are short enough",
    "python_tests": "python_tests is 1 only where all tests hold, unless it is python_tests:score_by=fraction",
    "reasoning_gym": "reasoning_gym reads the last <answer>...</answer> unless it is reasoning_gym:read=last_line",
    "similarity": "similarity is 0 where an answer has no characters of its reference",
}
_told: set[tuple[str, str]] = set()


def tell_constant(name: str, groups: int, where: str) -> None:
    """Warn, once per process, of a reward that tied in that many groups of a folder, and say what to do."""
    if (name, where) in _told:  # a comparison looks at one reference many times
        return
    _told.add((name, where))
    tell(
        f"reward {name!r} is equal for all completions of a prompt, at each of the {groups} prompts scored so far: "
        f"it tells none from another and decides nothing. {OF_VERIFIERS.get(name, OF_FUNCTIONS)}. A reward that is "
        "seldom met needs more completions per prompt or easier prompts; one that cannot vary is best removed"
    )
