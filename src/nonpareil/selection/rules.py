"""The rules by name: each one's parameters, what it reads, and what it costs."""

from dataclasses import MISSING, dataclass

from nonpareil.selection.needs import Need
from nonpareil.selection.rule import Rule
from nonpareil.settings import option

_IN_REWARDS = "in units of the reward"


@dataclass(frozen=True)
class BestOfN(Rule):
    """The highest reward, of all candidates or of a random n of them."""

    name = "best_of_n"
    n: int | None = option(None, "Draws to choose from; all of them if not given.", at_least=1)

    @property
    def least(self) -> int:
        """n."""
        return self.n or 1

    def draws(self, size: int) -> float:
        """n."""
        return size if self.n is None else self.n


@dataclass(frozen=True)
class Soft(Rule):
    """Drawn with weights exp(reward / temperature)."""

    name = "soft"
    temperature: float = option(MISSING, f"0 is best_of_n; {_IN_REWARDS}.", at_least=0)


@dataclass(frozen=True)
class Poisson(Rule):
    """Best of 1 + Poisson(n - 1) draws: best-of-n for a real n."""

    name = "poisson"
    n: float = option(MISSING, "Draws in the mean.", at_least=1)

    def draws(self, size: int) -> float:
        """n; less where a group has not so many as are drawn now and then."""
        from nonpareil.selection.laws import poisson_draws

        return poisson_draws(self.n, size)


@dataclass(frozen=True)
class Likelihood(Rule):
    """The highest reward + weight * log-prob."""

    name = "likelihood"
    weight: float = option(MISSING, f"Of the log-prob in nats; {_IN_REWARDS}.", at_least=0)
    per_token: bool = option(
        False, "The mean log-prob of a token in place of the sum, which favours the short."
    )

    @property
    def needs(self) -> tuple[Need, ...]:
        """Log-probs, and lengths where they are taken per token."""
        return ("logprobs", "lengths") if self.per_token else ("logprobs",)


@dataclass(frozen=True)
class Length(Rule):
    """The highest reward - weight / length."""

    name = "length"
    weight: float = option(MISSING, f"Of 1 / tokens, which it takes off; {_IN_REWARDS}.", at_least=0)

    @property
    def needs(self) -> tuple[Need, ...]:
        """Lengths."""
        return ("lengths",)


@dataclass(frozen=True)
class Mbr(Rule):
    """The candidate that is most like the others (minimum Bayes risk)."""

    name = "mbr"
    reads_rewards = False

    @property
    def needs(self) -> tuple[Need, ...]:
        """Similarities."""
        return ("similarity",)


@dataclass(frozen=True)
class MbrBestOfN(Rule):
    """The highest reward + weight * mean similarity to the others."""

    name = "mbr_best_of_n"
    weight: float = option(MISSING, f"Of the similarity; {_IN_REWARDS}.", at_least=0)

    @property
    def needs(self) -> tuple[Need, ...]:
        """Similarities."""
        return ("similarity",)


@dataclass(frozen=True)
class ChiSquare(Rule):
    """Probabilities linear in the reward above a bar and 0 below it: pessimism by a chi-square penalty."""

    name = "chi_square"
    beta: float = option(MISSING, f"Strength of the penalty; 0 is best_of_n; {_IN_REWARDS}.", at_least=0)


@dataclass(frozen=True)
class Majority(Rule):
    """The most frequent answer."""

    name = "majority"
    module = "votes"
    reads_rewards = False

    @property
    def needs(self) -> tuple[Need, ...]:
        """Answers."""
        return ("answers",)


@dataclass(frozen=True)
class WeightedMajority(Rule):
    """The answer with the largest sum of rewards."""

    name = "weighted_majority"
    module = "votes"
    temperature: float | None = option(
        None, f"Adds up exp(reward / temperature) in place of rewards; {_IN_REWARDS}.", above=0
    )

    @property
    def needs(self) -> tuple[Need, ...]:
        """Answers."""
        return ("answers",)


@dataclass(frozen=True)
class BestOfMajority(Rule):
    """The answer with the highest mean reward among those that are frequent."""

    name = "best_of_majority"
    module = "votes"
    alpha: float = option(
        MISSING, "Least share of the candidates that have the answer.", at_least=0, at_most=1
    )

    @property
    def needs(self) -> tuple[Need, ...]:
        """Answers."""
        return ("answers",)


@dataclass(frozen=True)
class MajorityOfTheBests(Rule):
    """The answer that best-of-n gives most often."""

    name = "majority_of_the_bests"
    module = "votes"
    n: int | None = option(None, "Draws of each best; the square root of all if not given.", at_least=1)

    @property
    def least(self) -> int:
        """n."""
        return self.n or 1

    @property
    def needs(self) -> tuple[Need, ...]:
        """Answers."""
        return ("answers",)


_CLASSES: tuple[type[Rule], ...] = (
    *(BestOfN, Soft, Poisson, Likelihood, Length, Mbr, MbrBestOfN, ChiSquare),
    *(Majority, WeightedMajority, BestOfMajority, MajorityOfTheBests),
)
RULES: dict[str, type[Rule]] = {cls.name: cls for cls in _CLASSES}
"""By name."""
