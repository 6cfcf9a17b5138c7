"""Whether a distillation of stored groups asks its rewards for anything, and what stands in their place if not."""

from pathlib import Path
from typing import TYPE_CHECKING

from nonpareil.commands.distill.credits import makes_credits
from nonpareil.commands.distill.manifest_defaults import NAMES, manifest_there, why_not_named
from nonpareil.errors import ConfigError
from nonpareil.in_memory import InMemory
from nonpareil.options.distill import DistillOptions
from nonpareil.options.rewards import RewardOptions, asked_rewards, rewards_of

if TYPE_CHECKING:
    from nonpareil.methods.base import Method
    from nonpareil.rewards.combine import CombinedReward
    from nonpareil.training.config import DistillationConfig


def scores_nothing(options: DistillOptions, config: "DistillationConfig", method: "Method") -> bool:
    """Whether the stored scores are all that is read: nothing is drawn, made or evaluated."""
    from nonpareil.training.method import draws_here

    stored = options.groups is not None and not options.evaluate_after
    return stored and not draws_here(method, config) and not makes_credits(options, config)


def stored_in_place(
    options: DistillOptions, config: "DistillationConfig", method: "Method", asked: RewardOptions
) -> "CombinedReward | None":
    """The groups' rewards as their manifest knows them, where none is asked for more and no other one was named.

    None where a reward is to be loaded: it scores, it is to be held against the stored one, or nothing is known of
    that. `asked`: all that is said of rewards.

    Raises:
        ConfigError: no reward is named, and those of the groups cannot be named here, where one must score.
    """
    from nonpareil.rewards.stored import stored_rewards

    manifest = None if options.groups is None else manifest_there(Path(options.groups))
    named = any(getattr(asked, name) for name in NAMES)
    if manifest is None:
        return None
    if not scores_nothing(options, config, method):
        if not named and (why := why_not_named(str(options.groups))):
            raise ConfigError(why)
        return None
    in_memory = any(isinstance(spec, InMemory) for spec in rewards_of(asked))
    as_stored = not in_memory and asked_rewards(asked) == manifest.get("reward_options")
    if "rewards" not in manifest or (named and not as_stored):
        return None
    return stored_rewards(manifest["rewards"], config.reward_weights)
