"""Beyond what the groups show: pass@n for more draws than there are, by a model; and stopping early."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nonpareil.errors import ConfigError
from nonpareil.evaluation.intervals import Bootstrap
from nonpareil.evaluation.worth import MARKED_N, is_zero_one
from nonpareil.maths.adaptive_n import draws_to_first_success, threshold_draws, threshold_kl
from nonpareil.maths.best_of_n import kl_upper_bound
from nonpareil.maths.beta_binomial import BetaFit, fit_beta, pass_at_n
from nonpareil.maths.bootstrap import Interval
from nonpareil.maths.group_best_of_n import group_kl
from nonpareil.maths.order_statistics import best_of_n_curve

MODEL = "a model, not measured: success rates of prompts as a Beta law, fitted by maximum likelihood"


@dataclass(frozen=True)
class BeyondPoint:
    """pass@n by the model."""

    n: int
    pass_at_n: Interval


@dataclass(frozen=True)
class Beyond:
    """pass@n for more draws than the groups have. None of it was measured."""

    points: tuple[BeyondPoint, ...]
    alpha: float
    beta: float
    largest_gap: float
    """Between the model and the unbiased pass@n, over the n that the groups show."""
    model: str = MODEL

    def sentence(self) -> str:
        """How far the model may be trusted."""
        return (
            f"N beyond the draws is {self.model} (alpha {self.alpha:.3g}, beta {self.beta:.3g}). Where it can be "
            f"held against the groups it is off by {self.largest_gap:.3f} at most; prompts that never succeed are "
            "taken for hard ones, not impossible ones."
        )


def beyond(rewards: Float[Tensor, "b m"], largest: int, bootstrap: Bootstrap) -> Beyond:
    """pass@n at powers of two beyond m, up to `largest`.

    Raises:
        ConfigError: rewards other than 0 and 1, or a `largest` that the groups show themselves.
        DataError: fewer than two draws for each prompt.
    """
    size = rewards.shape[1]
    if not is_zero_one(rewards, rewards):
        raise ConfigError(
            f"extrapolate={largest} needs rewards that are 0 or 1, and these are not: no law says how their best "
            "grows beyond the draws; draw more completions"
        )
    if largest <= size:
        raise ConfigError(
            f"extrapolate={largest} is no more than the {size} completions per prompt, which the curve shows itself"
        )
    counts = torch.stack([(rewards == 1).sum(1), (~rewards.isnan()).sum(1)], 1)
    counts, place = counts[counts[:, 1] > 0].double().unique(dim=0, return_inverse=True)
    prompts = torch.nn.functional.one_hot(place, len(counts)).double()
    fitted: dict[int, BetaFit] = {}

    def fits(means: Tensor) -> BetaFit:
        """The same resamples stand behind every n, so they are fitted once."""
        if len(means) not in fitted:
            fitted[len(means)] = fit_beta(means, counts[:, 0], counts[:, 1])
        return fitted[len(means)]

    def at(n: int) -> Callable[[Tensor], Tensor]:
        return lambda means: pass_at_n(fits(means), n)

    asked = [2**power for power in range(1, 64) if size < 2**power < largest] + [largest]
    points = [BeyondPoint(n, bootstrap.of_means([prompts], at(n), scale="share")) for n in asked]
    fit = fits(prompts.mean(0, keepdim=True))
    shown = best_of_n_curve(rewards)
    gaps = [
        abs(pass_at_n(fit, n).item() - shown[:, n - 1].nanmean().item())
        for n in range(1, size + 1)
        if not shown[:, n - 1].isnan().any()
    ]
    alpha, beta = (fit.mean * fit.size).item(), ((1 - fit.mean) * fit.size).item()
    return Beyond(tuple(points), alpha, beta, max(gaps, default=float("nan")))


@dataclass(frozen=True)
class EarlyStop:
    """What stopping at a draw that is good enough costs, beside best-of-n of the same quality."""

    n: int
    draws: float
    """In the mean."""
    tokens_per_prompt: float
    kl: float
    """To one draw, nats."""
    kl_of_best_of_n: float


@dataclass(frozen=True)
class EarlyStops:
    """Adaptive N."""

    at: str
    """Where it stops: `first success`, or `quantile`."""
    points: tuple[EarlyStop, ...]

    def sentence(self) -> str:
        """What is compared."""
        last = self.points[-1]
        saved = f"{last.draws:.3g} draws in place of {last.n}"
        if self.at == "first success":
            return f"Stopping at the first success answers just as best-of-N does: {saved}."
        return (
            f"Stopping at the first draw above the quantile (N-1)/(N+1) wins as often as best-of-N: {saved} in the "
            f"mean, at KL {last.kl:.3f} in place of {last.kl_of_best_of_n:.3f}. Formulas for rewards that never "
            "tie and a quantile that is known for each prompt; a calibrated one saves less."
        )


def early_stops(rewards: Float[Tensor, "b m"], reach: int, mean_length: float) -> EarlyStops:
    """Adaptive N at 2, 4, 8, ... up to `reach`, over prompts that have so many rewards.

    Of rewards 0 and 1 it stops at the first success, exactly and off the groups; of others at a quantile.
    """
    shown = [n for n in MARKED_N if n <= reach] or [reach]
    if is_zero_one(rewards, rewards):
        draws = draws_to_first_success(rewards, reach)
        kept = ~draws[:, -1].isnan()
        taken = [draws[kept, n - 1].mean().item() for n in shown]
        spent = group_kl(rewards[kept], torch.tensor(shown).double()).nanmean(0).tolist()
        both = list(zip(spent, spent, strict=True))
    else:
        taken = [threshold_draws(float(n)) for n in shown]
        both = [(threshold_kl(float(n)), kl_upper_bound(float(n))) for n in shown]
    points = [
        EarlyStop(n, count, count * mean_length, *kl) for n, count, kl in zip(shown, taken, both, strict=True)
    ]
    return EarlyStops("first success" if is_zero_one(rewards, rewards) else "quantile", tuple(points))
