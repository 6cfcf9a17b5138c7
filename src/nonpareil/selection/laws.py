"""Rules that choose by rewards, log-probs, lengths or similarities: one pure function each.

Rewards [b, m] are of b prompts with m candidates, drawn from one policy; NaN where one failed. The law [b, m] has
0 there, and ties share evenly. It is worked out in float64 and returned in the rewards' dtype, float32 at least.
All raise DataError at an infinity. docs/selection.md has the formulas and papers side by side.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from nonpareil.errors import DataError
from nonpareil.maths.order_statistics import rank_weights
from nonpareil.maths.scalars import at_least_float32
from nonpareil.selection.shared import by_count, known_of, normalised, share_of_best

_NOTHING = 1e-18  # of a probability


def best_of_n(rewards: Float[Tensor, "b m"], *, n: int | None = None) -> Float[Tensor, "b m"]:
    """The highest reward of all candidates (n None), or of a random n of the m, by exact order statistics.

    A row with fewer than n known rewards has no such subset, and is 0.

    Raises:
        ConfigError: n outside 1 .. m.
    """
    known = known_of(rewards)
    if n is None:
        return share_of_best(rewards.double(), known, exact=True).to(at_least_float32(rewards))
    return rank_weights(rewards.double(), n).nan_to_num(nan=0.0).to(at_least_float32(rewards))


def soft(rewards: Float[Tensor, "b m"], *, temperature: float) -> Float[Tensor, "b m"]:
    """Weights exp(r / temperature): soft best-of-n, arXiv:2505.03156; 0 is best-of-n.

    The candidates come from the policy already, so its log-probs stay out (SRBoN's code multiplies by them again).
    """
    if temperature == 0:
        return best_of_n(rewards)
    known, values = known_of(rewards), rewards.double()
    top = torch.where(known, values, -torch.inf).amax(1, keepdim=True)
    weights = torch.where(known, ((values - top) / temperature).exp(), 0.0)
    return normalised(weights).to(at_least_float32(rewards))


def poisson(rewards: Float[Tensor, "b m"], *, n: float) -> Float[Tensor, "b m"]:
    """The best of 1 + Poisson(n - 1) draws, arXiv:2506.19248: best-of-n for a real n >= 1.

    A group has no more draws than its known rewards: where more are drawn, it is the best of those. `poisson_draws`
    says how many are taken in the mean.
    """
    known, values = known_of(rewards), rewards.double()
    law = torch.zeros_like(values)
    for count, rows in by_count(known):
        for drawn, chance in enumerate(_draws_chances(n, count).tolist(), 1):
            if chance > _NOTHING:
                law[rows] += chance * rank_weights(values[rows], drawn)
    return law.to(at_least_float32(rewards))


def poisson_draws(n: float, most: int) -> float:
    """Draws in the mean of `poisson` from a group of `most`: E[min(1 + Poisson(n - 1), most)]."""
    chances = _draws_chances(n, most)
    return (chances * torch.arange(1, most + 1)).sum().item()


def _draws_chances(n: float, most: int) -> Float[Tensor, " most"]:
    """P(N = 1), ..., P(N >= most) of N = 1 + Poisson(n - 1)."""
    further = torch.arange(most, dtype=torch.float64)
    mean = torch.tensor(n - 1, dtype=torch.float64)
    chances = (torch.xlogy(further, mean) - mean - torch.lgamma(further + 1)).exp()
    chances[-1] = (1 - chances[:-1].sum()).clamp(min=0)
    return chances


def likelihood(
    rewards: Float[Tensor, "b m"],
    *,
    logprobs: Float[Tensor, "b m"],
    weight: float,
    lengths: Float[Tensor, "b m"] | None = None,
    per_token: bool = False,
) -> Float[Tensor, "b m"]:
    """The highest r + weight * log pi(y), arXiv:2404.01054 (KL-BoN); log-probs in nats, summed.

    The sum favours short completions; `per_token` takes the mean of a token.
    """
    if per_token:
        if lengths is None:
            raise DataError("likelihood per token needs lengths, and there are none")
        logprobs = logprobs / lengths
    known = known_of(rewards, logprobs)
    return share_of_best(rewards.double() + weight * logprobs.double(), known).to(at_least_float32(rewards))


def length(
    rewards: Float[Tensor, "b m"], *, lengths: Float[Tensor, "b m"], weight: float
) -> Float[Tensor, "b m"]:
    """The highest r - weight / tokens (RBoN-L, arXiv:2502.12668); it takes more off the short."""
    inverse = 1 / lengths.double()
    known = known_of(rewards, inverse)
    return share_of_best(rewards.double() - weight * inverse, known).to(at_least_float32(rewards))


def mbr(rewards: Float[Tensor, "b m"], *, similarity: Float[Tensor, "b m m"]) -> Float[Tensor, "b m"]:
    """The candidate with the highest mean similarity to the others; of the rewards only nulls are read."""
    known = known_of(rewards)
    return share_of_best(_mean_similarity(similarity, known), known).to(at_least_float32(rewards))


def mbr_best_of_n(
    rewards: Float[Tensor, "b m"], *, similarity: Float[Tensor, "b m m"], weight: float
) -> Float[Tensor, "b m"]:
    """The highest r + weight * mean similarity to the others (MBR-BoN, arXiv:2404.01054)."""
    known = known_of(rewards)
    scores = rewards.double() + weight * _mean_similarity(similarity, known)
    return share_of_best(scores, known).to(at_least_float32(rewards))


def _mean_similarity(similarity: Tensor, known: Tensor) -> Float[Tensor, "b m"]:
    """Of row i to the other known candidates: itself is left out (the published code keeps it in); 0 if alone.

    Raises:
        DataError: a similarity that is no number.
    """
    if not similarity.isfinite().all():
        raise DataError("a similarity is no finite number; give one for each two completions")
    others = known[:, None, :] & ~torch.eye(known.shape[1], dtype=torch.bool, device=known.device)
    total = torch.where(others, similarity.double(), 0.0).sum(2)
    return total / others.sum(2).clamp(min=1)


def chi_square(rewards: Float[Tensor, "b m"], *, beta: float) -> Float[Tensor, "b m"]:
    """The law that maximises E[r] - beta / 2 * chi2 to the even draw: p_i = relu(r_i - bar) / (m beta).

    Inference-time pessimism, arXiv:2503.21878, whose rejection sampling this is the law of; no mass is left over (a
    published port gives the rest to an even draw). 0 is best-of-n; a large beta is the even draw.
    """
    if beta == 0:
        return best_of_n(rewards)
    known, values = known_of(rewards), rewards.double()
    count = known.sum(1, keepdim=True).clamp(min=1)
    top = torch.where(known, values, -torch.inf).amax(1, keepdim=True)
    scaled = torch.where(known, (values - top) / (count * beta), -torch.inf)
    # The bar is where the parts above it sum to 1: over the k highest, for the last k whose k-th is above it.
    descending = scaled.sort(1, descending=True).values
    place = torch.arange(1, values.shape[1] + 1, device=values.device)
    running = descending.cumsum(1)
    above = (1 + place * descending > running).sum(1, keepdim=True).clamp(min=1)
    bar = (running.gather(1, above - 1) - 1) / above
    weights = torch.where(known, (scaled - bar).clamp(min=0), 0.0)
    return normalised(weights).to(at_least_float32(rewards))
