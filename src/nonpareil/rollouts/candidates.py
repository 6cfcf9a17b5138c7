"""Groups as candidates of rules: the numbers that `selection` reads."""

from collections.abc import Callable, Sequence

from nonpareil.records import Group
from nonpareil.selection.candidates import Candidates, candidates_of
from nonpareil.selection.needs import Need


def candidates_of_groups(
    groups: Sequence[Group],
    needs: Sequence[Need],
    answers: str = "final",
    similarity: str | Callable[[str, str], float] = "chrf",
) -> Candidates:
    """The candidates of scored groups of equal size, a row each.

    Raises:
        ConfigError, DataError: as `candidates_of`.
    """
    return candidates_of(
        [group.rewards or [None] * len(group) for group in groups],
        needs,
        texts=[group.completions for group in groups],
        token_logprobs=[group.logprobs or [None] * len(group) for group in groups],
        lengths=[[len(ids) for ids in group.completion_token_ids] or [None] * len(group) for group in groups],
        answers=answers,
        similarity=similarity,
    )
