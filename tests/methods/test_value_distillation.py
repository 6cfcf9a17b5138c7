"""Value distillation on a tabular policy of several tokens: where it ends, the value being true or wrong."""

import pytest
import torch

from nonpareil.errors import ConfigError
from nonpareil.maths.best_of_n import distribution
from nonpareil.methods.credited import NextTokens
from nonpareil.methods.value_distillation import ValueDistillation
from tests.methods import tabular
from tests.methods.tabular import F64

SETTINGS = {"strength": 1.5, "max_advantage": 3.0, "prefix_weight": True, "tilted_start": True}
CASES = {
    "value_distillation": ValueDistillation(),
    "value_distillation, prefix": ValueDistillation(1.5, 0.5, True),
}

VOCABULARY, LENGTH, END = 3, 3, 2
EVERYTHING = 50.0  # no advantage is cut


def extended(prefixes):
    return [(*prefix, token) for prefix in prefixes for token in range(VOCABULARY)]


def is_whole(text):
    return len(text) == LENGTH or END in text


STATES, COMPLETIONS = [()], []
for state in STATES:
    for text in extended([state]):
        (COMPLETIONS if is_whole(text) else STATES).append(text)

GENERATOR = torch.Generator().manual_seed(3)
REFERENCE = torch.randn(len(STATES), VOCABULARY, generator=GENERATOR, dtype=F64)
POLICY = torch.randn(len(STATES), VOCABULARY, generator=GENERATOR, dtype=F64)
STRICT = torch.randn(len(COMPLETIONS), generator=GENERATOR, dtype=F64)
TIED = STRICT.mul(2).round()
BINARY = (STRICT > 0.5).to(F64)


def law(logits):
    """Of every completion, from next-token logits at every state."""
    log_pi = logits.log_softmax(-1)
    steps = [[(STATES.index(text[:i]), text[i]) for i in range(len(text))] for text in COMPLETIONS]
    return torch.stack([sum(log_pi[at] for at in path) for path in steps]).exp()


def value_of(weight):
    """log E_ref[W | prefix] of every state and completion."""
    probs, values = law(REFERENCE), {}
    for prefix in [*STATES, *COMPLETIONS]:
        rows = [i for i, text in enumerate(COMPLETIONS) if text[: len(prefix)] == prefix]
        values[prefix] = ((probs[rows] * weight[rows]).sum() / probs[rows].sum()).log()
    return values


def best_of_n_weight(rewards, n):
    probs = law(REFERENCE)
    return distribution(probs, rewards, n) / probs


def tilt_weight(rewards, c):
    weight = (c * rewards).exp()
    return weight / (law(REFERENCE) * weight).sum()


WEIGHTS = {
    "best of 4": best_of_n_weight(STRICT, 4),
    "best of 3, ties": best_of_n_weight(TIED, 3),
    "best of 8, 0/1": best_of_n_weight(BINARY, 8),
    "exponential": tilt_weight(STRICT, 1.2),
}
every_weight = pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)


def by_state(method, logits, values):
    """The loss at each state, with the whole vocabulary as candidates."""
    advantages = torch.stack(
        [torch.stack([values[text] - values[state] for text in extended([state])]) for state in STATES]
    )
    log_ratio = logits.log_softmax(-1) - REFERENCE.log_softmax(-1)
    pi_ref = REFERENCE.softmax(-1)
    prefix_values = torch.stack([values[state] - values[()] for state in STATES])
    tokens = NextTokens(log_ratio, -(pi_ref * log_ratio).sum(-1), pi_ref, advantages, prefix_values)
    return method.next_token_loss(tokens)


def expected_loss(method, logits, values):
    """The mean over the reference's completions of the sum over their tokens."""
    losses, probs = by_state(method, logits, values), law(REFERENCE)
    return sum(
        p * sum(losses[STATES.index(text[:i])] for i in range(len(text)))
        for p, text in zip(probs, COMPLETIONS, strict=True)
    )


def reached(method, values):
    """The law of the policy that a training from the reference ends at."""
    logits = REFERENCE.clone().requires_grad_()
    ends = {"max_iter": 500, "tolerance_grad": 1e-12, "tolerance_change": 1e-15}
    optimizer = torch.optim.LBFGS([logits], line_search_fn="strong_wolfe", **ends)

    def closure():
        optimizer.zero_grad()
        loss = expected_loss(method, logits, values)
        loss.backward()
        return loss

    optimizer.step(closure)
    return law(logits.detach())


