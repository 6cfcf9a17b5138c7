"""Draw groups and score them, shard by shard, so that a kill at any moment costs one shard at most."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from nonpareil.records import Group, Prompt, SamplingParams
from nonpareil.rollouts.cluster import ShardWorkers
from nonpareil.rollouts.columns import column_types, message_types
from nonpareil.rollouts.filling import Filling
from nonpareil.rollouts.folder import locked_folder
from nonpareil.rollouts.given import GivenEngine, GivenReward
from nonpareil.rollouts.manifest import draw_settings
from nonpareil.rollouts.progress import Progress, Silent
from nonpareil.rollouts.reading import stored_groups
from nonpareil.rollouts.resume import check_prompts
from nonpareil.setting_types import check_value
from nonpareil.settings import check_settings


@dataclass(frozen=True)
class RolloutResult:
    """What a run left behind."""

    output_dir: Path
    manifest: dict[str, Any]
    shards_drawn: int
    """By this call; the others were there."""
    shards_scored: int
    reward_counts: dict[str, int]
    """What the rewards counted at it, wherever they are; see `Reward.counts`."""

    def groups(self, without: Sequence[str] = ()) -> list[Group]:
        """All groups, in the order of the prompts, read from disk; lists of columns `without` are empty."""
        return list(stored_groups(self.output_dir, without))


def draw_and_score(
    prompts: Sequence[Prompt],
    engine: GivenEngine | ShardWorkers,
    reward: GivenReward | None,
    sampling: SamplingParams,
    num_generations: int,
    output_dir: str | Path,
    *,
    model_info: Mapping[str, Any],
    reward_options: Mapping[str, Any] | None = None,
    shard_size: int = 64,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> RolloutResult:
    """Fill a folder with scored groups; call it again to go on where it stopped.

    First every missing shard is drawn, then every shard is scored that lacks these rewards, or of which one
    of them gave nothing but nulls: it may have been out of order. What is committed is never drawn again; other
    rewards' columns stay, and `rewards` becomes the aggregate of those asked for.

    Where a chat template renders the same prompts otherwise than when the folder was begun (it may write the
    date), they are taken as they were then.

    Args:
        prompts: whose ids must differ.
        engine: or a function that makes it, called only if something is to be drawn; what it made is let
            go before the reward is made, so that one large model is in memory at a time. Or workers, each of
            which draws and scores whole shards; then `reward` only says what theirs must be.
        reward: or a function that makes it, called after drawing; None draws only.
        sampling: its seed decides the draws, together with each prompt's id.
        num_generations: completions per prompt, at least 2.
        output_dir: new, empty, or of an earlier call with the same settings.
        model_info: what decides the policy: `fingerprint`, `revision`, `adapter`, ... ; `path` is a label.
        reward_options: how a user named the rewards; kept in the manifest for whoever is to load them again.
        shard_size: prompts per file; an earlier call's stays.
        progress: told of groups and tokens as they come.
        overwrite: delete the shards and manifest that we wrote there, once the engine is made; other files stay.

    Raises:
        ConfigError: num_generations < 2, settings other than those of the folder (each is named), a folder
            of other things, or another process at work in it.
        DataError: no prompts, prompts with equal ids or of both kinds, a column that cannot be stored, a
            damaged shard or manifest, or a file among the shards that is none.
        RewardError: every completion's reward is null; the groups stay, and what failed is asked again by the
            next call.
    """
    check_value("num_generations", num_generations, int, at_least=2, why="one prompt's draws are compared")
    check_value("shard_size", shard_size, int, at_least=1)
    check_value("output_dir", output_dir, str | PathLike, path=True)
    check_value("sampling", sampling, SamplingParams)
    check_settings(sampling)
    check_prompts(prompts)
    types = column_types([prompt.columns for prompt in prompts]) | message_types(p.prompt for p in prompts)
    folder = Path(output_dir)
    with locked_folder(folder, overwrite=overwrite) as held:
        draw = draw_settings(prompts, sampling, num_generations, model_info)
        progress, old = progress or Silent(), held if overwrite else None
        run = Filling(
            folder,
            prompts,
            types,
            sampling,
            num_generations,
            draw,
            shard_size,
            progress,
            old,
            reward_options=reward_options,
        )
        if isinstance(engine, ShardWorkers):
            drawn, scored, counts = run.fill_missing(engine, reward)
        else:
            drawn = run.draw_missing(engine)
            scored, counts = (0, Counter()) if reward is None else run.score_missing(reward)
        return RolloutResult(folder, run.finish(scored=reward is not None), drawn, scored, dict(counts))
