"""What each quantile estimator and each regression weighting does in expectation: finite sums, no sampling noise.

    python benchmarks/estimators.py [--write docs/estimators.md]

Prints Markdown tables; `--write` puts them between the markers of a page. Nats throughout. Rewards have no ties
unless they are called binary: then of m reference draws, c ~ Binomial(m, u) lie below a completion of quantile u.
"""

import argparse
import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nonpareil.maths.best_of_n import equivalent_n, kl_upper_bound, least_kl, win_rate
from nonpareil.maths.order_statistics import harmonic_log_quantile, rank_weights
from nonpareil.maths.quantiles import (
    QuantileEstimator,
    log_quantile,
    log_tilt_estimate,
    two_sample_log_quantile,
    two_sample_log_tilt,
)
from nonpareil.methods.jbond import TwoSampleEstimator

BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
SIZES = (2, 4, 8, 16, 32, 64, 300)
ESTIMATORS: tuple[QuantileEstimator, ...] = ("plug_in", "inclusive_plug_in", "harmonic")
QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
TARGETS = (2, 4, 8, 16)
SUCCESS_RATES = (0.1, 0.5, 0.9)
JBOND_RATES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.95)
REGRESSIONS = ((8, 4), (8, 8), (16, 8), (32, 8), (8, 16), (8, 32))
WEIGHTINGS = (
    *("uniform, own rank counted", "uniform", "clipped at -8", "clipped at -6", "clipped at -4"),
    *("rank", "tilt", "sqrt_tilt", "winner of 2", "winner of 4"),
)


# --- Exact expectations


@functools.cache
def quadrature(points: int = 600) -> tuple[Tensor, Tensor]:
    """Nodes u in (0, 1) and their weights; Gauss-Legendre in u^(1/3), which tames log u at 0."""
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(points))
    root = (nodes + 1) / 2
    return root**3, 1.5 * weights * root.square()


def log_binomial(m: int, u: Tensor) -> Tensor:
    """log P(c) of c ~ Binomial(m, u), [u, m + 1]."""
    c, u = torch.arange(m + 1, dtype=torch.float64), u[:, None]
    log_ways = math.lgamma(m + 1) - torch.lgamma(c + 1) - torch.lgamma(m - c + 1)
    return log_ways + torch.xlogy(c, u) + torch.special.xlog1py(m - c, -u)


def estimates(estimator: QuantileEstimator, m: int) -> Tensor:
    """The estimate of a reward with c = 0 .. m of its m reference rewards below it."""
    references = torch.arange(m, dtype=torch.float64)[None]
    rewards = torch.arange(m + 1, dtype=torch.float64)[None] - 0.5
    return log_quantile(rewards, references, estimator)[0]


def moments(estimator: QuantileEstimator, m: int, u: Tensor) -> tuple[Tensor, Tensor]:
    """Bias and variance, as an estimate of log u, at each u."""
    chance, value = log_binomial(m, u).exp(), estimates(estimator, m)
    mean = chance @ value
    return mean - u.log(), (chance * (value - mean[:, None]).square()).sum(-1)


@dataclass(frozen=True)
class Law:
    """A policy pi ∝ pi_ref exp(g(u)) against best-of-n; KLs in nats."""

    mass: float
    """The integral of exp(g): 1 where g is a log-ratio as it stands."""
    win: float
    kl: float
    backward: float
    forward: float

    @property
    def efficiency(self) -> float:
        """Least KL of any policy with this win rate, over the KL spent."""
        return least_kl(self.win) / self.kl if self.kl > 1e-9 else math.nan


def law(g: Tensor, n: int) -> Law:
    """The policy that a log-tilt g, given at the quadrature's nodes, ends in."""
    u, du = quadrature(len(g))
    mass = (du * g.exp()).sum()
    log_ratio = g - mass.log()
    best = math.log(n) + (n - 1) * u.log()
    pi, pi_n = du * log_ratio.exp(), du * best.exp()
    return Law(
        mass=mass.item(),
        win=(pi * u).sum().item(),
        kl=(pi * log_ratio).sum().item(),
        backward=(pi * (log_ratio - best)).sum().item(),
        forward=(pi_n * (best - log_ratio)).sum().item(),
    )


def fixed_point(estimator: QuantileEstimator, m: int, n: int) -> Law:
    """Where the backward KL ends: pi ∝ pi_ref exp((n - 1) E[estimate | u])."""
    u, _ = quadrature()
    return law((n - 1) * (log_binomial(m, u).exp() @ estimates(estimator, m)), n)


def binary_fixed_point(
    estimator: QuantileEstimator, m: int, n: int, q: float, tie_term: bool = True
) -> float:
    """The success rate where the backward KL ends, from success rate q, with or without the tie term."""
    right = torch.arange(m + 1)[:, None]
    references = (torch.arange(m) < right).double()  # one row for each number of right reference answers
    rewards = torch.tensor([[0.0, 1.0]], dtype=torch.float64).expand(m + 1, 2)
    if tie_term:
        tilt = log_tilt_estimate(rewards, references, n, estimator)
    else:
        tilt = (n - 1) * log_quantile(rewards, references, estimator)
    chance = log_binomial(m, torch.tensor([q], dtype=torch.float64))[0].exp()
    wrong, success = (chance @ tilt).exp().tolist()
    return q * success / (q * success + (1 - q) * wrong)


