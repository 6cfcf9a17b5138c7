"""What a distillation's model card says beside what its trainer knows, and what an evaluation found, in words."""

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nonpareil.errors import NonpareilError
from nonpareil.in_memory import InMemory
from nonpareil.markdown import code, plain
from nonpareil.options.distill import DistillOptions
from nonpareil.options.rewards import reward_labels
from nonpareil.options.shared import named_prompts
from nonpareil.terminal import reason_of

if TYPE_CHECKING:
    from nonpareil.evaluation.evaluation import Evaluation, RewardComparison
    from nonpareil.maths.bootstrap import Interval
    from nonpareil.training.card import CardFacts

CREDITS = "credits"
"""Their folder in output_dir, where this distillation made them."""


def with_names(facts: "CardFacts", options: DistillOptions) -> "CardFacts":
    """The trainer's facts with the names that its models, prompts and rewards were given by."""
    source, mixed = (
        options.groups or options.prompt_source,
        options.groups is None and options.datasets is not None,
    )
    parts = [str(each["path"]) for each in named_prompts(source)["datasets"]] if mixed else []
    return replace(
        facts,
        base=options.model_name_or_path or "",
        prompts=None if isinstance(source, InMemory) and not mixed else source,
        split=None if mixed else options.dataset_train_split,
        datasets=(*facts.datasets, *parts),
        rewards=reward_labels(options) or facts.rewards,
        credits=options.credits or Path(str(facts.config.output_dir)) / CREDITS,
    )


def failed(error: NonpareilError) -> str:
    """What the card of a policy says whose evaluation failed."""
    why = plain(reason_of(error))
    return f"Not evaluated: the evaluation failed ({why}). Nothing is known of what was reached."


def reached(evaluation: "Evaluation") -> str:
    """What was reached, in words, by the rewards that were evaluated; in Markdown."""
    wins, *others = _by_reward(evaluation.comparison, "the reward it was trained on")
    lines = [wins, *_worth(evaluation), *others]
    if evaluation.unseen is not None:
        lines += _by_reward(
            evaluation.unseen, f"{code(evaluation.unseen.reward)}, which it was not trained on"
        )
    lines += _distance(evaluation)
    policy, reference = evaluation.policy, evaluation.reference
    lines.append(
        f"Its completions have {policy.mean_length.estimate:.1f} tokens on average, the base's "
        f"{reference.mean_length.estimate:.1f}."
    )
    measured = (
        f"Measured on {evaluation.num_prompts} held-out prompts, {policy.num_completions} completions of this "
        f"model and {reference.num_completions} of the base for each, both models in {evaluation.dtype}; intervals "
        "are 95% over prompts. All figures are in `evaluation/report.json`, the whole report in "
        "`evaluation/report.html`."
    )
    return "\n".join([*(f"- {line}" for line in lines), "", measured])


def _by_reward(compared: "RewardComparison", judge: str) -> list[str]:
    """How often it wins, whether that is more than chance, and the reward itself."""
    if compared.ties.estimate == 1:
        return [
            f"By {judge} every completion of this model ties with every one of the base's: the reward tells none "
            "apart here, so it says nothing of which model is better."
        ]
    win = compared.win_rate
    if win.low > 0.5:
        verdict = "more often than not: it is the better one by this reward"
    elif win.high < 0.5:
        verdict = "less often than not: it is the worse one by this reward"
    else:
        verdict = "which does not tell the two apart: the interval holds one half"
    lines = [
        f"In {_share(win)} of comparisons on a held-out prompt a completion of this model scores higher than one "
        f"of the base by {judge} (ties count one half), {verdict}."
    ]
    before, after = compared.reference_mean, compared.policy_mean
    if compared.zero_one:
        lines.append(f"{_share(after)} of its completions succeed, and {_share(before)} of the base's.")
    else:
        lines.append(
            f"Its mean reward is {after.estimate:.4g}{_between(after, '.4g')}, and the base's {before.estimate:.4g}"
            f"{_between(before, '.4g')}."
        )
    if lost := compared.policy_failed + compared.reference_failed:
        lines.append(f"{lost} completions could not be scored and are left out.")
    return lines


def _worth(evaluation: "Evaluation") -> list[str]:
    worth, most = evaluation.equivalent_n, evaluation.largest_n
    if worth is None or math.isnan(worth.estimate) or evaluation.comparison.ties.estimate == 1:
        return []
    if worth.estimate >= most - 1e-6:
        return [
            f"That is as often as the best of {most} samples of the base wins, or of more: no more were drawn."
        ]
    return [
        f"That is as often as the best of {worth.estimate:.1f}{_between(worth, '.1f')} samples of the base wins."
    ]


def _distance(evaluation: "Evaluation") -> list[str]:
    kl, efficiency = evaluation.kl, evaluation.kl_efficiency
    line = f"It lies {kl.estimate:.3g} nats{_between(kl, '.3g')} from the base (KL)"
    if efficiency is not None and efficiency.estimate <= 1:  # above it is chance
        line += f"; the least that any policy needs to win as often is {efficiency.estimate:.0%} of that"
    return [f"{line}."]


def _share(interval: "Interval") -> str:
    """A share in percent, with its interval."""
    return f"{interval.estimate:.0%}{_between(interval, '.0%')}"


def _between(interval: "Interval", form: str) -> str:
    if math.isnan(interval.low):
        return ""
    return f" ({interval.low:{form}} to {interval.high:{form}})"
