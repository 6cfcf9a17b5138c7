"""KL at equal win rate: exact on known curves, intervals those of a bootstrap by hand, nothing beyond a path."""

import math

import pytest
import torch
from torch import Tensor

from nonpareil.evaluation.equal_win_rate import PromptPath, at_win_rates, difference_at, path_between
from nonpareil.evaluation.intervals import Bootstrap
from nonpareil.maths.best_of_n import exponential_tilt, least_kl
from nonpareil.maths.bootstrap import Interval
from nonpareil.maths.group_best_of_n import group_kl, group_win_rate
from nonpareil.maths.interpolation import first_reached, value_at

RATES = (0.6, 0.7, 0.8)
UNTIED = torch.arange(16.0, dtype=torch.float64).repeat(40, 1)


def there(interval: Interval | None) -> Interval:
    assert interval is not None
    return interval


def path_of(positions: list[float], rate: Tensor, kl: Tensor, prompts: int = 40) -> PromptPath:
    return PromptPath(tuple(positions), rate.double().repeat(prompts, 1), kl.double().repeat(prompts, 1))


def best_of(n: list[float]) -> tuple[Tensor, Tensor]:
    counts = torch.tensor(n, dtype=torch.float64)
    return counts / (counts + 1), counts.log() - (counts - 1) / counts


def found(path: PromptPath, rewards: Tensor = UNTIED) -> list[tuple[float, float]]:
    rows = at_win_rates([path], rewards, RATES, Bootstrap())
    return [(there(row.kl).estimate, there(row.kl_efficiency).estimate) for row in rows if row.kl]


@pytest.mark.parametrize("positions", ["log N", "N", "order"])
def test_best_of_ns_own_curve_is_met_within_half_a_percent(positions: str) -> None:
    """Whatever its points are called: only how win rate and KL change together counts."""
    n = [1.3, 2.0, 3.0, 5.0, 8.0]
    at = {"log N": [math.log(each) for each in n], "N": [each - 1 for each in n], "order": [1.0, 2, 3, 4, 5]}
    for (kl, efficiency), rate in zip(found(path_of(at[positions], *best_of(n))), RATES, strict=True):
        true = float(best_of([rate / (1 - rate)])[1])
        assert kl == pytest.approx(true, rel=0.005)
        assert efficiency == pytest.approx(float(least_kl(torch.tensor([rate]))[0]) / true, rel=0.005)


def test_four_strengths_of_the_optimal_path_suffice_and_the_kl_itself_would_not() -> None:
    """Strengths .5, 1, 1.4, 2 of the tilt of c = 4: within half a percent; by cubics of the KL itself 30% off."""
    strengths = [0.5, 1.0, 1.4, 2.0]
    rate, kl = exponential_tilt(4 * torch.tensor(strengths, dtype=torch.float64))
    for (estimate, efficiency), target in zip(found(path_of(strengths, rate, kl)), RATES, strict=True):
        assert estimate == pytest.approx(float(least_kl(torch.tensor([target]))[0]), rel=0.005)
        assert efficiency == pytest.approx(1, rel=0.005)
    nodes = torch.tensor([0.0, *strengths], dtype=torch.float64)
    win, cost = (torch.cat([torch.tensor([start]), each])[None] for start, each in ((0.5, rate), (0.0, kl)))
    at = first_reached(nodes, win, torch.tensor([0.6], dtype=torch.float64))
    of_kl_itself = float(value_at(nodes, cost.double(), at)[0])
    assert of_kl_itself > 1.3 * float(least_kl(torch.tensor([0.6]))[0])


def error_of(positions: list[float], rate: Tensor, kl: Tensor) -> float:
    """The largest relative error of the KL at `RATES`, along a curve of which the efficiency is that of best-of-N
    or, where its points are on the frontier, 1."""
    on_frontier = torch.allclose(least_kl(rate), kl, rtol=1e-3)
    errors = []
    for (estimate, _), target in zip(found(path_of(positions, rate, kl)), RATES, strict=True):
        n = target / (1 - target)
        true = float(least_kl(torch.tensor([target]))[0]) if on_frontier else math.log(n) - (n - 1) / n
        errors.append(abs(estimate / true - 1))
    return max(errors)


