"""Spread tasks over the worker processes of a Ray cluster, or of a local one, with Ray Data."""

import logging
import math
import os
import pickle
import socket
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa

from nonpareil.errors import ConfigError, NonpareilError

T = TypeVar("T")
R = TypeVar("R")

RESTARTS = 3
"""How often a worker that dies is started again. Ray Data's own default is for ever: a shard that outgrows
the memory would kill worker after worker, and the run would never end."""
CONNECT_SECONDS = 10.0
_PAYLOAD = pa.schema([("payload", pa.large_binary())])


@dataclass(frozen=True)
class RayPool:
    """Worker processes with CPUs and GPUs of their own, each of which takes one task at a time.

    Args:
        num_workers: processes; None for as many as there is room for.
        cpus_per_worker: CPUs (and so torch threads) of each.
        gpus_per_worker: GPUs of each; a fraction lets several share one.
        address: of a running cluster ("auto", or host:port of its head); None starts one on this machine and
            ends it afterwards.

    Raises:
        ConfigError: a number that cannot work.
    """

    num_workers: int | None = None
    cpus_per_worker: int = 1
    gpus_per_worker: float = 0
    address: str | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that cannot work."""
        if self.num_workers is not None and self.num_workers < 1:
            raise ConfigError(f"num_workers={self.num_workers} must be at least 1")
        if self.cpus_per_worker < 1:
            raise ConfigError(f"cpus_per_worker={self.cpus_per_worker} must be at least 1")
        if not 0 <= self.gpus_per_worker < math.inf:
            raise ConfigError(f"gpus_per_worker={self.gpus_per_worker} must be 0 or more")

    def check(self) -> None:
        """Refuse what cannot work, without starting anything.

        Raises:
            ConfigError: Ray is not installed, or nobody answers at the address.
        """
        _import_ray()
        if self.address not in (None, "auto"):
            _check_reachable(str(self.address))

    def map(self, worker: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        """Call a worker with every task, and give its answers as they come, in any order.

        The worker is sent to each process once, where it stays: what it keeps from a call is there at the
        next. A process that dies is started again and its task given to it anew, so that a task may be
        worked on twice, but is answered once.

        Raises:
            ConfigError: the worker cannot be sent, no room for `num_workers`, or as `check`; or workers that
                kept dying.
            NonpareilError: what the worker raised, as it was raised there.
        """
        self.check()
        ray = _import_ray()
        sent = _pickled(worker)
        with self._connected(ray):
            # One at a time into Ray's store, which spills to disk: never all tasks in this process.
            blocks = [ray.put(_wrapped(task)) for task in tasks]
            if blocks:
                yield from self._answers(ray, sent, blocks)

    def _answers(self, ray: Any, sent: bytes, blocks: list[Any]) -> Iterator[Any]:
        from ray.data import ActorPoolStrategy, DataContext, from_arrow_refs

        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors are raised here as well
        context = DataContext.get_current().copy()
        context.enable_progress_bars = context.print_on_execution_start = False
        context.execution_no_progress_timeout_s = -1  # one shard of a large model may take hours
        with DataContext.current(context), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray 2.6x has no other way yet to say max_restarts
            answers = from_arrow_refs(blocks).map_batches(
                _Actor,
                fn_constructor_args=(sent,),
                batch_size=1,
                batch_format="pyarrow",
                # One in flight: a second would wait for a busy worker at the end, while another is idle.
                compute=ActorPoolStrategy(
                    size=min(self._workers(ray), len(blocks)), max_tasks_in_flight_per_actor=1
                ),
                num_cpus=self.cpus_per_worker,
                num_gpus=self.gpus_per_worker or None,
                max_restarts=RESTARTS,
                max_task_retries=-1,
            )
            batches = answers.iter_batches(batch_size=None, batch_format="pyarrow")
        try:
            for batch in batches:
                for payload in batch["payload"]:
                    answer = pickle.loads(payload.as_py())
                    if isinstance(answer, NonpareilError):
                        raise answer
                    yield answer
        except (ray.exceptions.ActorDiedError, ray.exceptions.OutOfMemoryError) as error:
            raise ConfigError(
                f"a Ray worker kept dying, most likely for want of memory; it was started again {RESTARTS} "
                "times. Lower max_tokens_per_batch or num_workers, and run again: what was finished stays. Ray: "
                f"{' '.join(str(error).split())[:600]}"
            ) from error

    def _workers(self, ray: Any) -> int:
        """How many workers to start; refuses more than there is room for, which Ray would wait for in silence."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        room = sum(map(self._room_on, nodes))
        if room < (self.num_workers or 1):
            cpus, gpus = (sum(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU"))
            raise ConfigError(
                f"num_workers={self.num_workers or 1} of cpus_per_worker={self.cpus_per_worker} and "
                f"gpus_per_worker={self.gpus_per_worker:g}: the cluster has {cpus:g} CPUs and {gpus:g} GPUs on "
                f"{len(nodes)} nodes, room for {room}, since a worker lies on one node; ask for fewer or smaller "
                "ones, or start the nodes first"
            )
        return self.num_workers or room

    def _room_on(self, node: Mapping[str, float]) -> int:
        """How many workers fit on a node of these resources; a fraction of a GPU lies on one GPU."""
        room = int(node.get("CPU", 0) // self.cpus_per_worker)
        if self.gpus_per_worker:
            gpus, each = node.get("GPU", 0), self.gpus_per_worker
            room = min(room, int(gpus) * int(1 / each) if each < 1 else int(gpus / each))
        return room

    @contextmanager
    def _connected(self, ray: Any) -> Iterator[None]:
        if ray.is_initialized():  # the caller's own, and theirs to end
            yield
            return
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self.address is None:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            # CPUs are a count to Ray, no more: asking for more workers than cores is the user's to judge.
            cpus = self.num_workers * self.cpus_per_worker if self.num_workers else os.cpu_count()
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
        else:
            try:
                ray.init(address=self.address, **quiet)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise ConfigError(f"ray_address={self.address!r}: {error}") from error
        try:
            yield
        finally:
            ray.shutdown()


class _Actor:
    """Ray's side of a worker: one task in, one answer out, both pickled so that Arrow changes neither."""

    def __init__(self, sent: bytes) -> None:
        self._worker = pickle.loads(sent)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """An error of the user's is an answer too: Ray would bury it in a trace of its own."""
        try:
            return _wrapped(self._worker(pickle.loads(batch["payload"][0].as_py())))
        except NonpareilError as error:
            return _wrapped(error)


def _wrapped(value: Any) -> pa.Table:
    return pa.table([pa.array([pickle.dumps(value)], pa.large_binary())], schema=_PAYLOAD)


def _pickled(worker: Any) -> bytes:
    from ray import cloudpickle

    try:
        return cloudpickle.dumps(worker)
    except Exception as error:
        raise ConfigError(
            f"what draws or scores cannot be sent to Ray's workers ({type(error).__name__}: {error}); name "
            "models by path, and rewards as path/to/file.py:function or package.module.function"
        ) from error


def _import_ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ConfigError(
            f'engine=ray needs Ray ({error}): pip install "nonpareil[ray]", here and on every node'
        ) from error
    return ray


def _check_reachable(address: str) -> None:
    """Ray itself waits for minutes for an address that nobody answers, and then ends the process."""
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdigit()) or "://" in address:
        raise ConfigError(
            f"ray_address={address!r} is neither auto nor host:port of a running cluster's head"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"ray_address={address!r}: nobody answers there ({error}); start the head with `ray start --head`"
        ) from error
