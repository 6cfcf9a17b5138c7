"""Which engine draws: the flag `--engine`, what belongs to each, and how each is made."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from nonpareil.engines.base import Engine
from nonpareil.records import Prompt, SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from nonpareil.options.commands import SampleOptions
    from nonpareil.rollouts.cluster import ShardWorkers


class Policy(Protocol):
    """A policy that is known before it is loaded: what it is, what it cannot do, and how to draw from it."""

    @property
    def tokenizer(self) -> "Tokenizer | None":
        """The policy's; None where a server reads the prompts as text."""
        ...

    def check(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> None:
        """Refuse prompts and sampling settings that cannot work, before anything is loaded."""
        ...

    def info(self) -> dict[str, Any]:
        """What decides the policy, for the manifest."""
        ...

    def engine(self, max_tokens_per_batch: int) -> Engine:
        """Loads the weights."""
        ...


def policy_of(options: "SampleOptions") -> Policy:
    """The policy of the options, on the engine they choose.

    Raises:
        ConfigError: a setting that the engine cannot work with.
        ModelError: no such model, or no tokenizer beside it.
    """
    return SOURCES[options.engine](options)


def engine_or_workers(source: Policy, options: "SampleOptions") -> "Callable[[], Engine] | ShardWorkers":
    """What `draw_and_score` draws with: an engine loaded when first needed, or workers that take whole shards."""
    workers = getattr(source, "workers", None)
    return workers() if workers is not None else lambda: source.engine(options.max_tokens_per_batch)


def _transformers(options: "SampleOptions") -> Policy:
    from nonpareil.commands.policies.local import local_policy

    source = local_policy(options)
    source.check_drawable()
    return source


def _openai(options: "SampleOptions") -> Policy:
    from nonpareil.commands.policies.served import ServedPolicy

    return ServedPolicy(options)


def _vllm(options: "SampleOptions") -> Policy:
    from nonpareil.commands.policies.vllm import VLLMPolicy

    return VLLMPolicy(options)


def _ray(options: "SampleOptions") -> Policy:
    from nonpareil.commands.policies.ray import RayPolicy

    return RayPolicy(options)


SOURCES: dict[str, Callable[["SampleOptions"], Policy]] = {
    "transformers": _transformers,
    "openai": _openai,
    "vllm": _vllm,
    "ray": _ray,
}
