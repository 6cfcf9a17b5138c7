"""Win rates of a policy at strengths of its training, one after another, and nothing else of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nonpareil.commands.evaluate.folders import evaluation_folder, folder_at, policy_folder
from nonpareil.commands.evaluate.run import Study, prepared
from nonpareil.commands.evaluate.sides import Side, scored_groups
from nonpareil.options.evaluate import EvaluateOptions
from nonpareil.records import Group

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class StrengthDraws:
    """Draws at any strength of an evaluation's policy, against the reference's groups that lie there."""

    study: Study
    side: Side
    """At one of the strengths."""
    reference: list[Group]

    def reference_rewards(self) -> "Float[Tensor, 'b m']":
        """In the order of prompt ids, NaN where a reward failed."""
        from nonpareil.evaluation.groups import match_groups, rewards_of

        return rewards_of(match_groups(self.reference, self.reference).reference)

    def win_rates(self, strength: float) -> "Float[Tensor, ' b']":
        """Draw and score the policy at a strength; by prompt id, NaN where a prompt has no pair.

        Raises:
            NonpareilError: a model that gives no numbers there, or rewards that all fail.
        """
        from nonpareil.commands.policies.interpolated import InterpolatedPolicy
        from nonpareil.evaluation.by_prompt import win_rates
        from nonpareil.evaluation.groups import match_groups

        study, near = self.study, self.side.policy
        assert isinstance(near, InterpolatedPolicy)
        folder = policy_folder(Path(study.options.output_dir) / folder_at(strength))
        policy = InterpolatedPolicy(near.trained, near.reference, strength)
        side = replace(self.side, policy=policy, folder=folder)
        prompts = study.prompts_as_in(self.reference)
        ours = scored_groups(side, prompts, study.rewards, study.options.max_tokens_per_batch)
        return win_rates(match_groups(ours, self.reference))


@contextmanager
def strength_draws(options: EvaluateOptions) -> Iterator[StrengthDraws]:
    """Hold the evaluation's folder, and read the reference's groups there; `options` have strengths.

    Raises:
        NonpareilError: as `evaluate`'s `run`, before anything is drawn.
    """
    with evaluation_folder(options):
        study, sides = prepared(options)
        theirs = scored_groups(study.reference, study.prompts, study.rewards, options.max_tokens_per_batch)
        yield StrengthDraws(study, sides[0], theirs)
