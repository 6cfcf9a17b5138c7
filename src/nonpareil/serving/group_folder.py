"""The stored groups of served requests, in the format of `nonpareil sample`: what is served today trains tomorrow.

The folder holds one folder of groups for each kind of request (chat or text, `best_of`, sampling), since groups
of different laws are no one's draws together: `groups/chat-n8-t1-max256/`, which `curve`, `export`, `view` and
`distill --groups` read as any other.
"""

import asyncio
import logging
import secrets
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from nonpareil.errors import ConfigError, NonpareilError
from nonpareil.files import jsonable
from nonpareil.folders import is_vacant, writing
from nonpareil.records import has_further, prompt_id_of
from nonpareil.rewards.combine import CombinedReward
from nonpareil.rollouts.folder import MANIFEST
from nonpareil.rollouts.manifest import FORMAT, read_manifest, versions, write_manifest
from nonpareil.rollouts.scoring import reward_settings
from nonpareil.rollouts.served import SERVED, is_served_folder
from nonpareil.serving.group_kinds import Kind, NotStored, kind_of
from nonpareil.serving.group_record import group_of, null_reasons
from nonpareil.serving.group_shards import SHARD_SIZE, Shards, now
from nonpareil.serving.records import Drawn, DrawRequest, Scored
from nonpareil.serving.redaction import Redact, redacted
from nonpareil.serving.sameness import first_difference

OWNER = "serve"
FLUSH = 16
"""Requests that a kill may lose at most."""
FLUSH_SECONDS = 10.0
"""And nothing waits longer than this for its shard to be written."""
MOST_KINDS = 64
"""Folders that one folder holds; clients decide of what kinds their requests are."""
MOST_PENDING = 8
"""Times `flush`: what is kept for a disk that is full, before it is given up and counted."""