def jbond_success(estimator: TwoSampleEstimator, q: float, w: float) -> float:
    """The success rate where J-BOND with a fixed anchor ends, from success rate q; w weighs the backward KL."""
    anchors = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    chance = (anchors * q + (1 - anchors) * (1 - q)).prod(-1)
    wrong, right = (chance @ _two_sample_worth(estimator, torch.full((4,), r), anchors) for r in (0.0, 1.0))
    best, prior = 1 - (1 - q) ** 2, math.log(q / (1 - q))

    def slope(p: float) -> float:
        log_odds = math.log(p / (1 - p))
        return (1 - w) * ((1 - best) / (1 - p) - best / p) + w * (log_odds - prior - (right - wrong).item())

    low, high = 1e-9, 1 - 1e-9
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return low


def _two_sample_worth(estimator: TwoSampleEstimator, rewards: Tensor, anchors: Tensor) -> Tensor:
    worth = two_sample_log_tilt if estimator == "tie_aware" else two_sample_log_quantile
    return worth(rewards.double(), anchors)


# --- Pointwise regression on stored groups


def regression(weighting: str, m: int, n: int) -> tuple[Tensor, Tensor]:
    """Weights (mean 1) and targets of ranks 1 .. m of a group drawn from pi_ref.

    The target is log n + (n - 1) E[log u | rank], the rank taken among the m - 1 *other* samples. `winner of k`
    weighs a sample by its chance of winning a random k of the group and ranks it among the m - k left out: given
    its quantile these are fresh draws, so the target keeps its mean.
    """
    rank, drawn = torch.arange(1, m + 1, dtype=torch.float64), 1
    if weighting.startswith("winner of "):
        drawn = int(weighting.removeprefix("winner of "))
    left_out = m if weighting == "uniform, own rank counted" else m - drawn
    below = (rank - drawn).clamp(min=0)
    target = math.log(n) + (n - 1) * harmonic_log_quantile(below, left_out)
    weight = rank_weights(rank[None], n if weighting == "rank" else drawn)[0]
    if weighting.startswith("clipped at "):
        target = target.clamp(min=float(weighting.removeprefix("clipped at ")))
    elif weighting in ("tilt", "sqrt_tilt"):
        weight = (target / (1 if weighting == "tilt" else 2)).exp()
    return weight / weight.mean(), target


@dataclass(frozen=True)
class Signal:
    """What a weighting does to the gradient."""

    worst_quarter: float
    """Share of the squared gradient, at the start, of the lowest quarter of ranks."""
    first_step: float
    """Squared correlation, at the start, of a sample's pull w t with its quantile u."""
    noise: float
    """Root mean square of w (t - g), what is left at the end; nats."""


