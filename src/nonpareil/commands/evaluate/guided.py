"""The reference guided by a value as the policy of an evaluation: one model, named once."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nonpareil.errors import ConfigError
from nonpareil.options.evaluate import EvaluateOptions
from nonpareil.options.guidance import guiding_n
from nonpareil.terminal import tell

if TYPE_CHECKING:
    from nonpareil.commands.policies.local import LocalPolicy
    from nonpareil.rewards.combine import CombinedReward


def with_both_sides(options: EvaluateOptions) -> EvaluateOptions:
    """With a value, the options in which policy and reference are the one model that is named.

    Raises:
        ConfigError: two models, none or several n, or strengths, which are of a trained policy.
    """
    if options.value is None:
        return options
    guiding_n(options.value, options.n)
    if options.strengths is not None:
        raise ConfigError(
            f"strengths={options.strengths} are of a trained policy, and value={options.value!r} guides the "
            "reference; evaluate them one after another"
        )
    policy = (options.model_name_or_path, options.model_revision)
    reference = (options.reference_model_name_or_path, options.reference_model_revision)
    if None not in (policy[0], reference[0]) and policy != reference:
        raise ConfigError(
            f"value={options.value!r} guides the reference itself, and model_name_or_path={policy[0]!r} and "
            f"reference_model_name_or_path={reference[0]!r} are two models (or revisions); give one of them"
        )
    name, revision = policy if reference[0] is None else reference
    return replace(
        options,
        model_name_or_path=name,
        model_revision=revision,
        reference_model_name_or_path=name,
        reference_model_revision=revision,
        gguf_file=(gguf_file := options.gguf_file or options.reference_gguf_file),
        reference_gguf_file=gguf_file,
    )


def guided_policy(options: EvaluateOptions, policy: "LocalPolicy") -> "LocalPolicy":
    """The policy, guided where a value is named.

    Raises:
        NonpareilError: as `GuidedPolicy`.
    """
    if options.value is None:
        return policy
    from nonpareil.commands.policies.guided import GuidedPolicy
    from nonpareil.maths.guidance import Guidance

    n = guiding_n(options.value, options.n)
    return GuidedPolicy(policy, options.value, n, Guidance(options.likeliest))


def tell_other_reward(options: EvaluateOptions, reward: "CombinedReward") -> None:
    """Say so where a value guides, and the reward evaluated is another than the one that it foretells."""
    if options.value is None:
        return
    from nonpareil.commands.value.named import rewards_of_value
    from nonpareil.files import jsonable

    theirs = rewards_of_value(options.value)
    if theirs is not None and theirs != jsonable(reward.describe()):
        tell(
            f"the reward evaluated is another than the one that value={options.value!r} was fitted on (value.json, "
            "rewards), towards which it guides"
        )


def guided_title(options: EvaluateOptions) -> str:
    """The report's heading, which says that the policy is the reference guided, and by what."""
    if options.value is None:
        return options.title
    return (
        f"{options.title} (guided by {Path(options.value).name}, n = {guiding_n(options.value, options.n)})"
    )
