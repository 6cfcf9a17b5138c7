"""A mixture's rows: every beginning of them has each dataset's share."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import islice
from typing import Any

from nonpareil.errors import DataError
from nonpareil.in_memory import InMemory
from nonpareil.records import SOURCE
from nonpareil.rollouts.checked_rows import check_column
from nonpareil.rollouts.mixture import Mixture
from nonpareil.rollouts.sources import read_rows
from nonpareil.setting_types import nearest
from nonpareil.terminal import printable, tell

Row = Mapping[str, Any]
_KINDS = ((bool, "truth values"), (str, "text"), (int | float, "numbers"), (Mapping, "objects"))


def read_mixture(mixture: Mixture, prompt_column: str, first: int | None = None) -> list[dict[str, Any]]:
    """The rows of a mixture, each with the column `dataset_source`, in an order that no seed decides.

    Each next prompt is the next one of the dataset that is furthest behind its share, so that the first hundred
    have the shares too. No prompt is taken twice: where a dataset with a fraction has no more, the mixture ends.
    Without fractions the shares are the datasets' sizes, and all prompts are taken.

    `first`: only so many, the same as without it; of hub datasets and folders no more is read.

    Raises:
        ConfigError: `first` of a mixture without fractions.
        DataError: a dataset that cannot be read, or whose columns do not go with the others'.
    """
    fractions = [source.fraction for source in mixture.value]
    needed: list[int | None] = [None] * len(fractions)
    if first is not None:
        mixture.refuse_unknown_sizes()
        needed = [*_needed([fraction or 0 for fraction in fractions], first)]
    parts = [_rows_of(mixture, place, prompt_column, count) for place, count in enumerate(needed)]
    _check_alike(mixture, parts)
    sizes = [len(part) for part in parts]
    shares = [size if fraction is None else fraction for fraction, size in zip(fractions, sizes, strict=True)]
    names = dict.fromkeys(name for part in parts for row in part for name in row)
    rows, taken = [], [0] * len(parts)
    for place in islice(_turns(shares, sizes), first):
        row = parts[place][taken[place]]
        rows.append({**{name: row.get(name) for name in names}, SOURCE: mixture.labels[place]})
        taken[place] += 1
    whole = taken == sizes if first is None else len(rows) == first
    known = (
        size if count is None or size < count else None for size, count in zip(sizes, needed, strict=True)
    )
    _tell_taken(mixture.labels, tuple(taken), tuple(known), whole)
    return rows


def _needed(shares: Sequence[float], first: int) -> Iterable[int]:
    """How many rows of each dataset a mixture's first are, where none ends before; one at least, to check it."""
    taken = Counter(islice(_turns(shares, [first] * len(shares)), first))
    return (max(1, taken[place]) for place in range(len(shares)))


def _turns(shares: Sequence[float], sizes: Sequence[int]) -> Iterable[int]:
    """Which dataset comes next, until the next one's rows are all taken."""
    total, taken = sum(shares), [0] * len(sizes)
    while True:
        count = sum(taken) + 1
        behind = [share / total * count - had for share, had in zip(shares, taken, strict=True)]
        place = behind.index(max(behind))
        if taken[place] == sizes[place]:
            return
        taken[place] += 1
        yield place


def _rows_of(mixture: Mixture, place: int, prompt_column: str, first: int | None) -> Sequence[Row]:
    """The rows of one dataset, or its first ones, their columns chosen."""
    source, where = mixture.value[place], f"datasets[{place}] ({mixture.labels[place]})"
    if isinstance(source.path, InMemory):
        rows = rows_in_memory(source.path, prompt_column)
    else:
        try:
            rows = read_rows(
                source.path or "", source.split, source.name, prompt_column, first, source.files()
            )
        except DataError as error:
            said = str(error).removeprefix("dataset_name=")
            raise DataError(f"datasets[{place}].path={said}") from error
    if not rows:
        raise DataError(f"{where} has no rows; remove it")
    there = dict.fromkeys(name for row in rows for name in row)
    if source.columns is not None:
        for name in source.columns:
            if name not in there:
                raise DataError(
                    f"{where}.columns: there is no column {name!r} (it has: {', '.join(map(str, there))})"
                    f"{nearest(name, map(str, there), quoted=True)}"
                )
        rows = [{name: row[name] for name in source.columns if name in row} for row in rows]
        there = dict.fromkeys(source.columns)
    check_column(there, prompt_column, where, "give prompt_column={}, for all datasets alike")
    if SOURCE in there:
        raise DataError(
            f"{where} has a column {SOURCE!r}, where a mixture says of which dataset a prompt is; rename it, or "
            "choose others (columns)"
        )
    return rows


