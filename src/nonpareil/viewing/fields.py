"""What a table of groups shows, sorts and filters by: a label and the SQL of each."""

from dataclasses import dataclass

from nonpareil.errors import DataError
from nonpareil.setting_types import nearest
from nonpareil.viewing.index import GroupIndex

COLUMN = "column."
"""Before a dataset column's name, in addresses."""


@dataclass(frozen=True)
class Field:
    """Something to be known of a group."""

    key: str
    """In addresses."""
    label: str
    help: str
    sql: str
    kind: str = "number"
    """text, whole or number."""


def default_reward(index: GroupIndex) -> str | None:
    """The aggregate where there is one, else the first reward; None where nothing is scored."""
    return "" if "" in index.rewards else next(iter(index.rewards), None)


def reward_label(reward: str) -> str:
    """As pages name it; the aggregate has no name of its own."""
    return reward or "rewards (the aggregate)"


def named_rewards(index: GroupIndex) -> list[str]:
    """Without the aggregate."""
    return [reward for reward in index.rewards if reward]


def checked_reward(index: GroupIndex, reward: str) -> str:
    """A reward that an address names.

    Raises:
        DataError: there is no such.
    """
    if reward not in index.rewards:
        hint = nearest(reward, index.rewards, quoted=True)
        raise DataError(f"no reward is called {reward!r} here{hint}")
    return reward


def fields_of(index: GroupIndex, reward: str | None, pair: tuple[str, str] | None = None) -> dict[str, Field]:
    """By key: what the groups' own numbers tell, under this reward, then the dataset's columns.

    `pair`: the two rewards that may disagree.
    """
    found = [] if reward is None else _of_rewards(index.rewards[reward])
    if pair is not None:
        one, other = (index.rewards[each] for each in pair)
        found.append(
            Field(
                "disagreement",
                "disagreement",
                f"Of the pairs that {pair[0]} and {pair[1]} both tell apart: the share they order oppositely",
                f"disagreement({one}, {other})",
            )
        )
    found += [
        Field("length", "tokens", "Mean tokens of a completion, the end token included", "list_avg(lengths)"),
        Field("longest", "longest", "Tokens of the longest completion", "list_max(lengths)", "whole"),
        Field("cut", "cut", "Completions that ended at the limit of tokens", "cut", "whole"),
        Field("different", "different", "Different completions", "different", "whole"),
        Field("m", "drawn", "Completions", "m", "whole"),
    ]
    found += [
        Field(COLUMN + shown, shown, f"The dataset's column {shown}", column, kind)
        for shown, (column, kind) in index.data.items()
    ]
    return {field.key: field for field in found}


def _of_rewards(r: str) -> list[Field]:
    return [
        Field(
            "gain",
            "gain of the best",
            "Best reward less the mean: what choosing is worth here",
            f"list_max({r}) - list_avg({r})",
        ),
        Field("best", "best", "The best completion's reward", f"list_max({r})"),
        Field("mean", "mean", "Mean reward", f"list_avg({r})"),
        Field("spread", "spread", "Standard deviation of the rewards", f"list_stddev_samp({r})"),
        Field(
            "tied",
            "tied at the top",
            "Completions that share the best reward; 1 where there is one best",
            f"nullif(len(list_filter({r}, lambda x: x = list_max({r}))), 0)",
            "whole",
        ),
        Field("nulls", "nulls", "Rewards that failed", f"len({r}) - list_count({r})", "whole"),
    ]
