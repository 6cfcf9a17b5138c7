"""Credits: what other next tokens would have been worth at each position of a completion, as a value says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from nonpareil.errors import DataError

MOST_WEIGHT = 1.01
"""Of a position's weights together, which rounding may lift a little above 1."""


@dataclass(frozen=True)
class Credits:
    """Of one completion of t tokens, k candidates at each position, as `models.candidates` chooses them."""

    token_ids: np.ndarray
    """The candidates `[t, k]`, int32; the completion's own token comes first."""
    weights: np.ndarray
    """`[t, k]`, float32: under them a sum over the candidates is, on average, the reference's expectation."""
    advantages: np.ndarray
    """V(s_t, a) - V(s_t) of each candidate `[t, k]`, float32, nats; s_t: the prompt and all tokens before it."""
    prefix_values: np.ndarray
    """V(s_t) - V(prompt) `[t]`, float32, nats; the first is 0."""

    def __len__(self) -> int:
        return len(self.token_ids)


CreditsByPrompt = Mapping[str, Sequence[Credits | None]]
"""By prompt id, those of each completion of the group in its order; None where a completion has none."""


def check_credits(credits: Credits, completion_ids: Sequence[int], where: str) -> None:
    """Refuse credits that are not those of a completion, or no numbers; `where` says whose they are meant to be.

    Raises:
        DataError: arrays of other shapes or kinds, another completion, weights that are no share of a whole, NaN.
    """
    found = {each.name: getattr(credits, each.name) for each in fields(credits)}
    shapes = [array.shape for array in found.values()]
    if len(shapes[0]) != 2 or not shapes[0][1] or shapes[1:] != [shapes[0], shapes[0], shapes[0][:1]]:
        raise DataError(f"{where}: arrays of the shapes {shapes}; [t, k], [t, k], [t, k] and [t] are meant")
    kinds = {name: array.dtype for name, array in found.items()}
    if kinds != {name: np.dtype("int32" if name == "token_ids" else "float32") for name in kinds}:
        shown = ", ".join(f"{name} {kind}" for name, kind in kinds.items())
        raise DataError(f"{where}: {shown}; token_ids are meant as int32, all else as float32")
    if not np.array_equal(credits.token_ids[:, 0], completion_ids):
        raise DataError(
            f"{where}: they are of another completion than the groups' (whose own token stands first among the "
            "candidates of a position); make them of these very groups"
        )
    for name in ("weights", "advantages", "prefix_values"):
        if not np.isfinite(found[name]).all():
            raise DataError(f"{where}: {name} that are NaN or infinite; make them anew")
    sums = credits.weights.sum(-1, dtype=np.float64)
    if (credits.weights < 0).any() or (sums > MOST_WEIGHT).any():
        raise DataError(f"{where}: weights that are negative, or more than 1 together; make them anew")
