"""Several datasets as one: what a mixture is made of, as a user says it. `mixing` reads it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from nonpareil.errors import ConfigError
from nonpareil.files import one_dataset
from nonpareil.in_memory import InMemory
from nonpareil.setting_types import nearest, shown
from nonpareil.settings import CheckedOptions, option, read_settings, settings_of
from nonpareil.terminal import printable


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

    @property
    def can_stream(self) -> bool:
        """Whether any dataset is one of which the first rows can be read and no others."""
        return any(not _is_whole(source.path) for source in self.value)

    def refuse_unknown_sizes(self) -> None:
        """Of datasets that are read as streams nobody knows the sizes, which are the shares without fractions.

        Raises:
            ConfigError: naming the dataset, and the remedy.
        """
        if self.value[0].fraction is None:
            raise ConfigError(
                f"dataset_streaming=True with datasets needs their fractions, and datasets[0] ({self.labels[0]}) "
                "has none: without them the shares are the datasets' sizes, which a stream does not know; give "
                "each a fraction, or leave out dataset_streaming"
            )

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
    if not _is_whole(made.path):
        return made
    for name in ("name", "split", "data_dir", "data_files"):
        if getattr(made, name) != known[name].default:
            kept = (
                "the rows are in memory"
                if isinstance(made.path, InMemory)
                else f"{made.path!r} is {one_dataset(str(made.path))}"
            )
            raise ConfigError(f"{where}.{name}={shown(getattr(made, name))} is not read: {kept}; remove it")
    return made


def _is_whole(path: str | None) -> bool:
    """Whether rows are of one file or saved dataset, or in memory: without splits, and all read at once."""
    return isinstance(path, InMemory) or one_dataset(path or "") is not None


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
