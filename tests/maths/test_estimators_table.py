"""docs/estimators.md: its formulas against truths found another way, and the page against the script."""

import importlib.util
import itertools
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nonpareil.maths.best_of_n import equivalent_n, kl_upper_bound

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "estimators.py"
PAGE = ROOT / "docs" / "estimators.md"
F64 = torch.float64


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("estimators", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["estimators"] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["estimators"]


def taylor_tail(u, m):
    """sum_{k>m} (1 - u)^k / k."""
    return -torch.log(u) - sum((1 - u) ** k / k for k in range(1, m + 1))


# --- Estimators


def test_moments_worked_by_hand(script):
    u = torch.tensor([0.5, 0.2], dtype=F64)
    bias, variance = script.moments("plug_in", 2, u)
    for x, b, v in zip(u.tolist(), bias.tolist(), variance.tolist(), strict=True):
        chances = [(1 - x) ** 2, 2 * x * (1 - x), x**2]
        values = [math.log(1 / 3), math.log(2 / 3), 0.0]
        mean = sum(c * value for c, value in zip(chances, values, strict=True))
        assert b == pytest.approx(mean - math.log(x), abs=1e-12)
        assert v == pytest.approx(
            sum(c * (value - mean) ** 2 for c, value in zip(chances, values, strict=True)), abs=1e-12
        )


@pytest.mark.parametrize("m", [1, 2, 8, 32])
def test_the_harmonic_bias_is_the_taylor_tail_and_1_over_m_plus_1_at_the_start(script, m):
    u, du = script.quadrature()
    bias, _ = script.moments("harmonic", m, u)
    above = u > 1e-3  # the tail cancels near 0
    torch.testing.assert_close(bias[above], taylor_tail(u[above], m), atol=1e-6, rtol=0)
    assert (du * bias).sum().item() == pytest.approx(1 / (m + 1), abs=1e-8)


@pytest.mark.parametrize("n", [2, 4, 8, 16])
def test_an_unbiased_oracle_ends_at_best_of_n(script, n):
    u, _ = script.quadrature()
    oracle = script.law((n - 1) * u.log() + 0.7, n)
    assert oracle.win == pytest.approx(n / (n + 1), abs=1e-10)
    assert oracle.kl == pytest.approx(math.log(n) - (n - 1) / n, abs=1e-10)
    assert oracle.mass == pytest.approx(math.exp(0.7) / n, abs=1e-10)
    assert (oracle.backward, oracle.forward) == pytest.approx((0.0, 0.0), abs=1e-9)


def test_two_sample_ends_a_little_beyond_best_of_2(script):
    end = script.fixed_point("two_sample", 2, 2)
    assert (end.win, end.kl) == pytest.approx((0.6763, 0.2092), abs=5e-5)


def test_the_end_of_training_against_a_fine_discrete_reference(script):
    outcomes = 20_000
    u = (torch.arange(outcomes, dtype=F64) + 0.5) / outcomes
    values = [math.log(0.25), math.log(0.5), 0.0]  # inclusive_plug_in of 0, 1, 2 of 2
    chances = [(1 - u) ** 2, 2 * u * (1 - u), u**2]
    log_ratio = 7 * sum(c * value for c, value in zip(chances, values, strict=True))
    pi = log_ratio.softmax(-1)
    end = script.fixed_point("inclusive_plug_in", 2, 8)
    assert end.win == pytest.approx((pi * u).sum().item(), abs=1e-6)
    assert end.kl == pytest.approx((pi * (pi * outcomes).log()).sum().item(), abs=1e-6)


@pytest.mark.parametrize("q", [0.1, 0.5, 0.9])
def test_binary_ends_worked_by_hand_and_in_the_limit(script, q):
    # Without the tie term at N = 2, m = 2: right answers get 0, wrong ones log(1/4), log(1/2), 0 for 0, 1, 2 wrong.
    wrong = q**2 * math.log(0.25) + 2 * q * (1 - q) * math.log(0.5)
    expected = q / (q + (1 - q) * math.exp(wrong))
    assert script.binary_fixed_point("inclusive_plug_in", 2, 2, q, tie_term=False) == pytest.approx(expected)
    for n in (2, 4):
        limit = script.binary_fixed_point("harmonic", 2000, n, q)
        assert limit == pytest.approx(1 - (1 - q) ** n, abs=1e-3)


# --- Regression


@pytest.mark.parametrize(("m", "n"), [(4, 2), (8, 8), (8, 16)])
def test_unbiased_targets_miss_the_log_tilt_by_the_taylor_tail_only(script, m, n):
    u, _ = script.quadrature()
    u_far = u > 1e-2

    def minimiser(weighting):
        weight, target = script.regression(weighting, m, n)
        chance = script.log_binomial(m - 1, u).exp()
        return (chance @ (weight * target)) / (chance @ weight)

    log_tilt = math.log(n) + (n - 1) * u.log()
    for weighting, left_out in (("uniform", m - 1), ("winner of 2", m - 2)):
        expected = log_tilt + (n - 1) * taylor_tail(u, left_out)
        torch.testing.assert_close(minimiser(weighting)[u_far], expected[u_far], atol=1e-8, rtol=1e-8)
    shifted = minimiser("uniform") - (n - 1) / m
    torch.testing.assert_close(minimiser("uniform, own rank counted"), shifted)


@pytest.mark.parametrize("k", [2, 4])
def test_winner_of_k_is_the_mean_over_all_subsets(script, k):
    m, n = 7, 5
    weight, target = script.regression(f"winner of {k}", m, n)
    wins, seen = torch.zeros(m, dtype=F64), torch.zeros(m, dtype=F64)
    for subset in itertools.combinations(range(m), k):
        winner = max(subset)
        below = sum(i < winner for i in range(m) if i not in subset)
        harmonic = sum(1 / j for j in range(1, below + 1)) - sum(1 / j for j in range(1, m - k + 1))
        wins[winner] += 1
        seen[winner] += math.log(n) + (n - 1) * harmonic
    torch.testing.assert_close(weight, wins / wins.mean())
    torch.testing.assert_close(target[wins > 0], (seen / wins)[wins > 0])


def test_the_noise_of_uniform_weights_is_that_of_the_estimator(script):
    u, du = script.quadrature()
    _, variance = script.moments("harmonic", 7, u)
    _, signal = script.regress("uniform", 8, 5)
    assert signal.noise == pytest.approx(4 * (du * variance).sum().sqrt().item())


def test_the_first_step_against_sampled_groups(script):
    weight, target = script.regression("clipped at -4", 8, 8)
    u = torch.rand(40_000, 8, dtype=F64, generator=torch.Generator().manual_seed(0)).sort(-1).values
    pull = (weight * target).expand_as(u)
    correlation = (pull * (u - 0.5)).mean() / (pull.square().mean() / 12).sqrt()
    _, signal = script.regress("clipped at -4", 8, 8)
    assert signal.first_step == pytest.approx(correlation.square().item(), abs=0.01)
    assert signal.worst_quarter == pytest.approx((pull[0, :2].square().sum() / pull[0].square().sum()).item())


@pytest.mark.parametrize(
    ("weighting", "lowest", "highest"), [("uniform", 7.9, 8.1), ("uniform, own rank counted", 16, 17)]
)
def test_a_softmax_policy_needs_targets_of_mass_one(script, weighting, lowest, highest):
    """Fitted to ranks that count the sample itself, the policy must put the missing mass somewhere."""
    outcomes = 40
    u = (torch.arange(outcomes, dtype=F64) + 0.5) / outcomes
    weight, target = script.regression(weighting, 8, 8)
    g = (script.log_binomial(7, u) + weight.log()).softmax(-1) @ target
    logits = torch.zeros(outcomes, dtype=F64, requires_grad=True)
    optimiser = torch.optim.LBFGS([logits], max_iter=2000, line_search_fn="strong_wolfe")

    def loss():
        optimiser.zero_grad()
        value = (logits.log_softmax(-1) + math.log(outcomes) - g).square().mean()
        value.backward()
        return value

    optimiser.step(loss)
    reached = equivalent_n((logits.detach().softmax(-1) * u).sum().item())
    assert lowest < reached < highest


# --- What the page recommends


@pytest.mark.parametrize("n", [4, 8, 16])
@pytest.mark.parametrize("m", [4, 8, 16, 32])
def test_harmonic_is_the_nearest_to_best_of_n(script, m, n):
    distance = {name: script.fixed_point(name, m, n).backward for name in script.ESTIMATORS}
    assert min(distance, key=distance.get) == "harmonic"


@pytest.mark.parametrize("m", [8, 16, 32])
def test_a_clipped_target_halves_the_noise_at_best_of_ns_efficiency(script, m):
    plain, noisy = script.regress("uniform", m, 8)
    clipped, quiet = script.regress("clipped at -6", m, 8)
    assert quiet.noise < 0.53 * noisy.noise
    assert clipped.efficiency >= plain.efficiency
    assert equivalent_n(clipped.win) > 7.7
    for weighting in ("tilt", "sqrt_tilt", "rank"):
        biased, _ = script.regress(weighting, m, 8)
        assert biased.backward > clipped.backward
    assert plain.kl == pytest.approx(kl_upper_bound(8.0), abs=1e-3)


# --- The page


def test_the_page_holds_what_the_script_prints(script):
    assert script.between_markers(PAGE.read_text(encoding="utf-8")) == script.tables()


def test_write_changes_nothing_but_the_tables(tmp_path):
    page = tmp_path / "page.md"
    text = PAGE.read_text(encoding="utf-8")
    page.write_text(text.replace("### 1. Error", "### 1. Old"), encoding="utf-8")
    subprocess.run([sys.executable, str(SCRIPT), "--write", str(page)], check=True)
    assert page.read_text(encoding="utf-8") == text


def test_a_page_without_markers_is_refused(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("nothing", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--write", str(page)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "must hold the lines <!-- tables: begin -->" in done.stderr
    assert page.read_text(encoding="utf-8") == "nothing"


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(0.5, 2, ".50"), (-0.05, 2, "-.05"), (10.04, 1, "10.0"), (-1e-9, 3, ".000"), (math.nan, 2, "-")],
)
def test_numbers_as_the_docs_write_them(script, value, digits, text):
    assert script.number(value, digits) == text
