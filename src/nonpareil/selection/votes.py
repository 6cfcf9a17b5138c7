"""Rules that choose an answer which several candidates may have: one pure function each.

Answers [b, m] are whole numbers, equal where the answers are; negative where none could be read, which never
votes nor is chosen. Rewards as in `laws`. Answers that tie share evenly, however many candidates each has. Of the
winning answer, `majority` draws any candidate; the others, which read rewards, give its best one.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nonpareil.errors import ConfigError, DataError
from nonpareil.maths.counts import count_among
from nonpareil.maths.order_statistics import rank_weights
from nonpareil.maths.scalars import at_least_float32
from nonpareil.selection.shared import by_count, is_best, known_of, normalised


class _Votes:
    """Which candidates have the same answer."""

    def __init__(self, rewards: Float[Tensor, "b m"], answers: Int[Tensor, "b m"]) -> None:
        self.rewards = rewards.double()
        self.known: Bool[Tensor, "b m"] = known_of(rewards) & (answers >= 0)
        values = torch.where(self.known, answers.double(), torch.nan)
        counts = count_among(values, values)
        self.count: Float[Tensor, "b m"] = torch.where(
            self.known, counts.at_or_below - counts.below, 1
        ).double()
        """How many candidates have its answer."""
        self._place = torch.where(self.known, counts.below, rewards.shape[1])

    def total(self, weights: Float[Tensor, "b m"]) -> Float[Tensor, "b m"]:
        """Of each candidate's answer: the sum over those that have it."""
        rows = torch.zeros(len(weights), weights.shape[1] + 1, dtype=torch.float64, device=weights.device)
        rows.scatter_add_(1, self._place, torch.where(self.known, weights, 0.0))
        return rows.gather(1, self._place)

    def law(self, scores: Float[Tensor, "b m"], *, any_candidate: bool = False) -> Float[Tensor, "b m"]:
        """1 shared among the answers with the highest score, and each answer's share among its candidates."""
        wins = is_best(scores, self.known)
        own = wins.double() if any_candidate else (wins & self._best_of_answer()).double()
        return normalised(own / self.total(own).clamp(min=1)).to(at_least_float32(self.rewards))

    def _best_of_answer(self) -> Bool[Tensor, "b m"]:
        rows = torch.full((len(self.rewards), self.rewards.shape[1] + 1), -torch.inf, dtype=torch.float64)
        values = torch.where(self.known, self.rewards, -torch.inf)
        rows = rows.to(values.device).scatter_reduce(1, self._place, values, "amax")
        return self.known & (self.rewards == rows.gather(1, self._place))


def majority(rewards: Float[Tensor, "b m"], *, answers: Int[Tensor, "b m"]) -> Float[Tensor, "b m"]:
    """The most frequent answer (self-consistency, arXiv:2203.11171); of the rewards only nulls are read."""
    votes = _Votes(rewards, answers)
    return votes.law(votes.count, any_candidate=True).to(at_least_float32(rewards))


def weighted_majority(
    rewards: Float[Tensor, "b m"], *, answers: Int[Tensor, "b m"], temperature: float | None = None
) -> Float[Tensor, "b m"]:
    """The answer with the largest sum of rewards (weighted best-of-n), or of exp(r / temperature).

    Raises:
        DataError: a negative reward without a temperature: its answer would lose by being frequent.
    """
    votes = _Votes(rewards, answers)
    if temperature is None:
        if (votes.rewards[votes.known] < 0).any():
            raise DataError(
                "weighted_majority adds rewards up, and one is negative: its answer would lose by being frequent; "
                "give it a temperature (weighted_majority:temperature=1), or rewards that are 0 or more"
            )
        return votes.law(votes.total(votes.rewards)).to(at_least_float32(rewards))
    top = torch.where(votes.known, votes.rewards, -torch.inf).amax(1, keepdim=True)
    scores = votes.total(((votes.rewards - top) / temperature).exp())
    return votes.law(scores).to(at_least_float32(rewards))


def best_of_majority(
    rewards: Float[Tensor, "b m"], *, answers: Int[Tensor, "b m"], alpha: float
) -> Float[Tensor, "b m"]:
    """The highest mean reward among answers that a share `alpha` of the candidates has, arXiv:2510.03199.

    Where no answer is so frequent, among the most frequent.
    """
    votes = _Votes(rewards, answers)
    share = votes.count / votes.known.sum(1, keepdim=True).clamp(min=1)
    largest = torch.where(votes.known, share, 0.0).amax(1, keepdim=True)
    frequent = share >= largest.clamp(max=alpha) - 1e-12
    scores = votes.total(votes.rewards) / votes.count
    lowest = torch.where(votes.known, scores, torch.inf).amin(1, keepdim=True)
    scores = torch.where(frequent, scores, lowest - 1 - lowest.abs())
    return votes.law(scores).to(at_least_float32(rewards))


def majority_of_the_bests(
    rewards: Float[Tensor, "b m"], *, answers: Int[Tensor, "b m"], n: int | None = None
) -> Float[Tensor, "b m"]:
    """The answer that the best of a random n of the candidates has most often, arXiv:2511.18630.

    By exact order statistics, without replacement: the paper's bootstrap draws with it, which is biased, and at
    n = m gives the top draw .63. n None is the square root of the candidates. Where fewer than n are known, n is
    their number.

    Raises:
        ConfigError: n above m.
    """
    if n is not None and n > rewards.shape[1]:
        raise ConfigError(
            f"majority_of_the_bests: n={n} is above the {rewards.shape[1]} candidates of a prompt"
        )
    votes = _Votes(rewards, answers)
    values = torch.where(votes.known, votes.rewards, torch.nan)
    weights = torch.zeros_like(values)
    for count, rows in by_count(votes.known):
        drawn = max(1, round(count**0.5)) if n is None else min(n, count)
        weights[rows] = rank_weights(values[rows], drawn)
    return votes.law(votes.total(weights)).to(at_least_float32(rewards))
