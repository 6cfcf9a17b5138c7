"""Several datasets as one: a mixture whose every beginning has each dataset's share of prompts."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

from nonpareil.errors import ConfigError, DataError
from nonpareil.in_memory import InMemory
from nonpareil.records import SOURCE
from nonpareil.rollouts.checked_rows import check_column
from nonpareil.rollouts.sources import read_rows
from nonpareil.setting_types import nearest, shown
from nonpareil.settings import CheckedOptions, option, read_settings, settings_of
from nonpareil.terminal import printable, tell

Row = Mapping[str, Any]
_KINDS = ((bool, "truth values"), (str, "text"), (int | float, "numbers"), (Mapping, "objects"))


@dataclass(frozen=True)
class DatasetSource(CheckedOptions):
    """One dataset of a mixture, under the names that TRL and `datasets.load_dataset` have."""

    path: str | None = option(None, "A file, a directory, a hub dataset or one of datasets' loaders.")
    name: str | None = option(None, "The configuration of a dataset that has several.")
    data_dir: str | None = option(None, "The directory of the dataset's files.")
    data_files: str | list[str] | dict[str, Any] | None = option(None, "The dataset's files.")
    split: str = option("train", "Of a dataset that has splits; slices too (train[:100]).")
    columns: list[str] | None = option(None, "Keep these columns. Default: all.")
    fraction: float | None = option(
        None, "The share of the mixture's prompts, relative to the others'.", above=0
    )

    def files(self) -> dict[str, Any]:
        """Where the files of a dataset lie, as `datasets.load_dataset` is told."""
        given = {"data_dir": self.data_dir, "data_files": self.data_files}
        return {name: value for name, value in given.items() if value is not None}


class Mixture(InMemory):
    """The datasets of a mixture, under a name for pages and messages."""

    value: tuple[DatasetSource, ...]
    labels: tuple[str, ...]
    """What each prompt's column `dataset_source` says: the dataset's name, or its file's."""

    def __new__(cls, sources: Sequence[DatasetSource]) -> Self:
        """`sources`: checked."""
        labels = _labels(sources)
        total = sum(source.fraction or 0 for source in sources)
        parts = [
            label if source.fraction is None else f"{label} ({source.fraction / total:.3g})"
            for label, source in zip(labels, sources, strict=True)
        ]
        made = super().__new__(cls, f"mixture of {', '.join(parts)}", tuple(sources))
        made.labels = labels
        return made

    @property
    def entries(self) -> list[dict[str, Any]]:
        """As a user gives them."""
        known = settings_of(DatasetSource)
        given = [{name: getattr(source, name) for name in known} for source in self.value]
        return [{k: v for k, v in each.items() if v != known[k].default} for each in given]

    def __getnewargs__(self) -> tuple[Any]:  # type: ignore[override]
        """For copies."""
        return (self.value,)


def mixture_of(datasets: Any, setting: str = "datasets") -> Mixture:
    """The mixture that a list of datasets says, checked as far as that goes without reading them.

    Args:
        datasets: a path or name each, or a mapping of `DatasetSource`'s fields; a path may be `InMemory`.
        setting: what the list was given by.

    Raises:
        ConfigError: naming the dataset, its key, value and remedy.
    """
    if not isinstance(datasets, list | tuple) or not datasets:
        raise ConfigError(
            f"{setting}={shown(datasets)} must be a list of datasets, as [{{path: a.jsonl, fraction: 0.7}}, "
            "{path: b.jsonl, fraction: 0.3}]"
        )
    sources = [_source(each, f"{setting}[{place}]") for place, each in enumerate(datasets)]
    without = [place for place, source in enumerate(sources) if source.fraction is None]
    if 0 < len(without) < len(sources):
        raise ConfigError(
            f"{setting}[{without[0]}] has no fraction, and others have; give one to each dataset or to none (then "
            "all of every dataset is taken)"
        )
    places = [_place(source) for source in sources]
    for place, source in enumerate(sources):
        if (first := places.index(places[place])) != place:
            raise ConfigError(
                f"{setting}[{place}] is {setting}[{first}] again ({printable(str(source.path))}), and its prompts "
                "would count twice; remove one, or give each its own split"
            )
    return Mixture(sources)