def rows_of(source: InMemory, prompt_column: str, first: int | None = None) -> list[Row]:
    """The rows of a mixture (`first` as in `read_mixture`), or those that Python gave.

    Raises:
        DataError: as `read_mixture` and `rows_in_memory`.
    """
    if isinstance(source, Mixture):
        return [*read_mixture(source, prompt_column, first)]
    return rows_in_memory(source, prompt_column)


def rows_in_memory(source: InMemory, prompt_column: str) -> list[Row]:
    """Rows that Python gave; a text is a prompt.

    Raises:
        DataError: one that is neither a text nor a mapping.
    """
    rows = [{prompt_column: row} if isinstance(row, str) else row for row in source.value]
    for place, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise DataError(
                f"{source}: row {place} (the first is 0) is a {type(row).__name__}; a row is a text, or a dict "
                "with a prompt"
            )
    return rows


def _check_alike(mixture: Mixture, parts: Sequence[Sequence[Row]]) -> None:
    """Refuse a column that holds one kind of values here and another there; tell where one is not there at all."""
    found = [{name: _kind_of(part, name) for name in _names(part)} for part in parts]
    for name in dict.fromkeys(name for kinds in found for name in kinds):
        known = [(place, kinds[name]) for place, kinds in enumerate(found) if kinds.get(name) is not None]
        for place, kind in known[1:]:
            if kind != known[0][1]:
                first, label = mixture.labels[known[0][0]], mixture.labels[place]
                raise DataError(
                    f"datasets: column {name!r} holds {known[0][1]} in {first!r} and {kind} in {label!r}; make "
                    "them alike, or leave it out of one (columns)"
                )
        lacking = tuple(
            label for label, kinds in zip(mixture.labels, found, strict=True) if name not in kinds
        )
        if lacking:
            _tell_lacking(str(name), lacking)


def _names(rows: Sequence[Row]) -> Iterable[str]:
    return dict.fromkeys(name for row in rows for name in row)


def _kind_of(rows: Sequence[Row], name: str) -> str | None:
    """What kind of values a column holds, by the first that is one; None where all are null."""
    value = next((row[name] for row in rows if row.get(name) is not None), None)
    if value is None:
        return None
    other = "lists" if isinstance(value, Sequence) else f"values of type {type(value).__name__}"
    return next((word for kind, word in _KINDS if isinstance(value, kind)), other)


@cache
def _tell_lacking(name: str, labels: tuple[str, ...]) -> None:
    tell(
        f"datasets: column {printable(name)!r} is null for {printable(', '.join(labels))}, without such a column"
    )


@cache
def _tell_taken(
    labels: tuple[str, ...], taken: tuple[int, ...], sizes: tuple[int | None, ...], whole: bool
) -> None:
    """Once, however often the same datasets are mixed; the size of a stream is known where it ended."""
    of = ["" if size is None else f" of {size:,}" for size in sizes]
    parts = [f"{label} {had:,}{rest}" for label, had, rest in zip(labels, taken, of, strict=True)]
    short = [label for label, had, size in zip(labels, taken, sizes, strict=True) if had == size]
    ends = f"; {printable(short[0])} has no more, and no prompt is taken twice" if not whole else ""
    tell(f"mixture of {sum(taken):,} prompts: {printable(', '.join(parts))}{ends}")