class GroupFolder:
    """A `GroupWriter` over a folder that this process holds; use it as `with`.

    `begin` comes before the first `write`. All work on the disk is done in one thread of its own. `write` returns
    when the group is held in memory, or on disk if `flush` groups were waiting: a kill -9 loses `flush` answered
    requests at most, and none that is older than `FLUSH_SECONDS`.

    Args:
        folder: new, empty, or of an earlier server of the same model and rewards.
        flush: see above.
        keep_days: shards whose groups are all older are deleted, if they are as we wrote them; a group goes
            at most a day later. None keeps all.
        redact: called for every group before anything of it is kept; see `serving.redaction`.

    Raises:
        ConfigError: the folder holds other things, or another process writes to it.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        flush: int = FLUSH,
        keep_days: float | None = None,
        redact: Redact | None = None,
    ) -> None:
        """Takes hold of the folder."""
        self.path = Path(folder)
        self._flush, self._keep_days, self._redact = flush, keep_days, redact
        self.stored = 0
        """Groups on disk, of this process."""
        self.not_stored: Counter[str] = Counter()
        """Requests that left no group, by reason."""
        self._kinds: dict[str, Shards] = {}
        self._common: dict[str, Any] = {}
        self._stop = threading.Event()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="groups")
        self._exit = ExitStack()
        with ExitStack() as held:
            self._held = held.enter_context(
                writing(self.path, OWNER, other="another server", option="groups")
            )
            self._held.refuse_other_command()
            if not self._held.marked and not is_vacant(self._held.path):
                raise ConfigError(
                    f"groups={str(folder)!r} holds things that no server of ours stored; give a new folder"
                )
            self._delete_halves()
            self._exit = held.pop_all()

    def __enter__(self) -> "GroupFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def begin(
        self,
        reward: CombinedReward,
        model: Mapping[str, Any],
        engine: Mapping[str, Any],
        reward_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Say what all groups have in common, and go on where an earlier server stopped.

        Args:
            reward: that scores them.
            model: what decides the policy, as `nonpareil sample` keeps it; `path` is a label.
            engine: what draws, as its `describe`.
            reward_options: how a user named the rewards.

        Raises:
            ConfigError: the folder is of another model or other rewards; the first difference is named.
            DataError: something there is damaged.
        """
        weights = dict(zip(reward.names, reward.weights, strict=True))
        self._common = {
            "draw": {"model": jsonable(dict(model)), "engine": jsonable(dict(engine))},
            "rewards": jsonable(reward.describe()),
            "scoring": {"rewards": reward_settings(reward), "aggregate": weights},
            "reward_options": jsonable(dict(reward_options or {})),
        }
        for path in sorted(self._held.path.glob(f"*/{MANIFEST}")):
            manifest = read_manifest(path.parent)
            if manifest is not None and is_served_folder(manifest):
                self._check_same(manifest)
                self._kinds[path.parent.name] = Shards(path.parent, manifest)
        self._expire()
        threading.Thread(target=self._tick, daemon=True, name="groups-clock").start()

    async def write(
        self, request: DrawRequest, drawn: Drawn, scored: Scored, chosen: Sequence[int], rule: str
    ) -> str | None:
        """Keep one group; see `serving.records.GroupWriter`."""
        adding = self._worker.submit(self._add, request, drawn, scored, list(chosen), rule)
        # A client who leaves now takes nothing away.
        return await asyncio.shield(asyncio.wrap_future(adding))

    async def close(self) -> None:
        """Write out what is still held, and let go of the folder."""
        await asyncio.to_thread(self.release)

    def release(self) -> None:
        """As `close`; a second time nothing."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._worker.submit(self._finish).result()
        self._worker.shutdown()
        self._exit.close()

    @property
    def unflushed(self) -> int:
        """Groups that are not on disk yet."""
        return sum(len(kind.pending) for kind in self._kinds.values())

    def folders(self) -> list[Path]:
        """The folders of groups, one a kind."""
        return [self.path / name for name in sorted(self._kinds)]

    # --- In the thread

    def _add(
        self, request: DrawRequest, drawn: Drawn, scored: Scored, chosen: list[int], rule: str
    ) -> str | None:
        """Why it leaves no group; None where it does."""
        try:
            kind, prompt, tools = kind_of(request, drawn)
            group = group_of(prompt, drawn, scored)
            group.columns |= {"served_at": now(), "served_seed": request.seed, "served_rule": rule}
            group.columns |= {"served_choice": chosen, **({"tools": tools} if tools else {})}
            if self._redact is not None:
                group = redacted(group, self._redact)
                if not kind.further and not isinstance(group.prompt, str) and has_further(group.prompt):
                    raise NotStored("groups_redact gave messages names or calls that they had not")
            shards = self._shards(kind)
            position = shards.next_position()
            group = replace(group, prompt_id=prompt_id_of(group.prompt, position, group.columns.get("tools")))
            shards.pending.append((group, null_reasons(scored)))
        except NotStored as why:
            self._not_stored(str(why))
            return str(why)
        except (NonpareilError, OSError) as error:
            self._not_stored(f"{type(error).__name__}: {error}")
            return type(error).__name__
        if self.unflushed >= self._flush:
            self._write_out()
        return None

    def _shards(self, kind: Kind) -> Shards:
        if kind.name in self._kinds:
            return self._kinds[kind.name]
        if len(self._kinds) >= MOST_KINDS:
            raise NotStored(f"there are {MOST_KINDS} kinds of requests (sampling, best_of) already")
        draw = {
            SERVED: True,
            **self._common["draw"],
            "sampling": jsonable(kind.sampling),
            "seed": f"each request's own (served_seed), {secrets.token_hex(4)}",
            "num_generations": kind.best_of,
            "prompts": jsonable(kind.prompts),
        }
        others = {key: value for key, value in self._common.items() if key != "draw"}
        folder = self._held.path / kind.name
        manifest = write_manifest(
            folder,
            {
                **{"format": FORMAT, SERVED: True, "complete": False, "draw": draw},
                **{"shard_size": SHARD_SIZE, "versions": versions(), **others},
            },
        )
        self._kinds[kind.name] = Shards(folder, manifest)
        return self._kinds[kind.name]

    def _write_out(self) -> None:
        for kind in self._kinds.values():
            waiting = len(kind.pending)
            try:
                kind.flush()
                self.stored += waiting
            except (NonpareilError, OSError) as error:
                lost = max(0, len(kind.pending) - MOST_PENDING * self._flush)
                del kind.pending[:lost]
                self._not_stored(f"{type(error).__name__}: {error}", lost)

    def _not_stored(self, reason: str, count: int = 1) -> None:
        if reason not in self.not_stored:
            logging.getLogger(__name__).warning(
                f"groups={str(self.path)!r}: a request leaves no group: {reason}"
            )
        self.not_stored[reason] += count

    def _check_same(self, manifest: Mapping[str, Any]) -> None:
        ours = {"model": self._common["draw"]["model"], "engine": self._common["draw"]["engine"]}
        theirs = {name: manifest["draw"][name] for name in ours}
        there, here = (
            {**draw, "rewards": scoring["rewards"], "weights": scoring["aggregate"]}
            for draw, scoring in ((theirs, manifest["scoring"]), (ours, self._common["scoring"]))
        )
        if (first := first_difference(there, here)) is not None:
            raise ConfigError(
                f"groups={str(self.path)!r} holds groups of another model or reward: {first}; give another folder"
            )

    # --- Housekeeping

    def _tick(self) -> None:
        while not self._stop.wait(FLUSH_SECONDS):
            try:
                self._worker.submit(self._keep_house)
            except RuntimeError:  # shut down meanwhile
                return

    def _keep_house(self) -> None:
        self._write_out()
        moment = datetime.now(UTC)
        for kind in self._kinds.values():
            kind.close_old(moment)
        self._expire()

    def _expire(self) -> None:
        if self._keep_days is None:
            return
        before = (datetime.now(UTC) - timedelta(days=self._keep_days)).strftime("%Y-%m-%dT%H:%M:%SZ")
        for kind in self._kinds.values():
            try:
                kind.expire(self._held, before)
            except (NonpareilError, OSError) as error:
                self._tell_kept(kind.folder, error)

    def _tell_kept(self, folder: Path, error: Exception) -> None:
        logging.getLogger(__name__).warning(
            f"{folder}: groups older than {self._keep_days:g} days stay: {error}"
        )

    def _finish(self) -> None:
        self._write_out()
        for kind in self._kinds.values():
            try:
                kind.close_shard()
                kind.write_counts(complete=True)
            except (NonpareilError, OSError) as error:
                logging.getLogger(__name__).warning(f"{kind.folder}: its counts were not written: {error}")
        if lost := self.unflushed:
            logging.getLogger(__name__).error(
                f"groups={str(self.path)!r}: {lost} groups could not be written"
            )

    def _delete_halves(self) -> None:
        """What a kill left half written, below where the folder's own list looks."""
        for path in self._held.path.glob("*/data/.shard-*.tmp"):
            if path.parent.resolve() == path.parent:
                path.unlink()
