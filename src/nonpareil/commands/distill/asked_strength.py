"""The policy that wins as often as asked: the strength of the training that does so is found, written and measured.

Only win rates are drawn to find it, and no more strengths than that takes. It is measured by draws of its own.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonpareil.commands.distill.folder import (
    NOTES,
    asked_place,
    delete_policy_at,
    folder_of_run,
    kept_fingerprint,
)
from nonpareil.commands.evaluate import run as evaluate
from nonpareil.commands.evaluate.folders import delete_strengths, reference_folder
from nonpareil.errors import ModelError, NotFiniteError, RewardError
from nonpareil.options.distill import DistillOptions
from nonpareil.options.evaluate import EvaluateOptions
from nonpareil.terminal import tell

if TYPE_CHECKING:
    from torch import Tensor

    from nonpareil.evaluation.evaluation import Evaluation

REFERENCE = 0.5
"""Its win rate against itself."""
WEAKER, STRONGER = (0.5,), (1.5, 2.0, 3.0)
"""The strengths that are drawn first: where the trained policy wins as often as asked or more often, and where less
often, up to the first that does."""
NEAR, REFINEMENTS = 0.01, 2
"""A strength that was found between others is drawn too, so many times, until one wins so nearly as often."""
DIGITS = 4
"""Of a strength that was found: a ten-thousandth of it changes no win rate, and it can be said again."""


@dataclass(frozen=True)
class Search:
    """What was drawn to find the strength, and what came of it; win rates are means over prompts, ties one half."""

    target: float
    """The win rate that was asked for."""
    win_rates: dict[float, float]
    """By strength, rising."""
    strength: float | None
    """None where no strength that was drawn wins as often."""

    def is_near(self) -> bool:
        """Whether a strength that was drawn wins nearly as often as asked."""
        return any(abs(rate - self.target) <= NEAR for rate in self.win_rates.values())

    def path(self) -> list[dict[str, float]]:
        """Its points, as a result has them."""
        return [{"strength": strength, "win_rate": rate} for strength, rate in self.win_rates.items()]


def all_evaluations(options: DistillOptions, evaluation: EvaluateOptions | None) -> list[EvaluateOptions]:
    """Those that follow a training: of the trained policy, of other strengths, of the one that is written."""
    if evaluation is None:
        return []
    place = asked_place(options)
    if place is None:
        return [evaluation]
    return [evaluation, search_options(evaluation), measuring_options(evaluation, place)]


def search_options(evaluation: EvaluateOptions) -> EvaluateOptions:
    """The draws of the strengths that are drawn first, beside the evaluation's own and its reference's."""
    return replace(evaluation, strengths=[*WEAKER, *STRONGER], unseen_reward=None, overwrite=False)


def measuring_options(evaluation: EvaluateOptions, place: str) -> EvaluateOptions:
    """The evaluation of the policy that was written to the place, against the same draws of the reference."""
    written = Path(evaluation.model_name_or_path or "") / place
    return replace(
        evaluation,
        model_name_or_path=str(written),
        reference_dir=str(reference_folder(evaluation)),
        output_dir=str(written / "evaluation"),
        title=f"{evaluation.title}, {place}",
    )


def write_asked(
    options: DistillOptions, evaluation: EvaluateOptions, trained: "Evaluation"
) -> dict[str, Any]:
    """Find the strength, write the policy, measure it; returns what was asked, found and measured.

    `trained` is the evaluation of the trained policy, which is strength 1. Out of reach nothing is written, and
    what can be reached is told.

    Raises:
        NonpareilError: rewards that all fail, or models that cannot be interpolated or measured.
    """
    place = asked_place(options) or ""
    output_dir = Path(evaluation.model_name_or_path or "")
    delete_strengths(Path(evaluation.output_dir))  # of an earlier training, or of other settings
    found = _search(options, evaluation, trained)
    result = {
        "asked": {"n": options.at_n, "win_rate": found.target},
        "strength": found.strength,
        "path": found.path(),
    }
    if found.strength is None:
        _tell_out_of_reach(options, found)
        return result
    _save(evaluation, found.strength, place)
    try:
        measured = evaluate.evaluate_in_place(measuring_options(evaluation, place), fresh=True)
        result |= _measured(output_dir / place, measured)
        _tell_measured(place, found, measured["evaluation"])
        _keep_notes(output_dir, place, result)
    except BaseException:  # not measured, it is not what was asked for
        delete_policy_at(output_dir, place)
        raise
    return result


def _search(options: DistillOptions, evaluation: EvaluateOptions, trained: "Evaluation") -> Search:
    """Strength by strength, until one wins as often as asked."""
    import torch

    from nonpareil.commands.evaluate.win_rates import strength_draws

    own = [float("nan") if rate is None else rate for rate in trained.by_prompt.win_rate]
    drawn = {1.0: torch.tensor(own, dtype=torch.float64)}
    with strength_draws(search_options(evaluation)) as draws:
        rewards = draws.reference_rewards()
        found = found_among(drawn, rewards, options)
        first = STRONGER if found.strength is None else WEAKER
        for strength in first if found.target > REFERENCE else ():
            tell(f"strength {strength:g} is drawn, to find the one with win rate {found.target:.3f}")
            try:
                drawn[strength] = draws.win_rates(strength)
            except (ModelError, NotFiniteError, RewardError) as error:
                if strength < 1:
                    raise
                tell(f"the path ends before strength {strength:g}: {error}")
                break
            found = found_among(drawn, rewards, options)
            if found.strength is not None:
                break
        for _ in range(REFINEMENTS):
            if found.strength is None or found.is_near():
                break
            tell(f"strength {found.strength:g} is drawn, to find the one with win rate {found.target:.3f}")
            drawn[found.strength] = draws.win_rates(found.strength)
            found = found_among(drawn, rewards, options)
    return found


def found_among(
    drawn: "Mapping[float, Tensor]", reference_rewards: "Tensor", options: DistillOptions
) -> Search:
    """The strength, by the win rates [b] of those that were drawn; over the prompts with a pair at each of them.

    `reference_rewards` [b, M] say what best-of-n wins. An n that they cannot show is a target of NaN.
    """
    import torch

    from nonpareil.evaluation.strength_path import strength_at
    from nonpareil.maths.group_best_of_n import group_win_rate, largest_n

    kept = ~torch.stack(list(drawn.values())).isnan().any(0)
    rates = {strength: float(drawn[strength][kept].mean()) for strength in sorted(drawn)}
    target = options.at_win_rate
    if target is None:
        n, rewards = options.at_n or 0, reference_rewards[kept]
        shown = len(rewards) > 0 and n <= largest_n(rewards)
        target = float(group_win_rate(rewards, torch.tensor([float(n)])).mean()) if shown else float("nan")
    strength = strength_at(rates, target)
    return Search(target, rates, None if strength is None else float(f"{strength:.{DIGITS}g}"))


def _save(evaluation: EvaluateOptions, strength: float, place: str) -> None:
    """As a plain checkpoint, like `nonpareil interpolate`; what lay there is gone before."""
    from nonpareil.commands.policies.local import local_policy, reference_policy
    from nonpareil.models.interpolated_folder import Source, save_interpolated

    output_dir = Path(evaluation.model_name_or_path or "")
    trained, reference = (
        Source(each.name_or_path, each.revision, each.tokenizer, each.init)
        for each in (local_policy(evaluation), reference_policy(evaluation))
    )
    with folder_of_run(output_dir).staged(place) as staging:
        trusted = evaluation.trust_remote_code
        save_interpolated(trained, reference, strength, staging, trust_remote_code=trusted)


def _measured(folder: Path, measured: Mapping[str, Any]) -> dict[str, Any]:
    evaluation: Evaluation = measured["evaluation"]
    return {
        "win_rate": evaluation.comparison.win_rate,
        "kl": evaluation.kl,
        "kl_efficiency": evaluation.kl_efficiency,
        "equivalent_n": evaluation.equivalent_n,
        "output_dir": str(folder),
        "report": measured["report"],
    }


def _keep_notes(output_dir: Path, place: str, result: Mapping[str, Any]) -> None:
    """What the policy is, beside it; without it the folder is not finished, and is made anew."""
    from nonpareil.files import write_json

    found = {key: value for key, value in result.items() if key not in ("output_dir", "report")}
    write_json(output_dir / place / NOTES, {**found, "trained_fingerprint": kept_fingerprint(output_dir)})


def _tell_measured(place: str, found: Search, measured: "Evaluation") -> None:
    from nonpareil.evaluation.numbers import bracket, number

    rate = measured.comparison.win_rate
    if rate.low > found.target or rate.high < found.target:
        tell(
            f"{place}: by draws of its own its win rate is {number(rate.estimate)} {bracket(rate)}, and "
            f"{number(found.target)} was asked for; more draws tell the strength better (max_eval_prompts, "
            "num_generations_eval, num_reference_samples_eval)"
        )


def _tell_out_of_reach(options: DistillOptions, found: Search) -> None:
    asked = f"at_win_rate={options.at_win_rate}" if options.at_n is None else f"at_n={options.at_n}"
    best = max(found.win_rates, key=lambda strength: found.win_rates[strength])
    if any(math.isnan(rate) for rate in found.win_rates.values()):
        why = (
            f"{asked}: at no held-out prompt are there rewards of both policies at every strength, so many failed; "
            "see why in reward-errors.log"
        )
    elif math.isnan(found.target):
        why = f"{asked} is more than the held-out prompts' rewards show, so many failed; ask for a smaller n"
    elif found.target <= REFERENCE:
        why = (
            f"{asked} wins no more than the reference on the held-out prompts, whose rewards tie; take held-out "
            "prompts or a reward on which completions differ"
        )
    elif found.win_rates[best] <= REFERENCE:
        why = (
            f"{asked} is out of this training's reach: at no strength does it win more often than the reference; "
            "train it otherwise first"
        )
    else:
        why = (
            f"{asked} is out of this training's reach: it asks for win rate {found.target:.3f}, and the highest up "
            f"to strength {max(found.win_rates):g} is {found.win_rates[best]:.3f}, at {best:g}; ask for less, or "
            "train further"
        )
    tell(f"{why}. No policy was written for it; everything else was")
