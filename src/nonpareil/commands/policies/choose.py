"""Which policy `--engine` means: one in this process, behind a server, on vLLM or in a cluster's workers."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from nonpareil.commands.policies.base import Policy
from nonpareil.options.guidance import guiding_n

if TYPE_CHECKING:
    from nonpareil.commands.policies.local import LocalPolicy
    from nonpareil.options.sample import SampleOptions


def policy_of(options: "SampleOptions") -> Policy:
    """The policy of the options, on the engine they choose.

    Raises:
        ConfigError: a setting that the engine cannot work with.
        ModelError: no such model, or no tokenizer beside it.
    """
    return _BY_ENGINE[options.engine](options)


def _transformers(options: "SampleOptions") -> Policy:
    from nonpareil.commands.policies.local import local_policy

    policy = local_policy(options)
    policy.check_drawable()
    return policy if options.value is None else _guided(options, options.value, policy)


def _guided(options: "SampleOptions", value: str, policy: "LocalPolicy") -> Policy:
    from nonpareil.commands.policies.guided import GuidedPolicy
    from nonpareil.maths.guidance import Guidance

    return GuidedPolicy(policy, value, guiding_n(value, options.n), Guidance(options.likeliest))


def _openai(options: "SampleOptions") -> Policy:
    from nonpareil.commands.policies.served import ServedPolicy

    return ServedPolicy(options)


def _vllm(options: "SampleOptions") -> Policy:
    from nonpareil.commands.policies.vllm import VLLMPolicy

    return VLLMPolicy(options)


def _ray(options: "SampleOptions") -> Policy:
    from nonpareil.commands.policies.ray import RayPolicy

    return RayPolicy(options)


_BY_ENGINE: dict[str, Callable[["SampleOptions"], Policy]] = {
    "transformers": _transformers,
    "openai": _openai,
    "vllm": _vllm,
    "ray": _ray,
}
