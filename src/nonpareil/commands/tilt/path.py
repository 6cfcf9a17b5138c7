"""How far a tilt goes at each strength, estimated on the stored groups: no completion is drawn.

The reference's own completions stand for the tilted policy's, each weighted by the ratio of their probabilities.
What a fold's prompts say is of the tilt that the other folds give: no completion judges a tilt that it is part of.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from nonpareil.commands.tilt.groups import FEWEST_EFFECTIVE, FOLDS, TiltGroups
from nonpareil.errors import ConfigError
from nonpareil.evaluation.intervals import Bootstrap
from nonpareil.evaluation.worth import shows_efficiency
from nonpareil.maths.bootstrap import Interval
from nonpareil.maths.group_best_of_n import group_win_rate, largest_n
from nonpareil.maths.group_frontier import TiltTable, group_least_kl, tilt_table
from nonpareil.maths.vocabulary_tilt import (
    TiltFamily,
    at_strength,
    effective_samples,
    first_reaching,
    kl_at_strength,
)
from nonpareil.models.devices import device_of
from nonpareil.models.logprobs import chunks, predicting_states, token_budget_batches


@dataclass(frozen=True)
class TiltPath:
    """The tilted policies at strengths 0 < s_1 < ... < s_g, as the n completions of the reference see them."""

    strengths: Float[Tensor, " g"]
    log_ratio: Float[Tensor, "n g"]
    """log pi_s - log pi_ref of each completion, nats."""
    kl: Float[Tensor, "n g"]
    """KL(pi_s || pi_ref) of each next token, exact, summed along each completion, nats."""
    win_rate: Float[Tensor, " g"]
    effective: Float[Tensor, " g"]
    mean_kl: Float[Tensor, " g"]


@dataclass(frozen=True)
class TiltEstimate:
    """A tilted policy at one strength."""

    strength: float
    win_rate: Interval
    kl: Interval
    """To the reference, nats."""
    kl_efficiency: Interval | None
    """None where the KL is too little to tell (`evaluation.worth.shows_efficiency`)."""
    effective_samples: float


@torch.no_grad()
def tilt_path(
    model: PreTrainedModel,
    data: TiltGroups,
    tilts: Float[Tensor, "f v"],
    strengths: Float[Tensor, " g"],
    max_tokens: int,
) -> TiltPath:
    """One pass of the reference over all completions, for all strengths; `tilts`: for each fold the others'."""
    device = device_of(model)
    log_ratio = torch.zeros(len(data), len(strengths), dtype=torch.float64)
    kl = torch.zeros_like(log_ratio)
    for fold in range(FOLDS):
        rows = (data.fold == fold).nonzero()[:, 0]
        of_fold = data.sequences.select(rows.tolist())
        family = TiltFamily(tilts[fold].float().to(device), strengths.float().to(device))
        for batch in token_budget_batches(of_fold.lengths(), max_tokens):
            states, tokens, owner, head = predicting_states(model, of_fold.select(batch), None)
            places = rows[torch.tensor(batch)][owner.cpu()]
            for chunk in chunks(states, tilts.shape[1]):
                logits = head(states[chunk]).float() / data.temperature
                ratio, step_kl = family.steps(logits, tokens[chunk])
                log_ratio.index_add_(0, places[chunk], ratio.cpu().double())
                kl.index_add_(0, places[chunk], step_kl.cpu().double())
    parts = [_of_prompts(data, log_ratio[:, g], kl[:, g]).sum(0) for g in range(len(strengths))]
    weight, won, spent = torch.stack(parts).unbind(1)
    return TiltPath(strengths, log_ratio, kl, won / weight, effective_samples(log_ratio), spent / weight)


def best_of_n_win_rate(data: TiltGroups, n: int) -> float:
    """The win rate of best-of-n of these groups, ties counted.

    Raises:
        ConfigError: an n beyond what the groups show.
    """
    if n > largest_n(data.rewards):
        raise ConfigError(
            f"n={n} is beyond what groups with {largest_n(data.rewards) + 1} rewards of a prompt show; lower n, or "
            "draw more completions of each prompt"
        )
    return float(group_win_rate(data.rewards, torch.tensor([float(n)])).nanmean())


def strength_for(path: TiltPath, target: float, asked: str) -> float:
    """The least strength whose estimated win rate is the target's, within what the completions can tell.

    Raises:
        ConfigError: none is; it says how far the path can be followed.
    """
    told = int((path.effective >= FEWEST_EFFECTIVE).long().cumprod(0).sum())
    win_rates, strengths = path.win_rate[:told].tolist(), path.strengths[:told].tolist()
    found = first_reaching(win_rates, strengths, target, 0.5)
    if found is not None:
        return found
    best = max(range(told), key=lambda g: win_rates[g], default=None)
    reach = (
        "no strength can be told"
        if best is None
        else (
            f"the highest that can be told is {win_rates[best]:.3f}, at {float(path.mean_kl[best]):.2f} nats and "
            f"{float(path.effective[best]):.0f} effective completions of {len(path.log_ratio)}"
        )
    )
    raise ConfigError(
        f"{asked} asks for a win rate of {target:.3f}, out of this tilt's reach: {reach}. Ask for less, draw more "
        "groups, or train (`nonpareil distill`)"
    )


def tilt_estimate(data: TiltGroups, path: TiltPath, strength: float, seed: int) -> TiltEstimate:
    """Win rate, KL and KL efficiency at a strength on the path, with intervals over prompts."""
    log_ratio = at_strength(path.log_ratio, path.strengths, strength)
    kl = kl_at_strength(path.kl, path.strengths, strength)
    parts = _of_prompts(data, log_ratio, kl)
    scored = ~data.rewards.isnan().all(1)
    weight, won, spent = parts[scored].unbind(1)
    bootstrap = Bootstrap(seed)
    tables = tilt_table(data.rewards[scored]).columns()

    def efficiency(means: Tensor) -> Tensor:
        least = group_least_kl(means[:, 1] / means[:, 0], TiltTable.of(means[:, 3:]))
        return least / (means[:, 2] / means[:, 0])

    rate = bootstrap.of_means([weight, won], lambda means: means[:, 1] / means[:, 0], scale="share")
    kls = bootstrap.of_means([weight, spent], lambda means: means[:, 1] / means[:, 0], scale="positive")
    found = bootstrap.of_means([weight, won, spent, tables], efficiency, scale="positive")
    return TiltEstimate(
        strength,
        rate,
        kls,
        found if shows_efficiency(kls.estimate, rate, data.rewards) else None,
        float(effective_samples(log_ratio[:, None])[0]),
    )


def _of_prompts(data: TiltGroups, log_ratio: Tensor, kl: Tensor) -> Float[Tensor, "b 3"]:
    """Of each prompt the mean weight, weight times quantile, and weight times KL; 0 where it has no reward."""
    weight = log_ratio.exp()
    values = torch.stack([weight, weight * data.quantile, weight * kl], dim=1)
    counts = torch.bincount(data.prompt, minlength=len(data.groups)).clamp(min=1)
    sums = torch.zeros(len(data.groups), 3, dtype=torch.float64).index_add_(0, data.prompt, values)
    return sums / counts[:, None]
