"""The guided law, by enumeration: best-of-N with the true value, and known with any other."""

import math

import pytest
import torch

from nonpareil.errors import ConfigError
from nonpareil.maths.best_of_n import distribution
from nonpareil.maths.guidance import Guidance, guided_kl, guided_logprobs, likeliest_tokens

F64 = torch.float64
END, VOCABULARY, LONGEST = 0, 5, 3
UNCUT = Guidance(likeliest=VOCABULARY, max_advantage=math.inf)


class Tabular:
    """Random next-token probabilities behind every prefix; a completion ends with END or at its longest."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)
        self.logprobs: dict[tuple[int, ...], torch.Tensor] = {}
        self.completions: dict[tuple[int, ...], float] = {}
        self._grow((), 0.0)

    def _grow(self, prefix: tuple[int, ...], logprob: float) -> None:
        if len(prefix) == LONGEST or prefix[-1:] == (END,):
            self.completions[prefix] = math.exp(logprob)
            return
        logits = 1.5 * torch.randn(VOCABULARY, generator=self.generator, dtype=F64)
        self.logprobs[prefix] = logits.log_softmax(-1)
        for token in range(VOCABULARY):
            self._grow((*prefix, token), logprob + self.logprobs[prefix][token].item())

    def best_of(self, n: float, rewards: torch.Tensor) -> dict[tuple[int, ...], float]:
        """The share of each completion among the best of n; equal rewards share."""
        best = distribution(torch.tensor([*self.completions.values()], dtype=F64), rewards, n)
        return dict(zip(self.completions, best.tolist(), strict=True))

    def value(self, target: dict[tuple[int, ...], float], prefix: tuple[int, ...]) -> float:
        """log E_ref[W | prefix], where the target is the reference times W."""
        kept = [y for y in self.completions if y[: len(prefix)] == prefix]
        wanted, all_of_it = sum(target[y] for y in kept), sum(self.completions[y] for y in kept)
        return math.log(wanted / all_of_it) if wanted else -math.inf

    def step(self, target, prefix, law: Guidance):
        """Next-token log-probs of the guided policy, and their KL from the reference."""
        logprobs = self.logprobs[prefix][None]
        ids, chosen, rest = likeliest_tokens(logprobs, law.likeliest)
        values = torch.tensor([[self.value(target, (*prefix, a)) for a in ids[0].tolist()]], dtype=F64)
        advantages = law.advantages(values, torch.tensor([self.value(target, prefix)], dtype=F64))
        ratios, others = law.log_ratios(chosen, rest, advantages)
        guided = guided_logprobs(logprobs, ids, ratios, others)[0]
        return guided, guided_kl(chosen, rest, ratios, others).item()

    def guided(self, target, law: Guidance) -> tuple[dict[tuple[int, ...], float], float]:
        """Probability of every completion, and the KL that its steps add up to, on average over what is drawn."""
        found, kl = {}, 0.0
        reached = {(): 1.0}
        for prefix in self.logprobs:  # shorter ones of a path come first
            if not (here := reached.get(prefix, 0.0)):
                continue
            guided, step_kl = self.step(target, prefix, law)
            kl += here * step_kl
            for token, probability in enumerate(guided.exp().tolist()):
                (reached if (*prefix, token) in self.logprobs else found)[*prefix, token] = here * probability
        return found, kl


def kl_of(target, reference) -> float:
    return sum(q * math.log(q / reference[y]) for y, q in target.items() if q)


def rewards_of(policy: Tabular, kind: str) -> torch.Tensor:
    values = torch.rand(len(policy.completions), generator=torch.Generator().manual_seed(3), dtype=F64)
    return {"continuous": values, "ties": (4 * values).floor(), "verifier": (values > 0.7).to(F64)}[kind]


@pytest.mark.parametrize("n", [1.5, 4, 16])
@pytest.mark.parametrize("kind", ["continuous", "ties", "verifier"])
def test_with_the_true_value_and_the_whole_vocabulary_it_draws_best_of_n(kind: str, n: float) -> None:
    policy = Tabular(seed=1)
    target = policy.best_of(n, rewards_of(policy, kind))
    found, kl = policy.guided(target, UNCUT)
    assert found == pytest.approx(target, abs=1e-12)
    assert kl == pytest.approx(kl_of(target, policy.completions), abs=1e-12)


def test_and_the_exponential_tilt_and_the_success_of_a_verifier() -> None:
    """Of a weight that is 0 nothing is ever drawn: its advantage is minus infinity."""
    policy = Tabular(seed=2)
    for weight in (rewards_of(policy, "continuous").mul(3).exp(), rewards_of(policy, "verifier")):
        mass = torch.tensor([*policy.completions.values()], dtype=F64) * weight
        target = dict(zip(policy.completions, (mass / mass.sum()).tolist(), strict=True))
        found, kl = policy.guided(target, UNCUT)
        assert {y: found.get(y, 0.0) for y in target} == pytest.approx(target, abs=1e-12)
        assert kl == pytest.approx(kl_of(target, policy.completions), abs=1e-12)


@pytest.mark.parametrize("likeliest", [1, 2, 4])
def test_of_fewer_tokens_the_others_count_what_they_are_worth_together(likeliest: int) -> None:
    """f is then the true mean of exp(A) over the tokens that were not looked at, and nothing is normalised."""
    policy = Tabular(seed=1)
    target = policy.best_of(3, rewards_of(policy, "continuous"))
    law = Guidance(likeliest=likeliest, max_advantage=math.inf, balanced=True)
    for prefix, logprobs in policy.logprobs.items():
        tilts = torch.tensor([policy.value(target, (*prefix, a)) for a in range(VOCABULARY)], dtype=F64)
        tilts = tilts - policy.value(target, prefix)
        order = logprobs.argsort(descending=True)
        top, others = order[:likeliest], order[likeliest:]
        wanted = logprobs + tilts
        wanted[others] = logprobs[others] + (wanted[others].logsumexp(-1) - logprobs[others].logsumexp(-1))
        torch.testing.assert_close(policy.step(target, prefix, law)[0], wanted)
        assert wanted[top].exp().sum() < 1


@pytest.mark.parametrize("likeliest", [1, 3, VOCABULARY])
@pytest.mark.parametrize("cut", [0.05, 0.4, 2.0])
@pytest.mark.parametrize("balanced", [False, True])
def test_any_value_gives_the_law_that_is_stated(likeliest: int, cut: float, balanced: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    logprobs = torch.randn(40, VOCABULARY, generator=generator, dtype=F64).log_softmax(-1)
    law = Guidance(likeliest=likeliest, strength=1.3, max_advantage=cut, balanced=balanced)
    ids, chosen, rest = likeliest_tokens(logprobs, likeliest)
    values = torch.randn(40, likeliest, generator=generator, dtype=F64)
    before = torch.randn(40, generator=generator, dtype=F64)
    ratios, others = law.log_ratios(chosen, rest, law.advantages(values, before))
    found, kl = guided_logprobs(logprobs, ids, ratios, others), guided_kl(chosen, rest, ratios, others)
    for row in range(40):  # as the module writes it
        p, top = logprobs[row].exp().tolist(), ids[row].tolist()
        tilt = {
            a: max(-cut, min(cut, 1.3 * (values[row, k] - before[row]).item())) for k, a in enumerate(top)
        }
        left = [a for a in range(VOCABULARY) if a not in top]
        share = (1 - sum(p[a] * math.exp(tilt[a]) for a in top)) / sum(p[a] for a in left) if left else 1
        log_f = max(-cut, min(cut, math.log(share) if share > 0 else -math.inf)) if balanced else 0.0
        law_of = [p[a] * math.exp(tilt.get(a, log_f)) for a in range(VOCABULARY)]
        policy = [q / sum(law_of) for q in law_of]
        assert found[row].exp().tolist() == pytest.approx(policy, abs=1e-12)
        assert kl[row].item() == pytest.approx(
            sum(q * math.log(q / p[a]) for a, q in enumerate(policy)), abs=1e-12
        )


@pytest.mark.parametrize("balanced", [False, True])
def test_a_value_that_tells_nothing_leaves_the_reference_as_it_is(balanced: bool) -> None:
    logprobs = torch.randn(7, 50, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    ids, chosen, rest = likeliest_tokens(logprobs, 8)
    ratios, others = Guidance(balanced=balanced).log_ratios(chosen, rest, torch.zeros(7, 8))
    assert not ratios.any()
    assert not others.any()
    assert not guided_kl(chosen, rest, ratios, others).any()
    assert torch.equal(guided_logprobs(logprobs, ids, ratios, others), logprobs)


@pytest.mark.parametrize("balanced", [False, True])
def test_tokens_that_cannot_be_drawn_stay_so(balanced: bool) -> None:
    logprobs = torch.tensor([[0.3, -torch.inf, 0.1, -torch.inf, -torch.inf]]).log_softmax(-1)
    ids, chosen, rest = likeliest_tokens(logprobs, 3)
    advantages = torch.tensor([[0.4, -0.2, 0.3]])
    ratios, others = Guidance(balanced=balanced).log_ratios(chosen, rest, advantages)
    found = guided_logprobs(logprobs, ids, ratios, others)
    assert rest.item() == 0
    assert found.exp().sum().item() == pytest.approx(1)
    assert (found.isinf() == logprobs.isinf()).all()
    assert guided_kl(chosen, rest, ratios, others).isfinite().all()


@pytest.mark.parametrize(
    "settings", [{"likeliest": 0}, {"strength": 0.0}, {"max_advantage": 0.0}, {"max_advantage": math.nan}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        Guidance(**settings)  # type: ignore[arg-type]
