"""Whether a distillation of stored groups asks its rewards for anything, and what stands in their place if not."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from nonpareil.commands.distill.credits import makes_credits
from nonpareil.commands.distill.manifest_defaults import NAMES, manifest_there, why_not_named
from nonpareil.errors import ConfigError, NonpareilError
from nonpareil.in_memory import InMemory
from nonpareil.options.distill import DistillOptions
from nonpareil.options.rewards import RewardOptions, asked_rewards, rewards_of
from nonpareil.terminal import reason_of, tell

if TYPE_CHECKING:
    from nonpareil.methods.base import Method
    from nonpareil.rewards.combine import CombinedReward
    from nonpareil.training.config import DistillationConfig


def scores_nothing(options: DistillOptions, config: "DistillationConfig", method: "Method") -> bool:
    """Whether the stored scores are all that is read: nothing is drawn, made or evaluated."""
    from nonpareil.training.method import draws_here

    stored = options.groups is not None and not options.evaluate_after
    return stored and not draws_here(method, config) and not makes_credits(options, config)


def loaded_or_stored(
    load: Callable[[], "CombinedReward"],
    options: DistillOptions,
    config: "DistillationConfig",
    method: "Method",
    asked: RewardOptions,
) -> "CombinedReward":
    """The rewards that are named, to be held against the stored ones; those of the groups' manifest where none is.

    Where the stored scores are all that is read and the named rewards cannot be loaded, that is told and the
    manifest's stand in. `asked`: all that is said of rewards.

    Raises:
        NonpareilError: no reward is named, or one cannot be loaded, where one must score.
    """
    named = any(getattr(asked, name) for name in NAMES)
    stored = _stored_in_place(options, config, method, asked, named=named)
    if stored is not None and not named:
        return stored
    try:
        return load()
    except NonpareilError as error:
        if stored is None:
            raise
        tell(f"{reason_of(error)}; the stored scores are all that this training reads")
        return stored


def _stored_in_place(
    options: DistillOptions,
    config: "DistillationConfig",
    method: "Method",
    asked: RewardOptions,
    *,
    named: bool,
) -> "CombinedReward | None":
    """The groups' rewards as their manifest knows them, where their stored scores are all that is read.

    None where a reward is to score, where another one was named, or where nothing is known of them.

    Raises:
        ConfigError: no reward is named, and those of the groups cannot be named here, where one must score.
    """
    from nonpareil.rewards.stored import stored_rewards

    manifest = None if options.groups is None else manifest_there(Path(options.groups))
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