def test_the_errors_that_the_documentation_states() -> None:
    of_policies = {(2.0, 4.0, 5.6, 8.0): 0.003, (3.0, 6.0): 0.018}
    for c, stated in of_policies.items():
        error = error_of(list(c), *exponential_tilt(torch.tensor(c, dtype=torch.float64)))
        assert error == pytest.approx(stated, abs=0.001)
    for n, stated in {(1.3, 2.0, 3.0, 5.0, 8.0): 0.001, (2.0, 4.0, 8.0): 0.040, (2.0, 8.0): 0.082}.items():
        error = error_of([math.log(each) for each in n], *best_of(list(n)))
        assert error == pytest.approx(stated, abs=0.001)


def test_with_ties_the_least_kl_is_that_of_the_groups() -> None:
    rewards = (torch.arange(32) < 6).double().repeat(40, 1)
    n = torch.tensor([1.5, 2.0, 3.0], dtype=torch.float64)
    path = path_of([1.0, 2.0, 3.0], group_win_rate(rewards, n)[0], group_kl(rewards, n)[0])
    ((kl, efficiency),) = found(path, rewards)
    assert kl > float(least_kl(torch.tensor([0.6]))[0])
    assert efficiency == pytest.approx(1, abs=0.02), (
        "all prompts alike, best-of-N is on the frontier under 0/1 rewards"
    )


def test_nothing_is_said_beyond_the_points() -> None:
    path = path_of([1.0, 2.0], torch.tensor([0.65, 0.72]), torch.tensor([0.2, 0.5]))
    low, middle, high = at_win_rates([path], UNTIED, RATES, Bootstrap())
    assert there(low.kl).estimate < there(middle.kl).estimate
    assert (high.position, high.kl, high.kl_efficiency) == (None, None, None)
    assert path.reach() == pytest.approx((0.5, 0.72))
    worse = path_of([1.0, 2.0], torch.tensor([0.45, 0.4]), torch.tensor([0.2, 0.5]))
    assert at_win_rates([worse], UNTIED, [0.6], Bootstrap())[0].kl is None


def noisy(seed: int, prompts: int = 60, last: float = 0.85) -> PromptPath:
    generator = torch.Generator().manual_seed(seed)
    rate = torch.tensor([0.6, 0.72, last]) + 0.2 * torch.randn(prompts, 3, generator=generator)
    kl = torch.tensor([0.2, 0.6, 1.4]) * (0.5 + torch.rand(prompts, 1, generator=generator))
    return PromptPath((1.0, 2.0, 3.0), rate.double().clamp(0, 1), kl.double())


def by_hand(path: PromptPath, weights: Tensor, target: float) -> float:
    """One resample: the weighted means, then the crossing found on a fine grid of the two curves."""
    rate, kl = ((weights[:, None] * each).sum(0) / weights.sum() for each in (path.win_rate, path.kl))
    nodes = torch.tensor([0.0, *path.positions], dtype=torch.float64)
    grid = torch.linspace(0, nodes[-1].item(), 401, dtype=torch.float64)
    curves = [
        value_at(nodes, torch.cat([torch.tensor([start]), each])[None].double().expand(len(grid), -1), grid)
        for start, each in ((0.5, rate), (0.0, kl.sqrt()))
    ]
    there = (curves[0] >= target).nonzero()
    return float(curves[1][there[0, 0]] ** 2) if len(there) else math.inf


