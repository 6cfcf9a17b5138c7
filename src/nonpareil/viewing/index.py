"""The numbers of every group of a folder, in DuckDB: read once a file, and again where a file is new or changed."""

import threading
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nonpareil.errors import DataError
from nonpareil.rollouts.manifest import read_manifest
from nonpareil.rollouts.store import DATA_FOLDER
from nonpareil.terminal import reason_of
from nonpareil.viewing.database import READ, name, pattern_of
from nonpareil.viewing.shards import FolderState, ShardFile, Stamp, files_of, read_shard_file, stamp_of

FILES_AT_ONCE = 128
LOOK_EVERY = 1.0
"""Seconds between two looks at the folder."""
_OWN = {
    "shard": "VARCHAR",
    "row": "BIGINT",
    "prompt_id": "VARCHAR",
    "prompt": "VARCHAR",
    "m": "BIGINT",
    "lengths": "BIGINT[]",
    "cut": "BIGINT",
    "different": "BIGINT",
}
_FOLDER = "(the folder)"
"""Among the problems of files."""
_TYPES = {"whole": "BIGINT", "number": "DOUBLE", "text": "VARCHAR", "reward": "DOUBLE[]"}


class GroupIndex:
    """A table of the groups of one place, and what was found there.

    Any thread may read; one at a time reads the folder. A group's key is its file's name and its row there.
    """

    def __init__(self, connection: Any, place: Path, table: str):
        """`table` is the name that the table gets in the database."""
        self.place, self.table = place, table
        self.rewards: dict[str, str] = {}
        """The table's column of each reward by its name; of the aggregate, "" ."""
        self.data: dict[str, tuple[str, str]] = {}
        """The table's column of each of the dataset's, and its kind: text, whole or number."""
        self.state = FolderState()
        self.version = 0
        """Rises whenever groups came, went or changed."""
        self.unlisted: set[str] = set()
        self._connection = connection
        self._files: dict[str, ShardFile] = {}
        self._refused: dict[str, Stamp | None] = {}
        self._found = 0
        self._columns = 0
        self._reading, self._starting = threading.Lock(), threading.Lock()
        self._worker: threading.Thread | None = None
        self._looked = -LOOK_EVERY
        columns = ", ".join(f"{column} {kind}" for column, kind in _OWN.items())
        self.cursor().execute(f"CREATE TABLE {table} ({columns})")

    def cursor(self) -> Any:
        """A connection of its own for a thread's question."""
        return self._connection.cursor()

    # --- What is there

    @property
    def files(self) -> int:
        """How many files are there now."""
        return self._found

    @property
    def files_read(self) -> int:
        """How many of them are in the table, or refused."""
        return len(self._files) + len(self._refused)

    @property
    def growing(self) -> bool:
        """Whether more is to come: files that are not read yet, or a run that is not finished."""
        manifest = self.state.manifest
        return self.files_read < self.files or (manifest is not None and not manifest.get("complete", True))

    def paths(self) -> list[Path]:
        """The files that are in the table."""
        return [file.path for file in list(self._files.values())]

    def path_of(self, shard: str) -> Path | None:
        """The file of this name, if it is one of the folder's."""
        file = self._files.get(shard)
        return None if file is None else file.path

    def failures(self) -> dict[str, Counter[str]]:
        """Why rewards are null, as the files say, by name of the reward; reasons with their counts."""
        counts: dict[str, Counter[str]] = {}
        for file in list(self._files.values()):
            for reward, reasons in file.notes.failures.items():
                counts.setdefault(reward, Counter()).update(reasons)
        return counts

    # --- Reading it again

    def freshen(self, patience: float = 0.5) -> None:
        """Look at the folder anew in another thread, unless that was just done; wait so many seconds for it."""
        with self._starting:
            idle = self._worker is None or not self._worker.is_alive()
            if idle and time.monotonic() - self._looked >= LOOK_EVERY:
                self._worker = threading.Thread(
                    target=self._refresh_safely, name=f"reading {self.table}", daemon=True
                )
                self._worker.start()
        if self._worker is not None:
            self._worker.join(patience)

    def _refresh_safely(self) -> None:
        """In a thread nobody hears an error; the pages tell it."""
        try:
            self.refresh()
            self.state.problems.pop(_FOLDER, None)
        except (OSError, _database_error()) as error:
            self.state.problems[_FOLDER] = f"the folder cannot be read: {reason_of(error)}"
            self._looked = time.monotonic()

    def refresh(self) -> None:
        """Read what is new or changed, and forget what is gone."""
        with self._reading:
            folder = self.place.parent if self.place.name == DATA_FOLDER else self.place
            try:
                self.state.manifest = read_manifest(folder) if folder.is_dir() else None
                self.state.problems.pop("manifest.json", None)
            except DataError as error:
                self.state.problems["manifest.json"] = str(error)
            there = {path.name: path for path in files_of(self.place)}
            self._found = len(there)
            stamps = {shard: stamp_of(path) for shard, path in there.items()}
            gone = [shard for shard, file in self._files.items() if stamps.get(shard) != file.stamp]
            for shard in [s for s, old in self._refused.items() if s not in there or stamps[s] != old]:
                del self._refused[shard]
                self.state.problems.pop(shard, None)
            known = {*self._files, *self._refused} - {*gone}
            fresh = [path for shard, path in there.items() if shard not in known]
            self._forget([shard for shard in gone if shard not in there])
            for start in range(0, len(fresh), FILES_AT_ONCE):
                self._take({path: stamps[path.name] for path in fresh[start : start + FILES_AT_ONCE]})
            self._looked = time.monotonic()

    def _forget(self, shards: list[str]) -> None:
        if shards:
            self.cursor().execute(f"DELETE FROM {self.table} WHERE shard IN (SELECT unnest(?))", [shards])
            for shard in shards:
                self._files.pop(shard, None)
            self.version += 1

    def _take(self, stamps: dict[Path, Stamp | None]) -> None:
        """Files of equal columns are read together; where that fails, one by one, to name the bad one.

        Under the stamps they had before: what was written meanwhile is read again at the next look.
        """
        alike: dict[tuple[tuple[str, str, str], ...], list[ShardFile]] = {}
        for path, stamp in stamps.items():
            try:
                file = read_shard_file(path)
            except DataError as error:
                self._refuse(path, stamp, str(error))
            else:
                alike.setdefault(file.reads, []).append(file)
        for files in alike.values():
            try:
                self._insert(files)
            except _database_error():
                for file in files:
                    try:
                        self._insert([file])
                    except _database_error() as error:
                        self._refuse(file.path, file.stamp, f"{file.path} cannot be read: {reason_of(error)}")

    def _refuse(self, path: Path, stamp: Stamp | None, reason: str) -> None:
        self._forget([path.name] if path.name in self._files else [])
        self._refused[path.name] = stamp
        self.state.problems[path.name] = reason

    def _insert(self, files: list[ShardFile]) -> None:
        cursor = self.cursor()
        into, expressions = ["shard", "row"], ["parse_filename(filename)", "file_row_number"]
        for column, kind, sql in files[0].reads:
            own = column if kind == "own" else self._column(cursor, column, kind)
            if own in into:
                self.unlisted = self.unlisted | {column}
                continue
            into.append(own)
            expressions.append(sql)
        self.unlisted = self.unlisted.union(*(file.unlisted for file in files))
        cursor.execute("BEGIN")
        try:
            shards = [file.path.name for file in files]
            cursor.execute(f"DELETE FROM {self.table} WHERE shard IN (SELECT unnest(?))", [shards])
            cursor.execute(
                f"INSERT INTO {self.table} ({', '.join(into)}) SELECT {', '.join(expressions)} FROM {READ}",
                [[pattern_of(file.path) for file in files]],
            )
            cursor.execute("COMMIT")
        except BaseException:
            cursor.execute("ROLLBACK")
            raise
        for file in files:
            self._files[file.path.name] = file
        self.version += 1

    def _column(self, cursor: Any, shown: str, kind: str) -> str:
        """The table's column of a reward or a dataset's column, made where there is none yet."""
        known = self.rewards.get(shown) if kind == "reward" else self.data.get(shown, (None, kind))[0]
        if known is None:
            known = f"c{self._columns}"
            self._columns += 1
            cursor.execute(f"ALTER TABLE {self.table} ADD COLUMN {known} {_TYPES[kind]}")
            if kind == "reward":
                self.rewards = {**self.rewards, shown: known}  # a new one: other threads go through the old
            else:
                self.data = {**self.data, shown: (known, kind)}
        elif kind != "reward" and (wider := _wider(self.data[shown][1], kind)) != self.data[shown][1]:
            cursor.execute(f"ALTER TABLE {self.table} ALTER {name(known)} SET DATA TYPE {_TYPES[wider]}")
            self.data = {**self.data, shown: (known, wider)}
        return known


def _wider(one: str, other: str) -> str:
    """The kind that holds both: files of one folder may differ."""
    if one == other:
        return one
    return "number" if {one, other} == {"whole", "number"} else "text"


def _database_error() -> Any:
    import duckdb

    return duckdb.Error


def places_of(paths: Iterable[Path]) -> list[Path]:
    """The folders that the database must be able to read for these."""
    return [path.parent if path.is_file() else path for path in paths]
