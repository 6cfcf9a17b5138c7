"""The rewards of an evaluation: loaded, asked whether they can score the prompts, and let go until they do."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nonpareil.commands.inputs import load_reward_of
from nonpareil.errors import ConfigError, ModelError
from nonpareil.options.rewards import RewardOptions
from nonpareil.records import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from nonpareil.options.commands import EvaluateOptions
    from nonpareil.rewards.combine import CombinedReward


def load_rewards(
    options: "EvaluateOptions", prompts: Sequence[Prompt], tokenizer: "Tokenizer"
) -> "list[CombinedReward]":
    """The unseen reward, where there is one, then the reward; none is in memory. Raises as `check_rewards`."""
    reward = load_reward_of(options, tokenizer)
    rewards = check_rewards(options, reward, prompts, tokenizer)
    reward.release()
    return rewards


def check_rewards(
    options: "EvaluateOptions", reward: "CombinedReward", prompts: Sequence[Prompt], tokenizer: "Tokenizer"
) -> "list[CombinedReward]":
    """The unseen reward, where there is one and not in memory, then the reward; both can score these prompts.

    Raises:
        NonpareilError: a reward that cannot be loaded, or cannot score completions of the prompts.
    """
    rewards = [reward]
    if options.unseen_reward:
        rewards.insert(0, load_unseen_reward("unseen_reward", options.unseen_reward, options, reward))
    for one in rewards:
        one.check_prompts(prompts, options.max_completion_length, tokenizer)
        one.log_errors_to(Path(options.output_dir))
    for one in rewards[:-1]:
        one.release()
    return rewards


def load_unseen_reward(
    option: str, spec: str, options: RewardOptions, reward: "CombinedReward"
) -> "CombinedReward":
    """The reward named by an option that policies are measured by and not trained on, beside the trained one.

    Raises:
        ConfigError, ModelError: naming the option; it cannot be loaded, or has the trained reward's name.
    """
    from nonpareil.rewards.specs import load_rewards

    try:
        unseen = load_rewards(
            spec,
            timeout=options.reward_timeout,
            api_key_env=options.reward_api_key_env,
            dtype=options.reward_dtype,
            overlong=options.reward_overlong,
            engine=options.reward_engine,
            skipped_tokens=reward.skipped_tokens,
            trust_remote_code=options.trust_remote_code,
        )
    except (ConfigError, ModelError) as error:  # which know the value alone
        raise type(error)(f"{option}={spec!r}: {error}") from error
    for name in unseen.names:
        if name in reward.names:
            raise ConfigError(
                f"{option}={spec!r}: its name {name!r} is also the reward's, and one column would hold both; "
                "rename the function or the folder"
            )
    return unseen
