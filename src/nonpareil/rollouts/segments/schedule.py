"""When completions are scored before they are whole, how many of them go on, and in how many ways.

A schedule is numbers alone: how much memory there is, or how a batch is put together, changes none of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nonpareil.errors import ConfigError
from nonpareil.setting_types import check_value


@dataclass(frozen=True)
class Layer:
    """What happens once every completion has so many tokens or has ended."""

    length: int
    """Tokens of a completion."""
    share: float = 1.0
    """Of the completions that are compared, the best that are kept; rounded, halves up, and at least one."""
    most: int | None = None
    """Most that are kept."""
    children: int = 1
    """Ways in which each that is kept goes on, unless it has ended."""

    def keeps(self, compared: int) -> int:
        """How many of so many are kept."""
        kept = max(1, math.floor(self.share * compared + 0.5))
        return min(kept, self.most or kept, compared)


@dataclass(frozen=True)
class Schedule:
    """How a search goes: so many completions begun, then layer by layer.

    Raises:
        ConfigError: lengths that do not rise, or numbers out of their range.
    """

    num_generations: int
    """Completions of each prompt that are begun."""
    layers: tuple[Layer, ...] = ()

    def __post_init__(self) -> None:
        """See the class."""
        check_value("num_generations", self.num_generations, int, at_least=1)
        lengths = [layer.length for layer in self.layers]
        if any(length < 1 for length in lengths) or sorted(set(lengths)) != lengths:
            raise ConfigError(f"score_at={lengths} must be lengths in tokens that rise, from 1 on")
        for layer in self.layers:
            if not 0 < layer.share <= 1 or layer.children < 1 or (layer.most is not None and layer.most < 1):
                raise ConfigError(f"{layer}: share must lie in (0, 1], children and most be at least 1")

    @property
    def most_rows(self) -> int:
        """The most completions of a prompt that are drawn at once."""
        rows = [self.num_generations]
        for layer in self.layers:
            rows.append(layer.keeps(rows[-1]) * layer.children)
        return max(rows)

    def check_length(self, max_completion_length: int) -> None:
        """Refuse a layer that nothing would follow.

        Raises:
            ConfigError: naming its length.
        """
        if self.layers and self.layers[-1].length >= max_completion_length:
            raise ConfigError(
                f"score_at={self.layers[-1].length} is not below max_completion_length={max_completion_length}: "
                "whole completions are scored anyway; lower it, or draw longer completions"
            )


def best_of_n(n: int) -> Schedule:
    """Draw n whole completions and choose among them."""
    return Schedule(n)


def speculative_rejection(n: int, rejection_rate: float, lengths: Sequence[int]) -> Schedule:
    """Begin n; at each length the share `rejection_rate` of those that are compared is given up (arXiv:2410.20290).

    The paper's lengths follow from the memory that is free; ours are given, so that a seed's answers are the same
    on every machine. At a rate of 0 this is best-of-n.

    Raises:
        ConfigError: a rate that is not in [0, 1), or as `Schedule`.
    """
    check_value("rejection_rate", rejection_rate, float, at_least=0, below=1)
    return Schedule(n, tuple(Layer(length, share=1 - rejection_rate) for length in lengths))


def tree(n: int, children: int, lengths: Sequence[int]) -> Schedule:
    """Begin n; at each length the best n / children go on in `children` ways each (as TreeBoN, arXiv:2410.16033).

    n are drawn at every moment, unless some have ended. With one child this is best-of-n.

    Raises:
        ConfigError: `children` that do not divide n, or as `Schedule`.
    """
    check_value("children", children, int, at_least=1)
    if n % children:
        raise ConfigError(f"children={children} does not divide num_generations={n}; give one that does")
    layers = (Layer(length, most=n // children, children=children) for length in lengths)
    return Schedule(n, tuple(layers))


def blockwise(k: int, block_length: int, max_completion_length: int) -> Schedule:
    """Draw k blocks of so many tokens, keep the best, go on from it (blockwise decoding, arXiv:2310.17022).

    Raises:
        ConfigError: numbers below 1.
    """
    check_value("block_length", block_length, int, at_least=1)
    lengths = range(block_length, max_completion_length, block_length)
    return Schedule(k, tuple(Layer(length, most=1, children=k) for length in lengths))
