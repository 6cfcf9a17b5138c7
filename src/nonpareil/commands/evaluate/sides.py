"""The two sides of an evaluation, policy and reference: what draws, how many completions per prompt, kept where."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nonpareil.commands.evaluate.folders import policy_folder, reference_folder
from nonpareil.options.evaluate import EvaluateOptions
from nonpareil.records import Group, Prompt, SamplingParams
from nonpareil.setting_types import SEED

if TYPE_CHECKING:
    from nonpareil.commands.policies.local import LocalPolicy
    from nonpareil.rewards.combine import CombinedReward


@dataclass(frozen=True)
class Side:
    """One of the two models that are compared."""

    policy: "LocalPolicy"
    num_generations: int
    """Completions per prompt."""
    sampling: SamplingParams
    folder: Path
    """Of its groups, which are taken up from there where they lie there already."""
    overwrite: bool
    """Whether what lies there is deleted first."""


_NO_SEED = SEED + 1
"""Above every seed that can be given: draws with it share random numbers with no evaluation that is not fresh."""


def sides_of(
    options: EvaluateOptions, policy: "LocalPolicy", reference: "LocalPolicy", *, fresh: bool = False
) -> tuple[Side, Side]:
    """The policy's side and the reference's.

    They must not share their random numbers, or a policy near the reference would look paired with it; nor may a
    `fresh` policy share those of the draws that it was chosen by. Groups of a reference that evaluations share are
    never deleted.
    """
    seeds = 2 * (options.seed + fresh * _NO_SEED), 2 * options.seed + 1
    ours, theirs = (replace(options.sampling(), seed=seed) for seed in seeds)
    deletes_shared = options.overwrite and options.reference_dir is None
    return (
        Side(
            policy,
            options.num_generations,
            ours,
            policy_folder(Path(options.output_dir)),
            options.overwrite,
        ),
        Side(reference, options.num_reference_samples, theirs, reference_folder(options), deletes_shared),
    )


def scored_groups(
    side: Side, prompts: Sequence[Prompt], rewards: "Sequence[CombinedReward]", max_tokens_per_batch: int
) -> list[Group]:
    """One side's groups, drawn and then scored by each of the rewards, the last of which gives `Group.rewards`.

    Without the log-probs that they were drawn with, half of what they take in memory: no metric reads those, and
    the models are compared in passes of their own.

    Raises:
        NonpareilError: as `rollouts.draw_and_score`.
    """
    from nonpareil.engines.decoding import TEXT
    from nonpareil.rollouts.growing import engine_of
    from nonpareil.rollouts.manifest import check_same
    from nonpareil.rollouts.progress import ProgressBar
    from nonpareil.rollouts.run import draw_and_score

    with ProgressBar() as progress:
        for position, reward in enumerate(rewards):  # the first call draws; the others find the draws there
            result = draw_and_score(
                prompts,
                side.policy.drawn_by(max_tokens_per_batch),
                reward,
                side.sampling,
                side.num_generations,
                side.folder,
                model_info=side.policy.info(),
                progress=progress,
                overwrite=side.overwrite and position == 0,
            )
    # Of an earlier version, and whole, it would be scored and compared though its texts are other ones.
    stored = engine_of(result.manifest["draw"], side.folder)
    check_same({"engine": stored}, {"engine": {**stored, **TEXT}}, side.folder)
    for reward in rewards:
        reward.release()  # in memory while it scores, never beside the models that draw or are compared
    return result.groups(without=("logprobs",))
