"""Which engine draws: the flag `--engine`, what belongs to each, and how each is made."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from nonpareil.errors import ConfigError
from nonpareil.protocols import Engine
from nonpareil.records import Prompt, SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from nonpareil.jobs.sample import SampleOptions
    from nonpareil.rollouts.cluster import ShardWorkers


class DrawSource(Protocol):
    """A policy that is known before it is loaded: what it is, what it cannot do, and how to draw from it."""

    tokenizer: "Tokenizer"

    def check(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> None:
        """Refuse prompts and sampling settings that cannot work, before anything is loaded."""
        ...

    def info(self) -> dict[str, Any]:
        """What decides the policy, for the manifest."""
        ...

    def engine(self, max_tokens_per_batch: int) -> Engine:
        """Loads the weights."""
        ...


@dataclass
class EngineOptions:
    """Which engine draws. A setting of another engine than the one chosen is refused by name."""

    engine: str = field(default="transformers", metadata={"help": "transformers, or ray."})
    num_workers: int | None = field(
        default=None, metadata={"help": "ray: worker processes. Default: as many as there is room for."}
    )
    cpus_per_worker: int | None = field(
        default=None, metadata={"help": "ray: CPUs, and so threads, of a worker. Default: 1."}
    )
    gpus_per_worker: float | None = field(
        default=None, metadata={"help": "ray: GPUs of a worker. Default: 1 where this machine has one."}
    )
    ray_address: str | None = field(
        default=None,
        metadata={"help": "ray: auto, or host:port of a cluster's head. Default: one on this machine."},
    )


SETTINGS_OF: dict[str, tuple[str, ...]] = {
    "ray": ("num_workers", "cpus_per_worker", "gpus_per_worker", "ray_address"),
}
"""Fields of `EngineOptions` that one engine alone reads; their default is None."""


def source_of(options: "SampleOptions") -> DrawSource:
    """The policy of the options, on the engine they choose.

    Raises:
        ConfigError: an unknown engine, or a setting that it does not read.
        ModelError: no such model, or no tokenizer beside it.
    """
    if options.engine not in SOURCES:
        raise ConfigError(f"engine={options.engine!r} must be one of {', '.join(SOURCES)}")
    for owner, names in SETTINGS_OF.items():
        for name in names:
            value = getattr(options, name)
            if owner != options.engine and value is not None:
                raise ConfigError(
                    f"{name}={value!r} is not read by engine={options.engine}; remove it, or give engine={owner}"
                )
    return SOURCES[options.engine](options)


def drawer_of(source: DrawSource, options: "SampleOptions") -> "Callable[[], Engine] | ShardWorkers":
    """What `draw_and_score` draws with: an engine loaded when first needed, or workers that take whole shards."""
    workers = getattr(source, "workers", None)
    return workers() if workers is not None else lambda: source.engine(options.max_tokens_per_batch)


def _transformers(options: "SampleOptions") -> DrawSource:
    from nonpareil.jobs.policy import PolicySource

    return PolicySource(options.model_name_or_path or "", options.model_revision, options.dtype)


def _ray(options: "SampleOptions") -> DrawSource:
    from nonpareil.jobs.ray import RaySource

    return RaySource(options)


SOURCES: dict[str, Callable[["SampleOptions"], DrawSource]] = {"transformers": _transformers, "ray": _ray}