def _source(given: Any, where: str) -> DatasetSource:
    values = {"path": given} if isinstance(given, str) else given
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{where}={shown(given)} must be a path, or keys and values: path, fraction, split, ..."
        )
    known = settings_of(DatasetSource)
    for key in values:
        if key not in known:
            hint = "; did you mean fraction?" if key in ("weight", "ratio") else nearest(str(key), known)
            raise ConfigError(f"{where}: unknown key {shown(key)}{hint}; there are {', '.join(known)}")
    if values.get("path") is None:
        raise ConfigError(f"{where}: path is missing; name a file, a directory or a hub dataset")
    read = read_settings(DatasetSource, values, f"{where}.")
    made = DatasetSource(**read)
    if not isinstance(made.path, InMemory) and not Path(made.path or "").expanduser().is_file():
        return made
    for name in ("name", "split", "data_dir", "data_files"):
        if getattr(made, name) != known[name].default:
            kept = (
                "the rows are in memory" if isinstance(made.path, InMemory) else f"{made.path!r} is one file"
            )
            raise ConfigError(f"{where}.{name}={shown(getattr(made, name))} is not read: {kept}; remove it")
    return made


def _place(source: DatasetSource) -> str:
    """What is read, whatever is taken of it."""
    memory = id(source.path.value) if isinstance(source.path, InMemory) else None
    return json.dumps([source.path, memory, source.name, source.files(), source.split], sort_keys=True)


def _labels(sources: Sequence[DatasetSource]) -> tuple[str, ...]:
    """Names that tell the datasets apart and name no folder of a machine, so that a moved file is the same."""
    found: list[str] = []
    for source in sources:
        path = source.data_files if isinstance(source.data_files, str) else str(source.path)
        label = Path(path).name if Path(path).expanduser().exists() else path
        found.append(f"{label}:{source.name}" if source.name else label)
    for said in ([source.split for source in sources], [str(place) for place in range(len(sources))]):
        found = [
            f"{label}[{more}]" if found.count(label) > 1 else label
            for label, more in zip(found, said, strict=True)
        ]
    return tuple(found)


def read_mixture(mixture: Mixture, prompt_column: str) -> list[dict[str, Any]]:
    """The rows of a mixture, each with the column `dataset_source`, in an order that no seed decides.

    Each next prompt is the next one of the dataset that is furthest behind its share, so that the first hundred
    have the shares too. No prompt is taken twice: where a dataset with a fraction has no more, the mixture ends.
    Without fractions the shares are the datasets' sizes, and all prompts are taken.

    Raises:
        DataError: a dataset that cannot be read, or whose columns do not go with the others'.
    """
    parts = [_rows_of(mixture, place, prompt_column) for place in range(len(mixture.value))]
    _check_alike(mixture, parts)
    sizes = [len(part) for part in parts]
    fractions = [source.fraction for source in mixture.value]
    shares = [size if fraction is None else fraction for fraction, size in zip(fractions, sizes, strict=True)]
    names = dict.fromkeys(name for part in parts for row in part for name in row)
    rows, taken = [], [0] * len(parts)
    for place in _turns(shares, sizes):
        row = parts[place][taken[place]]
        rows.append({**{name: row.get(name) for name in names}, SOURCE: mixture.labels[place]})
        taken[place] += 1
    _tell_taken(mixture.labels, tuple(taken), tuple(sizes))
    return rows


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


def _rows_of(mixture: Mixture, place: int, prompt_column: str) -> Sequence[Row]:
    """All rows of one dataset, its columns chosen."""
    source, where = mixture.value[place], f"datasets[{place}] ({mixture.labels[place]})"
    if isinstance(source.path, InMemory):
        rows = rows_in_memory(source.path, prompt_column)
    else:
        try:
            rows = read_rows(
                source.path or "", source.split, source.name, prompt_column, files=source.files()
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


def rows_of(source: InMemory, prompt_column: str) -> list[Row]:
    """The rows of a mixture, or those that Python gave.

    Raises:
        DataError: as `read_mixture` and `rows_in_memory`.
    """
    if isinstance(source, Mixture):
        return [*read_mixture(source, prompt_column)]
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
def _tell_taken(labels: tuple[str, ...], taken: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    """Once, however often the same datasets are mixed."""
    parts = [f"{label} {had:,} of {size:,}" for label, had, size in zip(labels, taken, sizes, strict=True)]
    short = [label for label, had, size in zip(labels, taken, sizes, strict=True) if had == size]
    ends = "" if taken == sizes else f"; {printable(short[0])} has no more, and no prompt is taken twice"
    tell(f"mixture of {sum(taken):,} prompts: {printable(', '.join(parts))}{ends}")