def test_intervals_are_those_of_whole_paths_resampled_by_prompt() -> None:
    path, other = noisy(1), noisy(2)
    rewards = torch.rand(60, 16, generator=torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(4)
    weights = torch.empty(300, 60, dtype=torch.float64).exponential_(generator=generator)
    target = 0.65
    each = [torch.tensor([by_hand(p, w, target) for w in weights]) for p in (path, other)]
    (row,) = at_win_rates([path], rewards, [target], Bootstrap())
    pair = there(difference_at([path], [other], target, Bootstrap()))
    for interval, values in ((there(row.kl), each[0]), (pair, each[0] - each[1])):
        assert interval.standard_error == pytest.approx(values.std().item(), rel=0.1)
        assert interval.low == pytest.approx(values.quantile(0.025).item(), abs=0.35 * values.std().item())
        assert interval.high == pytest.approx(values.quantile(0.975).item(), abs=0.35 * values.std().item())
    same = there(difference_at([path], [path], target, Bootstrap()))
    assert (same.low, same.high) == (0, 0), "paired: one policy less itself"


def test_where_a_path_spends_next_to_nothing_its_efficiency_is_not_known() -> None:
    """Beside one that spends what it should: the win rates, and their noise, are the same."""
    path, rewards = noisy(1), torch.rand(60, 16, generator=torch.Generator().manual_seed(3))
    nothing = PromptPath(path.positions, path.win_rate, 1e-4 * path.kl)
    for one, known in ((path, True), (nothing, False)):
        (row,) = at_win_rates([one], rewards, [0.65], Bootstrap())
        assert row.kl is not None
        assert (row.kl_efficiency is not None) == known


def test_a_resample_that_never_gets_there_is_an_open_end() -> None:
    path, better = noisy(1, last=0.74), noisy(2)
    rate = path.win_rate.mean(0).amax().item() - 0.005
    (row,) = at_win_rates([path], torch.rand(60, 16), [rate], Bootstrap())
    assert (there(row.kl).high, there(row.position).high) == (math.inf, math.inf)
    assert there(row.kl_efficiency).low == 0
    assert math.isfinite(there(row.kl).low)
    pair = there(difference_at([path], [better], rate, Bootstrap()))
    assert pair.high == math.inf
    assert math.isfinite(pair.low)
    both = there(difference_at([path], [path], rate, Bootstrap()))
    assert (both.low, both.high) == (-math.inf, math.inf), "where neither does, it may be anything"


def test_seeds_are_averaged_at_the_win_rate_and_all_must_reach_it() -> None:
    slow = path_of([1.0, 2.0], torch.tensor([0.55, 0.65]), torch.tensor([0.05, 0.4]))
    fast = path_of([1.0, 2.0], torch.tensor([0.6, 0.75]), torch.tensor([0.1, 0.9]))
    one, two, both = (at_win_rates(p, UNTIED, RATES, Bootstrap()) for p in ([slow], [fast], [slow, fast]))
    mean = (there(one[0].kl).estimate + there(two[0].kl).estimate) / 2
    assert there(both[0].kl).estimate == pytest.approx(mean)
    assert there(two[1].kl).estimate > mean
    assert both[1].kl is None


def test_a_prompt_without_a_pair_is_left_out_of_the_whole_path() -> None:
    path = noisy(1)
    rate = path.win_rate.clone()
    rate[7, 1] = math.nan
    kept = torch.arange(60) != 7
    fewer = PromptPath(path.positions, path.win_rate[kept], path.kl[kept])
    (row,), (other,) = (
        at_win_rates([each], torch.rand(len(each.kl), 16), [0.7], Bootstrap())
        for each in (PromptPath(path.positions, rate, path.kl), fewer)
    )
    assert there(row.kl).estimate == pytest.approx(there(other.kl).estimate, rel=1e-12)
    assert there(row.kl).num_dropped == 1


def test_the_drawn_line_goes_through_the_points() -> None:
    path = noisy(1)
    kl, rate = path_between(path, 301)
    assert (kl[0], rate[0]) == (0, 0.5)
    for place, index in ((0, 100), (1, 200), (2, 300)):
        assert kl[index] == pytest.approx(path.kl[:, place].mean().item())
        assert rate[index] == pytest.approx(path.win_rate[:, place].mean().item())
