"""What is shown: folders of groups and of runs, and the content of each page of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nonpareil.settings import flat
from nonpareil.viewing import charts
from nonpareil.viewing.database import connect
from nonpareil.viewing.fields import COLUMN, default_reward, named_rewards, reward_label
from nonpareil.viewing.group import contrast, messages_of, ranked, read_group
from nonpareil.viewing.index import GroupIndex, places_of
from nonpareil.viewing.overview import Totals, Worths, histogram, shown_points, totals_of
from nonpareil.viewing.query import OPERATORS, GroupQuery, Page, groups_of, hidden, neighbours

Vocabulary = Callable[[Sequence[int]], list[str]]
TOKENS_AT_ONCE = 4000
"""Of a group: with more, the tokens of one completion are shown at a time."""
COLUMNS_SHOWN = 6
"""Data columns in the table without being asked for."""


@dataclass
class GroupSource:
    """A folder of groups that is shown."""

    number: int
    label: str
    index: GroupIndex
    worths: Worths

    @property
    def version(self) -> str:
        """Changes whenever there is more to see."""
        return f"{self.groups_version}.{self.worths.made}"

    @property
    def groups_version(self) -> str:
        """The same of the groups alone, without their curve."""
        return f"{self.index.version}.{self.index.files_read}.{self.index.files}"


@dataclass
class Site:
    """All that is shown."""

    groups: list[GroupSource] = field(default_factory=list)
    runs: list[tuple[str, Path]] = field(default_factory=list)
    vocabulary: Vocabulary | None = None

    @classmethod
    def of(
        cls,
        groups: Sequence[tuple[str, Path]],
        runs: Sequence[tuple[str, Path]] = (),
        vocabulary: Vocabulary | None = None,
    ) -> "Site":
        """Of folders, as (label, place); their files are read when they are asked for."""
        connection = connect(places_of(path.resolve() for _, path in groups))
        sources = []
        for number, (label, place) in enumerate(groups):
            index = GroupIndex(connection, place.resolve(), f"g{number}")
            sources.append(GroupSource(number, label, index, Worths(index)))
        return cls(sources, list(runs), vocabulary)


def overview_content(source: GroupSource, reward: str | None, patience: float = 0.3) -> dict[str, Any]:
    """Of a folder's first page; waits so many seconds for the curve."""
    index = source.index
    worth, making = (None, False) if reward is None else source.worths.ask(reward, patience)
    curve = None if worth is None else worth.curve
    pictures = []
    if curve is not None:
        points = {"best of N": [(float(p.n), p.reward.estimate) for p in curve.points]}
        pictures.append(charts.line_chart(f"{curve.reward_name} of the best of N", points, "N", dots=True))
    if reward is not None:
        bars = histogram(index, reward)
        pictures.append(charts.bar_chart("Groups by the gain of their best", bars, "best less mean"))
    totals = totals_of(index, reward)
    manifest = index.state.manifest or {}
    return {
        "source": source,
        "reward": reward,
        "rewards": [(each, reward_label(each)) for each in index.rewards],
        "totals": totals,
        "figures": _figures(totals),
        "worth": worth,
        "points": [] if curve is None else shown_points(curve),
        "making": making,
        "pictures": pictures,
        "failures": {name: counts.most_common(20) for name, counts in index.failures().items() if counts},
        "settings": [(key, value) for key, value in flat(manifest.get("draw", {})).items()],
        "problems": dict(index.state.problems),
    }


def _figures(totals: Totals) -> list[tuple[str, Any, str]]:
    """(label, value, note) of the tiles."""
    gain = None if totals.mean_best is None or totals.mean is None else totals.mean_best - totals.mean
    rows: list[tuple[str, Any, str]] = [("groups", totals.groups, f"of {_sizes(totals)} completions")]
    if totals.scored:
        rows += [
            ("gain of the best", gain, "best reward less the mean, over groups"),
            ("spread", totals.mean_spread, "standard deviation within a group"),
            ("all equal", (totals.equal, totals.scored), "groups with nothing to choose between"),
            (
                "tied at the top",
                (totals.tied_best, totals.scored),
                "groups where several share the best reward",
            ),
            ("nulls", (totals.nulls, totals.values + totals.nulls), "rewards that failed"),
        ]
    rows += [
        ("cut", (totals.cut, totals.completions), "completions that ended at the limit of tokens"),
        ("mean tokens", totals.mean_length, "of a completion, the end token included"),
        ("different", totals.mean_different, "different completions of a group"),
    ]
    return rows


def _sizes(totals: Totals) -> str:
    sizes = [str(size) for size, _ in totals.sizes[:4]]
    return ", ".join(sizes) + (", ..." if len(totals.sizes) > 4 else "") if sizes else "no"


def table_content(source: GroupSource, query: GroupQuery, found: Page) -> dict[str, Any]:
    """Of a folder's table."""
    data = [key for key in found.fields if key.startswith(COLUMN)]
    asked = {query.sort, *(each.field for each in query.conditions)}
    kept = [key for key in data if key in asked] + [key for key in data if key not in asked]
    dropped = {*kept[COLUMNS_SHOWN:]} - asked
    names = named_rewards(source.index)
    return {
        "source": source,
        "query": query,
        "found": found,
        "columns": [each for key, each in found.fields.items() if key not in dropped],
        "not_shown": len(dropped),
        "rewards": [(each, reward_label(each)) for each in source.index.rewards],
        "pairs": [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]],
        "operators": OPERATORS,
        "hidden": hidden,
        "conditions": [(found.fields[each.field], each) for each in query.conditions],
    }


def group_content(
    source: GroupSource,
    query: GroupQuery,
    key: tuple[str, int],
    *,
    asked: Mapping[str, int | None],
    vocabulary: Vocabulary | None,
) -> dict[str, Any]:
    """Of one group, by shard and row; `asked` may name a `winner`, a `loser`, and whose `tokens` are shown."""
    group = read_group(source.index, *key)
    completions = ranked(group, query.reward, vocabulary)
    many = sum(len(each.tokens) for each in completions) > TOKENS_AT_ONCE
    shown = {asked.get("tokens")} if many else {each.place for each in completions}
    return {
        "source": source,
        "query": query,
        "key": key,
        "group": group,
        "messages": messages_of(group.prompt),
        "completions": completions,
        "tokens_of": shown,
        "contrast": contrast(completions, asked.get("winner"), asked.get("loser")),
        "rewards": [(each, reward_label(each)) for each in source.index.rewards],
        "reward_names": list(group.rewards_by_name),
        "around": neighbours(source.index, query, *key),
        "is_text": vocabulary is not None,
        "hidden": hidden,
    }


def table_page(source: GroupSource, query: GroupQuery, limit: int | None = None) -> dict[str, Any]:
    """The groups asked for, and the content of their page."""
    found = groups_of(source.index, query) if limit is None else groups_of(source.index, query, limit)
    return table_content(source, query, found)


def first_reward(source: GroupSource) -> str | None:
    """The reward that a page is about where none is asked for."""
    return default_reward(source.index)
