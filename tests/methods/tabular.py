"""A tabular policy over a few outcomes: one "token" a completion, every expectation a sum."""

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from nonpareil.methods.base import Method, ScoredDraws

F64 = torch.float64
REFERENCE = torch.tensor([0.5, 0.3, 0.2], dtype=F64)
LOGITS = torch.tensor([0.3, -0.2, 0.4], dtype=F64)
"""A policy that is neither the reference nor best-of-n of it."""
STRICT = torch.tensor([0.0, 1.0, 2.0], dtype=F64)
TIED = torch.tensor([0.0, 1.0, 1.0], dtype=F64)
BINARY = torch.tensor([0.0, 0.0, 1.0], dtype=F64)


def draws_of(
    own: Tensor,
    anchors: Tensor,
    rewards: Tensor,
    log_pi: Tensor,
    log_anchor: Tensor,
    tie_breaker: Tensor | None = None,
) -> ScoredDraws:
    """`ScoredDraws` where own [b, k] and anchors [b, m] are outcomes; rewards and log-probs [y] are theirs."""
    ties = (
        torch.linspace(0.2, 0.7, anchors.shape[1]).expand(anchors.shape)
        if tie_breaker is None
        else tie_breaker
    )
    return ScoredDraws(
        policy_rewards=rewards[own],
        anchor_rewards=rewards[anchors],
        policy_token_logprobs=log_pi.detach()[own][..., None],
        completion_mask=torch.ones(*own.shape, 1, dtype=torch.bool),
        anchor_logprobs_of_policy=log_anchor[own],
        anchor_token_logprobs=log_anchor[anchors][..., None],
        tie_breaker=ties,
    )


def loss_of(method: Method, policy: Tensor, anchor: Tensor, targets) -> Tensor:
    """The loss [b] as the trainer calls it: log-probs [b, k] and [b, m] that are not trained on are 0."""
    return method.loss(
        (policy * targets.train_policy)[..., None], (anchor * targets.train_anchor)[..., None], targets
    )


def losses(method: Method, own: Tensor, anchors: Tensor, log_pi: Tensor, draws: ScoredDraws) -> Tensor:
    """The loss [b] of one batch."""
    return loss_of(method, log_pi[own], log_pi[anchors], method.targets(draws))


# --- Expectations


def tuples(count: int, outcomes: int) -> Tensor:
    """Every way to draw `count` of the outcomes, [outcomes^count, count]."""
    return torch.tensor(list(itertools.product(range(outcomes), repeat=count)), dtype=torch.long)


