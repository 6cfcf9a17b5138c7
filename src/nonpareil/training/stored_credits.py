"""Credits of stored groups as training data: whether they are of these groups and this model."""

from collections.abc import Iterator, Sequence

from nonpareil.credits import Credits, CreditsByPrompt, check_credits
from nonpareil.errors import DataError
from nonpareil.records import Group


def check_credits_of(groups: Sequence[Group], credits: CreditsByPrompt) -> None:
    """Refuse credits that are not those of the groups; prompts and completions may lack some.

    Raises:
        DataError: as `credits.check_credits`, or more of a prompt than it has completions, or candidates of which
            one position has more than another.
    """
    widths: dict[int, str] = {}
    for group, place, each in _of(groups, credits):
        where = f"credits: prompt {group.prompt_id!r}, completion {place} (counted from 0)"
        if place >= len(group):
            raise DataError(
                f"credits: prompt {group.prompt_id!r} has {len(group)} completions in the groups, and credits for "
                "more; give those of these very groups"
            )
        check_credits(each, group.completion_token_ids[place], where)
        widths.setdefault(each.token_ids.shape[1], where)
        if len(widths) > 1:
            raise DataError(
                f"{where}: {max(widths)} candidates for each token, and elsewhere {min(widths)}; make all with "
                "one number of candidates"
            )


def check_candidate_ids(groups: Sequence[Group], credits: CreditsByPrompt, vocabulary: int | None) -> None:
    """Refuse candidates that the model, of so many tokens, has not.

    Raises:
        DataError: naming the first completion that has one.
    """
    for group, place, each in _of(groups, credits):
        ids = each.token_ids
        if ids.size and (ids.min() < 0 or ids.max() >= (vocabulary or float("inf"))):
            raise DataError(
                f"credits: prompt {group.prompt_id!r}, completion {place}: candidate token ids from {ids.min()} to "
                f"{ids.max()}, and the model has {vocabulary} tokens; make them with the model that is trained"
            )


def _of(groups: Sequence[Group], credits: CreditsByPrompt) -> Iterator[tuple[Group, int, Credits]]:
    """Those that there are, with their group and the place of their completion in it."""
    for group in groups:
        for place, each in enumerate(credits.get(group.prompt_id, ())):
            if each is not None:
                yield group, place, each
