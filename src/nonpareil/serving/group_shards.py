"""The shards of one kind of served groups: the last is written anew as it grows, the others stay as they are."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nonpareil.markers import OutputFolder
from nonpareil.records import Group
from nonpareil.rollouts.columns import FURTHER
from nonpareil.rollouts.manifest import GroupCounts, write_manifest
from nonpareil.rollouts.served import index_of, served_shards
from nonpareil.rollouts.store import ShardNotes, read_columns, shard_path, to_table, with_notes, write_table
from nonpareil.rollouts.summaries import ShardSummary, summary_of

SHARD_SIZE = 256
"""Most groups of a shard."""
SHARD_BYTES = 32 * 2**20
"""A shard is full, too, when its groups take so much memory: all of it is held while it grows."""
SHARD_AGE = timedelta(days=1)
"""And when its first group is so old, since a shard goes as a whole: soon after its first group may."""
SERVED_AT = "served_at"
COLUMNS: dict[str, pa.DataType | None] = {
    SERVED_AT: pa.string(),
    "served_seed": pa.int64(),
    "served_rule": pa.string(),
    "served_choice": pa.list_(pa.int32()),
}
"""What rides along with a group: when (ISO 8601, UTC), its seed and rule, and which answers were returned."""


def now() -> str:
    """The moment, as it is kept; earlier ones sort before it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class Shards:
    """One kind's folder, held by this process."""

    folder: Path
    manifest: dict[str, Any]
    pending: list[tuple[Group, list[tuple[str, str]]]] = field(default_factory=list)
    """Groups that are not on disk yet, each with the names and reasons of its null rewards."""

    def __post_init__(self) -> None:
        """Go on behind what is there.

        Raises:
            DataError: a shard that is damaged, missing, or not of this folder.
        """
        self._known: dict[Path, ShardSummary] = {}
        self._newest: dict[Path, str] = {}
        there = served_shards(self.folder)
        for path in there:
            self._known[path] = summary_of(path)
        last = self._known[there[-1]].prompt_ids if there else []
        self._position = 1 + max((int(one.rpartition("-")[2]) for one in last), default=-1)
        for path, one in self._known.items():
            self._known[path] = one.without_ids()
        self._index = (index_of(there[-1]) or 0) + 1 if there else 0
        self._table: pa.Table | None = None
        self._failures: dict[str, Counter[str]] = {}
        self._begun = ""

    def next_position(self) -> int:
        """Of a group in the folder; each is given once."""
        self._position += 1
        return self._position - 1

    def flush(self) -> None:
        """Write what is pending behind what the open shard has, in one step.

        Raises:
            OSError: the disk; what was pending still is.
        """
        if not self.pending:
            return
        groups = [group for group, _ in self.pending]
        failures = {name: Counter(counts) for name, counts in self._failures.items()}
        for _, reasons in self.pending:
            for name, reason in reasons:
                failures.setdefault(name, Counter())[reason] += 1
        table = to_table(groups, self._types())
        if self._table is not None:
            table = pa.concat_tables(
                [self._table, table.replace_schema_metadata(self._table.schema.metadata)]
            )
        path = shard_path(self.folder, self._index)
        write_table(path, with_notes(table, self._notes(failures)))
        self._table, self._failures, self.pending = table, failures, []
        self._begun = self._begun or groups[0].columns[SERVED_AT]
        self._newest[path] = groups[-1].columns[SERVED_AT]
        if len(table) >= SHARD_SIZE or table.nbytes >= SHARD_BYTES:
            self.close_shard()

    def close_shard(self) -> None:
        """The open shard is full; what comes next begins another. The manifest counts it."""
        if self._table is None:
            return
        path = shard_path(self.folder, self._index)
        self._known[path] = summary_of(path).without_ids()
        self._index += 1
        self._table, self._failures, self._begun = None, {}, ""
        self.write_counts(complete=False)

    def close_old(self, moment: datetime) -> None:
        """Close the open shard if its first group is `SHARD_AGE` old."""
        if self._begun and datetime.fromisoformat(self._begun) <= moment - SHARD_AGE:
            self.close_shard()

    def expire(self, held: OutputFolder, before: str) -> int:
        """Delete the closed shards all of whose groups were served before a moment; returns how many.

        Only files that are as we wrote them go.
        """
        deleted = 0
        for path in served_shards(self.folder):
            if index_of(path) == self._index or self._last_of(path) >= before or not held.is_ours(path):
                break  # of a folder the oldest go first, so that no hole is left
            held.delete(path.relative_to(held.path).as_posix())
            self._known.pop(path, None)
            self._newest.pop(path, None)
            deleted += 1
        if deleted:
            self.write_counts(complete=False)
        return deleted

    def write_counts(self, *, complete: bool) -> None:
        """The manifest, with what the closed shards hold."""
        counts = GroupCounts()
        for one in self._known.values():
            counts.add(one)
        content = {key: value for key, value in self.manifest.items() if key != "sha256"}
        self.manifest = write_manifest(
            self.folder, {**content, "complete": complete, "counts": counts.to_dict()}
        )

    def _types(self) -> dict[str, pa.DataType | None]:
        """Of the columns beside a group's own; those of all its shards are the same."""
        prompts = self.manifest["draw"]["prompts"]
        tools: dict[str, pa.DataType | None] = (
            {"tools": None} if prompts.get("rendering", {}).get("tools") else {}
        )
        return COLUMNS | tools | ({FURTHER: pa.list_(pa.string())} if prompts.get(FURTHER) else {})

    def _last_of(self, path: Path) -> str:
        if path not in self._newest:
            times = read_columns(path, [SERVED_AT])[0][SERVED_AT]
            self._newest[path] = pc.max(times).as_py() or ""
        return self._newest[path]

    def _notes(self, failures: Mapping[str, Counter[str]]) -> ShardNotes:
        scoring = self.manifest["scoring"]
        return ShardNotes(
            scoring["rewards"],
            {name: dict(failures.get(name, {})) for name in scoring["rewards"]},
            scoring["aggregate"],
            self.manifest["draw"],
            self._index,
            SHARD_SIZE,
        )
