"""The rewards of an evaluation: loaded, asked whether they can score the prompts, and let go until they do."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nonpareil.jobs.options import load_reward_of, load_unseen_reward
from nonpareil.records import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from nonpareil.jobs.evaluate import EvaluateOptions
    from nonpareil.rewards import CombinedReward


def load_rewards(
    options: "EvaluateOptions", prompts: Sequence[Prompt], tokenizer: "Tokenizer"
) -> "list[CombinedReward]":
    """The unseen reward, where there is one, then the reward; none is in memory. Raises as `check_rewards`."""
    reward = load_reward_of(options)
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