def all_draws(k: int, m: int, pi: Tensor, anchor: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Every batch of one prompt: probability [b], own [b, k], anchors [b, m], tie_breaker [b, m].

    All m! orders of the tie-breakers are among them.
    """
    own, anchors = tuples(k, len(pi)), tuples(m, len(pi))
    orders = torch.tensor(list(itertools.permutations(torch.linspace(0.2, 0.7, m).tolist())))
    grid = torch.cartesian_prod(*(torch.arange(len(x)) for x in (own, anchors, orders)))
    own, anchors, ties = own[grid[:, 0]], anchors[grid[:, 1]], orders[grid[:, 2]].view(len(grid), m)
    probability = pi.detach()[own].prod(-1) * anchor[anchors].prod(-1) / len(orders)
    return probability, own, anchors, ties


def expected_loss(method: Method, logits: Tensor, rewards: Tensor, anchor: Tensor, m: int) -> Tensor:
    """E[loss] over all draws of one prompt, whose gradient is the method's; for losses of one prompt alone."""
    log_pi = logits.log_softmax(-1)
    probability, own, anchors, ties = all_draws(method.policy_draws, m, log_pi.exp(), anchor)
    draws = draws_of(own, anchors, rewards, log_pi, anchor.log(), ties)
    return (probability * losses(method, own, anchors, log_pi, draws)).sum()


def expected_loss_of_two(method: Method, logits: Tensor, rewards: Tensor, anchor: Tensor, m: int) -> Tensor:
    """E[mean loss] over all batches of two prompts, so that a baseline over the batch is in the sum."""
    log_pi = logits.log_softmax(-1)
    probability, own, anchors, ties = all_draws(method.policy_draws, m, log_pi.exp(), anchor)
    total = torch.zeros((), dtype=F64)
    for i, j in itertools.combinations_with_replacement(range(len(own)), 2):
        rows = torch.tensor([i, j])
        draws = draws_of(own[rows], anchors[rows], rewards, log_pi, anchor.log(), ties[rows])
        both = losses(method, own[rows], anchors[rows], log_pi, draws).mean()
        total = total + (1 if i == j else 2) * probability[i] * probability[j] * both
    return total


def gradient_noise(method: Method, logits: Tensor, rewards: Tensor, anchor: Tensor, m: int) -> float:
    """The variance of a prompt's gradient over all its draws, summed over the logits."""
    log_pi = logits.log_softmax(-1)
    probability, own, anchors, ties = all_draws(method.policy_draws, m, log_pi.exp(), anchor)
    draws = draws_of(own, anchors, rewards, log_pi, anchor.log(), ties)
    return noise_of(lambda z: losses(method, own, anchors, z.log_softmax(-1), draws), logits, probability)


def noise_of(losses_at: Callable[[Tensor], Tensor], logits: Tensor, probability: Tensor) -> float:
    """The variance of the gradient of losses [b] that happen with these probabilities."""
    gradients = torch.autograd.functional.jacobian(losses_at, logits)
    mean = probability @ gradients
    return (probability @ (gradients - mean).square()).sum().item()


def gradient(function: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
    """By autograd."""
    point = point.clone().requires_grad_()
    return torch.autograd.grad(function(point), point)[0]


def numeric_gradient(function: Callable[[Tensor], Tensor], point: Tensor, step: float = 1e-5) -> Tensor:
    """By central differences."""
    shifts = step * torch.eye(len(point), dtype=point.dtype)
    return torch.stack([(function(point + s) - function(point - s)) / (2 * step) for s in shifts])


# --- What the methods should descend, written without the package


def expected_estimate(
    estimate: Callable[[int, int], float], rewards: Tensor, anchor: Tensor, m: int
) -> Tensor:
    """E[estimate(c<, c<=)] at each outcome: of m anchor draws c< are below its reward, c<= at or below."""
    values = []
    for reward in rewards:
        below, equal = anchor[rewards < reward].sum().item(), anchor[rewards == reward].sum().item()
        value = 0.0
        for c, e in itertools.product(range(m + 1), repeat=2):
            if c + e <= m:
                ways = math.comb(m, c) * math.comb(m - c, e)
                chance = below**c * equal**e * max(1 - below - equal, 0.0) ** (m - c - e)
                value += ways * chance * estimate(c, c + e) if chance else 0.0
        values.append(value)
    return torch.tensor(values, dtype=F64)


def harmonic_number(count: int) -> float:
    """1 + 1/2 + ... + 1/count."""
    return sum(1 / i for i in range(1, count + 1))


def log_tilt(estimator: str, m: int, n: int) -> Callable[[int, int], float]:
    """log(pi_n / pi_ref) estimated from c< and c<= of m: (n - 1) log p<= + log sum_i (p< / p<=)^i."""

    def estimate(below: int, at_or_below: int) -> float:
        log_weak = {
            "plug_in": math.log((at_or_below + 1) / (m + 1)),
            "inclusive_plug_in": math.log(max(at_or_below, 0.5) / m),
            "harmonic": harmonic_number(at_or_below) - harmonic_number(m),
            "two_sample": -math.log(16) if at_or_below == 0 else 0.0,
        }[estimator]
        s = below / at_or_below if at_or_below else 1.0
        return (n - 1) * log_weak + math.log(sum(s**i for i in range(n)))

    return estimate


def kl(logits: Tensor, log_target: Tensor) -> Tensor:
    """KL(pi || exp(log_target)), the target unnormalised, nats."""
    log_pi = logits.log_softmax(-1)
    return (log_pi.exp() * (log_pi - log_target)).sum()


# --- Training


def proportional(probs: Tensor, count: int) -> Tensor:
    """About `count` outcomes, each as often as it is likely (and at least once), [1, about count]."""
    times = (probs * count).round().long().clamp(min=1)
    return torch.arange(len(probs)).repeat_interleave(times)[None]


def train(batch_loss: Callable[[Tensor], Tensor], start: Tensor, steps: int = 150, lr: float = 0.2) -> Tensor:
    """The probabilities that Adam ends at from `start`, the rate falling to a hundredth."""
    logits = start.log().clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=lr, betas=(0.8, 0.9))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        batch_loss(logits.log_softmax(-1)).backward()
        optimizer.step()
        schedule.step()
    return logits.detach().softmax(-1)


def train_with_many(
    method: Method, anchor: Tensor, rewards: Tensor, start: Tensor | None = None, m: int = 2000, **how
) -> Tensor:
    """One prompt and very many draws of policy and anchor, in proportion: nearly the exact expectation."""
    anchors = proportional(anchor, m)

    def batch_loss(log_pi: Tensor) -> Tensor:
        own = proportional(log_pi.detach().exp(), 4000)[:, : None if method.policy_draws else 0]
        draws = draws_of(own, anchors, rewards, log_pi, anchor.log())
        return losses(method, own, anchors, log_pi, draws).mean()

    return train(batch_loss, anchor if start is None else start, **how)


def train_with_groups(
    method: Method, anchor: Tensor, rewards: Tensor, m: int, rows: int = 4096, failing: float = 0.0, **how
) -> Tensor:
    """Many prompts with few draws each, all drawn at random; a share of the rewards fails."""
    generator = torch.Generator().manual_seed(0)

    def sample(probs: Tensor, count: int) -> Tensor:
        if not count:
            return torch.zeros(rows, 0, dtype=torch.long)
        return probs.multinomial(rows * count, True, generator=generator).view(rows, count)

    def fail(values: Tensor) -> Tensor:
        return values.masked_fill(torch.rand(values.shape, generator=generator) < failing, torch.nan)

    def batch_loss(log_pi: Tensor) -> Tensor:
        own, anchors = sample(log_pi.detach().exp(), method.policy_draws), sample(anchor, m)
        ties = torch.rand(rows, m, generator=generator)
        draws = draws_of(own, anchors, rewards, log_pi, anchor.log(), ties)
        draws = ScoredDraws(
            **{
                **vars(draws),
                "policy_rewards": fail(draws.policy_rewards),
                "anchor_rewards": fail(draws.anchor_rewards),
            }
        )
        return losses(method, own, anchors, log_pi, draws).mean()

    return train(batch_loss, anchor, **how)