def regress(weighting: str, m: int, n: int) -> tuple[Law, Signal]:
    """The minimiser g(u) = E[w t | u] / E[w | u] of the weighted squared error, and its gradient's noise."""
    u, du = quadrature()
    weight, target = regression(weighting, m, n)
    log_chance = log_binomial(m - 1, u)  # of the sample's own rank less 1
    g = (log_chance + weight.log()).softmax(-1) @ target

    pull = weight * target
    mean_quantile = torch.arange(1, m + 1) / (m + 1)
    squared = pull.square()
    covariance = (pull * (mean_quantile - 0.5)).mean()
    left = (log_chance.exp() * (weight * (target - g[:, None])).square()).sum(-1)
    signal = Signal(
        worst_quarter=(squared[: m // 4].sum() / squared.sum()).item(),
        first_step=(12 * covariance.square() / squared.mean()).item(),
        noise=(du * left).sum().sqrt().item(),
    )
    return law(g, n), signal


# --- Tables


def number(x: float, digits: int) -> str:
    """As the docs write it: no zero before the point, no negative zero."""
    if math.isnan(x):
        return "-"
    text = f"{round(x, digits) + 0.0:.{digits}f}"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text


def table(header: list[str], rows: Iterator[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *rows])


def named(m: int) -> tuple[QuantileEstimator, ...]:
    return (*ESTIMATORS, "two_sample") if m == 2 else ESTIMATORS


def error_rows() -> Iterator[list[str]]:
    u, du = quadrature()
    for m in SIZES:
        for name in named(m):
            bias, variance = moments(name, m, u)
            cells = []
            for n in (1, 4, 8):
                density = du * n * u ** (n - 1)
                spread = (density * variance).sum().sqrt()
                error = (density * (bias.square() + variance)).sum().sqrt()
                cells.append(" / ".join(number(x.item(), 3) for x in ((density * bias).sum(), spread, error)))
            yield [str(m), f"`{name}`", *cells]


def pointwise_rows(sizes: tuple[int, ...] = (2, 8, 32)) -> Iterator[list[str]]:
    for m in sizes:
        for name in named(m):
            bias, variance = moments(name, m, torch.tensor(QUANTILES, dtype=torch.float64))
            pairs = zip(bias.tolist(), variance.sqrt().tolist(), strict=True)
            yield [str(m), f"`{name}`", *(f"{number(b, 2)} / {number(s, 2)}" for b, s in pairs)]


def fixed_point_rows() -> Iterator[list[str]]:
    exact = ((float(n), kl_upper_bound(float(n)), least_kl(win_rate(float(n)))) for n in TARGETS)
    best = [((n, 2), (kl, 3), (least / kl, 3), (0.0, 3)) for n, kl, least in exact]
    yield ["", "best-of-N", *(" / ".join(number(*v) for v in cell) for cell in best)]
    for m in SIZES:
        for name in named(m):
            laws = [fixed_point(name, m, n) for n in TARGETS]
            values = [((equivalent_n(x.win), 2), (x.kl, 3), (x.efficiency, 3), (x.backward, 3)) for x in laws]
            yield [str(m), f"`{name}`", *(" / ".join(number(*v) for v in cell) for cell in values)]


def binary_rows() -> Iterator[list[str]]:
    for q, n, m in itertools.product(SUCCESS_RATES, TARGETS[:3], (2, 8, 32)):
        reached = [binary_fixed_point(name, m, n, q) for name in ESTIMATORS]
        reached += [binary_fixed_point(name, m, n, q, tie_term=False) for name in ESTIMATORS[:2]]
        best = 1 - (1 - q) ** n
        yield [number(q, 1), str(n), str(m), *(number(success, 3) for success in (best, *reached))]


def jbond_rows() -> Iterator[list[str]]:
    names: tuple[TwoSampleEstimator, ...] = ("two_sample", "tie_aware")
    for q in JBOND_RATES:
        best = 1 - (1 - q) ** 2
        reached = [jbond_success(name, q, w) for w in (0.5, 1.0) for name in names]
        cells = (f"{number(p, 3)} ({number((p - q) / (best - q), 2)})" for p in reached)
        yield [number(q, 2), number(best, 3), *cells]


def regression_rows() -> Iterator[list[str]]:
    for m, n in REGRESSIONS:
        for weighting in WEIGHTINGS:
            if weighting == "rank" and n > m:
                continue  # no n of m to win
            x, signal = regress(weighting, m, n)
            figures = (x.mass, x.win, x.kl, x.efficiency, x.backward, x.forward)
            gradient = ((signal.worst_quarter, 2), (signal.first_step, 2), (signal.noise, 2))
            ends = [number(equivalent_n(x.win), 2), *(number(v, 3) for v in figures)]
            yield [str(m), str(n), weighting, *ends, *(number(*v) for v in gradient)]


def tables() -> str:
    """All tables, each under its heading."""
    populations = ["start", "best-of-4", "best-of-8"]
    at = [f"u = {number(u, 2)}" for u in QUANTILES]
    ends = ["N reached", "mass", "win rate", "KL", "efficiency", "KL(pi‖pi_N)", "KL(pi_N‖pi)"]
    gradient = ["worst quarter", "first step", "noise"]
    names = [f"`{name}`" for name in ESTIMATORS]
    parts = {
        "1. Error of one estimate: mean bias / standard deviation / RMSE": table(
            ["m", "estimator", *populations], error_rows()
        ),
        "2. Bias / standard deviation at a quantile": table(["m", "estimator", *at], pointwise_rows()),
        "3. Where the backward KL ends: N reached / KL / KL efficiency / KL to best-of-N": table(
            ["m", "estimator", *(f"N = {n}" for n in TARGETS)], fixed_point_rows()
        ),
        "4. Binary rewards: success rate reached from success rate q": table(
            ["q", "N", "m", "best-of-N", *names, *(f"{name}, no tie term" for name in names[:2])],
            binary_rows(),
        ),
        "5. Pointwise regression on stored groups": table(
            ["m", "N", "weighting", *ends, *gradient], regression_rows()
        ),
        "6. J-BOND with binary rewards: success rate reached (share of best-of-2's gain)": table(
            [
                "q",
                "best-of-2",
                *(f"`{name}`, w = {w}" for w in (".5", "1") for name in ("two_sample", "tie_aware")),
            ],
            jbond_rows(),
        ),
    }
    return "\n\n".join(f"### {title}\n\n{body}" for title, body in parts.items())


def between_markers(page: str) -> str:
    """What a page holds between its markers."""
    return page.split(BEGIN, 1)[1].split(END, 1)[0].strip()


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--write", type=Path, metavar="PAGE", help="a page that holds the two markers")
    args = parser.parse_args()
    if args.write is None:
        print(tables())
        return
    page = args.write.read_text(encoding="utf-8")
    if BEGIN not in page or END not in page:
        parser.error(f"--write {args.write}: the page must hold the lines {BEGIN} and {END}")
    head, tail = page.split(BEGIN, 1)[0], page.split(END, 1)[1]
    args.write.write_text(f"{head}{BEGIN}\n\n{tables()}\n\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