def test_the_tree_is_what_it_should_be():
    assert len(STATES) == 7
    assert len(COMPLETIONS) == 15
    torch.testing.assert_close(law(REFERENCE).sum(), torch.ones((), dtype=F64))
    assert len(set(TIED.tolist())) < len(COMPLETIONS)


@every_weight
@pytest.mark.parametrize("prefix_weight", [False, True])
def test_the_true_value_leads_to_best_of_n_and_to_the_tilt(weight, prefix_weight):
    method = ValueDistillation(1.0, EVERYTHING, prefix_weight)
    truth = law(REFERENCE) * weight
    torch.testing.assert_close(truth.sum(), torch.ones((), dtype=F64))
    torch.testing.assert_close(reached(method, value_of(weight)), truth, atol=1e-6, rtol=1e-5)


@every_weight
def test_with_prefix_weights_the_gradient_is_that_of_the_sequences_kl(weight):
    """KL(tilted reference || policy) of whole completions, from completions of the reference."""
    method, target = ValueDistillation(1.0, EVERYTHING, True), law(REFERENCE) * weight

    def kl(logits):
        return (target * (target.log() - law(logits).log())).sum()

    ours = tabular.gradient(lambda z: expected_loss(method, z, value_of(weight)), POLICY)
    torch.testing.assert_close(ours, tabular.gradient(kl, POLICY))


@pytest.mark.parametrize("strength", [0.7, 2.2])
def test_at_each_state_the_gradient_is_that_of_the_tokens_kl(strength):
    values = value_of(WEIGHTS["best of 4"])
    advantages = torch.stack([torch.stack([values[t] - values[s] for t in extended([s])]) for s in STATES])
    target = (REFERENCE + strength * advantages.clamp(-0.4, 0.4)).softmax(-1)

    def kl(logits):
        return (target * (target.log() - logits.log_softmax(-1))).sum()

    method = ValueDistillation(strength, 0.4)
    ours = tabular.gradient(lambda z: by_state(method, z, values).sum(), POLICY)
    torch.testing.assert_close(ours, tabular.gradient(kl, POLICY))


def test_a_value_that_is_wrong_ends_at_the_bias_that_is_stated():
    """log-probs off by strength b(s, a) less its log-mean-exp under the target; a shift of all values is none."""
    strength, values = 1.3, value_of(WEIGHTS["exponential"])
    error = {text: torch.sin(torch.tensor(3.0 * i, dtype=F64)) for i, text in enumerate(values)}
    method = ValueDistillation(strength, EVERYTHING)
    true = {state: torch.stack([values[t] - values[state] for t in extended([state])]) for state in STATES}
    off = {state: strength * torch.stack([error[t] for t in extended([state])]) for state in STATES}
    target = torch.stack(
        [(REFERENCE[i] + strength * true[state]).log_softmax(-1) for i, state in enumerate(STATES)]
    )
    bias = torch.stack([off[s] - (target[i] + off[s]).logsumexp(-1) for i, s in enumerate(STATES)])
    found = reached(method, {text: values[text] + error[text] for text in values})
    torch.testing.assert_close(found, law(target + bias), atol=1e-6, rtol=1e-5)
    assert (found - law(target)).abs().max() > 0.01
    shifted = reached(method, {text: value + 0.8 for text, value in values.items()})
    torch.testing.assert_close(shifted, law(target), atol=1e-6, rtol=1e-5)


def test_there_is_no_loss_of_drawn_tokens():
    with pytest.raises(TypeError, match="ValueDistillation has no loss of drawn tokens"):
        ValueDistillation().loss(torch.zeros(1, 0, 1), torch.zeros(1, 1, 1), None)


@pytest.mark.parametrize(("setting", "value"), [("strength", 0.0), ("max_advantage", -1.0)])
def test_settings_out_of_range_are_refused(setting, value):
    with pytest.raises(ConfigError, match=f"{setting}={value}"):
        ValueDistillation(**{setting: value})
