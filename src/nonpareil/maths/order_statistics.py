"""Best-of-n for every n <= m at once, from m samples per prompt: unbiased, with all samples used."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from nonpareil.errors import ConfigError, DataError
from nonpareil.maths.counts import count_among
from nonpareil.maths.scalars import at_least_float32


def best_of_n_curve(rewards: Float[Tensor, "b m"], max_n: int | None = None) -> Float[Tensor, "b max_n"]:
    """Unbiased estimate of E[max of n rewards] of each prompt, for n = 1 .. max_n (default m).

    `sum_{i=n..m} C(i-1, n-1) r_(i) / C(m, n)`, r_(i) ascending: the mean over all subsets of size n. NaN
    rewards (failed) are excluded; where a prompt has fewer than n valid rewards, the entry is NaN. Worked out
    in float64, returned in the rewards' dtype, float32 at least.

    Raises:
        ConfigError: max_n outside 1 .. m.
        DataError: an infinite reward, whose mean is not a number to compare.
    """
    max_n = _checked("max_n", max_n, rewards.shape[1])
    _refuse_infinite(rewards)
    ascending = rewards.double().sort(-1).values  # NaN last
    valid = rewards.isnan().logical_not().sum(-1)
    curve = ascending.new_full((len(rewards), max_n), torch.nan)
    # One weight matrix for each number of valid samples: usually one for all prompts, at most m + 1.
    for count in valid.unique().tolist():
        if count:
            rows, reach = valid == count, min(count, max_n)
            # As what falls short of the highest: where rewards are equal, so are all n, to the last digit.
            highest = ascending[rows, count - 1 : count]
            short = highest - ascending[rows, :count]
            curve[rows, :reach] = highest - short @ _subset_weights(count, reach).to(ascending)
    return curve.to(at_least_float32(rewards))


def best_of_n_values(
    rewards: Float[Tensor, "b m"], values: Float[Tensor, "b m"], max_n: int | None = None
) -> Float[Tensor, "b max_n"]:
    """Unbiased estimate of E[value of the best of n by reward] of each prompt, for n = 1 .. max_n (default m).

    `sum_i C(i-1, n-1) v_(i) / C(m, n)`, values in the order of their rewards; equal rewards have their mean value.
    With a gold reward for values it is what best-of-n by a proxy is worth. NaN rewards are excluded; a row with a
    NaN value among the others, and an n beyond its valid rewards, is NaN. Returned in float64.

    Raises:
        ConfigError: max_n outside 1 .. m.
        DataError: an infinity.
    """
    max_n = _checked("max_n", max_n, rewards.shape[1])
    _refuse_infinite(rewards)
    _refuse_infinite(values)
    ascending, order = rewards.double().sort(-1)  # NaN last
    known = ~ascending.isnan()
    carried = torch.where(known, values.double().gather(1, order), 0.0)
    first = carried[:, :1]  # sums of what differs from it: equal values have exactly that mean
    running = torch.nn.functional.pad((carried - first).cumsum(1), (1, 0))
    below, at_or_below, _ = count_among(ascending, ascending)
    size = (at_or_below - below).clamp(min=1)
    mean = (running.gather(1, at_or_below) - running.gather(1, below)) / size
    curve = mean.new_full((len(rewards), max_n), torch.nan)
    valid = known.sum(1)
    for count in valid.unique().tolist():
        if count:
            rows, reach = valid == count, min(count, max_n)
            curve[rows, :reach] = mean[rows, :count] @ _subset_weights(count, reach).to(mean) + first[rows]
    return curve


def rank_weights(rewards: Float[Tensor, "b m"], n: int) -> Float[Tensor, "b m"]:
    """The probability that each sample is the best of a random n of its prompt's m samples; rows sum to 1.

    `C(i-1, n-1) / C(m, n)` at rank i (ascending), shared evenly among equal rewards. `(weights * x).sum(-1)`
    is the unbiased estimate of E[x of the best of n] for any x; with x = -log pi it is the forward KL loss to
    best-of-n with every sample used. NaN rewards weigh 0. A row with fewer than n valid rewards has no such
    subset and is NaN throughout: drop and count it. Returned in the rewards' dtype, float32 at least.

    Raises:
        ConfigError: n outside 1 .. m.
    """
    _checked("n", n, rewards.shape[1])
    below, at_or_below, valid = count_among(rewards, rewards)
    # sum_{i<=k} C(i-1, n-1) = C(k, n), so a tie class of ranks below+1 .. at_or_below weighs a difference.
    log_subsets = _log_binomial(valid, n)
    class_weight = (_log_binomial(at_or_below, n) - log_subsets).exp() - (
        _log_binomial(below, n) - log_subsets
    ).exp()
    weights = (class_weight / (at_or_below - below)).masked_fill(rewards.isnan(), 0.0)
    return weights.masked_fill(valid < n, torch.nan).to(at_least_float32(rewards))


def subset_misses(successes: Float[Tensor, "b m"], max_k: int) -> Float[Tensor, "b k"]:
    """Unbiased estimate of (1 - q)^k, k = 0 .. max_k, for each prompt's success rate q; float64.

    The share of k-subsets without a success (1; 0 is none). NaN (failed) ones are left out; NaN where fewer than k
    are left.
    """
    valid = (~successes.isnan()).sum(1, keepdim=True)
    fails = (successes == 0).sum(1, keepdim=True)
    k = torch.arange(max_k + 1, device=successes.device).expand(len(successes), -1)
    shares = (_log_binomial(fails.expand_as(k), k) - _log_binomial(valid.expand_as(k), k)).exp()
    return torch.where(valid >= k, shares, torch.nan)


def harmonic_log_quantile(
    count_below: Shaped[Tensor, "*s"], m: int | Shaped[Tensor, "..."]
) -> Float[Tensor, "*s"]:
    """H_c - H_m, the log-quantile in nats of a sample with c of m reference rewards below it; always finite.

    Unbiased for log p< up to the Taylor tail -sum_{k>m} (1 - p<)^k / k; and E[log u] of the sample ranked i
    among its own m samples is this at c = i - 1. Pointwise regression after QRPO (arXiv:2507.08068) rests on
    it. Counts may be integers or floats; float32 at least comes back, float64 for float64 counts.
    """
    count = count_below.double()
    total = torch.as_tensor(m, device=count.device).double()
    return (torch.digamma(count + 1) - torch.digamma(total + 1)).to(at_least_float32(count_below))


def _subset_weights(num_samples: int, max_n: int) -> Float[Tensor, "m n"]:
    """C(i-1, n-1) / C(m, n) in float64, for rank i = 1 .. m by n = 1 .. max_n; columns sum to 1."""
    rank = torch.arange(1, num_samples + 1)[:, None]
    n = torch.arange(1, max_n + 1)[None, :]
    weights = (_log_binomial(rank - 1, n - 1) - _log_binomial(torch.tensor(num_samples), n)).exp()
    return weights / weights.sum(0)


def _log_binomial(total: Shaped[Tensor, "..."], chosen: int | Shaped[Tensor, "..."]) -> Tensor:
    """Log of C(total, chosen) in float64; -inf where fewer than `chosen` are there."""
    total = total.double()
    chosen = torch.as_tensor(chosen, dtype=torch.float64, device=total.device)
    rest = (total - chosen).clamp(min=0)
    log_ways = torch.lgamma(total + 1) - torch.lgamma(chosen + 1) - torch.lgamma(rest + 1)
    return log_ways.masked_fill(total < chosen, -torch.inf)


def _checked(name: str, n: int | None, num_samples: int) -> int:
    """An n that the samples of a prompt allow; None is all of them."""
    if n is None:
        return num_samples
    if not 1 <= n <= num_samples:
        raise ConfigError(f"{name} = {n}: must lie in 1 .. {num_samples}, the samples drawn for each prompt")
    return n


def _refuse_infinite(rewards: Tensor) -> None:
    if rewards.isinf().any():
        raise DataError("rewards hold an infinity: bound the reward, or make failed samples NaN (null)")
