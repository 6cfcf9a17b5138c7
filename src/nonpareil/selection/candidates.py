"""The candidates of prompts as numbers: what rules read, from rewards, texts and tokens of groups."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nonpareil.errors import DataError
from nonpareil.selection.needs import REMEDIES, Need
from nonpareil.selection.texts import answer_numbers, pairwise


@dataclass(frozen=True)
class Candidates:
    """b prompts with m candidates each; None for what no rule asked for."""

    rewards: Float[Tensor, "b m"]
    """NaN where it failed; such a candidate is never chosen."""
    answers: Int[Tensor, "b m"] | None = None
    """Equal where the answers of a prompt are; negative where none could be read."""
    logprobs: Float[Tensor, "b m"] | None = None
    """Nats, summed over the completion; NaN where not known."""
    similarity: Float[Tensor, "b m m"] | None = None
    """Of each (row) as a guess at the other (column)."""
    lengths: Float[Tensor, "b m"] | None = None
    """Tokens, the end token included; NaN where not known."""

    def need(self, name: Need, rule: str) -> Tensor:
        """What a rule reads.

        Raises:
            DataError: it is not there, or known of no candidate.
        """
        values = getattr(self, name)
        if values is None or (values.is_floating_point() and values.isnan().all()):
            raise DataError(f"rule {rule!r} reads {name}, which the completions lack; {REMEDIES[name]}")
        return values

    def rows(self, which: Tensor | slice) -> "Candidates":
        """Some of the prompts."""
        return self._with(lambda name, values: values[which])

    def known_where(self, which: Bool[Tensor, "b m"]) -> "Candidates":
        """Those elsewhere as if their reward had failed."""
        return replace(self, rewards=torch.where(which, self.rewards, torch.nan))

    def without(self, place: int) -> "Candidates":
        """All prompts without their candidate at this place."""
        left = [other for other in range(self.rewards.shape[1]) if other != place]

        def cut(name: str, values: Tensor) -> Tensor:
            return values[:, left][:, :, left] if name == "similarity" else values[:, left]

        return self._with(cut)

    def _with(self, change: Callable[[str, Tensor], Tensor]) -> "Candidates":
        held = {one.name: getattr(self, one.name) for one in fields(self)}
        return replace(self, **{k: change(k, values) for k, values in held.items() if values is not None})


def candidates_of(
    rewards: Sequence[Sequence[float | None]],
    needs: Sequence[Need] = (),
    *,
    texts: Sequence[Sequence[str]] = (),
    token_logprobs: Sequence[Sequence[Sequence[float] | None]] = (),
    lengths: Sequence[Sequence[int | None]] = (),
    answers: str = "final",
    similarity: str | Callable[[str, str], float] = "chrf",
) -> Candidates:
    """The candidates of prompts, a row each, with what the rules need and nothing else.

    Args:
        rewards: None where one failed.
        needs: of the rules (`Rule.needs`).
        texts: of the completions; for answers and similarity.
        token_logprobs: nats of each token; None or empty where not known.
        lengths: tokens; None or 0 where not known.
        answers: how they are read from texts: `texts.ANSWERS`.
        similarity: how two texts are compared: `texts.SIMILARITIES`, or a function of two texts.

    Raises:
        ConfigError: another word for answers or similarity, or a package that is not installed.
        DataError: a similarity that is no number.
    """
    return Candidates(
        numbers_of(rewards),
        torch.tensor([answer_numbers(row, answers) for row in texts]) if "answers" in needs else None,
        numbers_of([[sum(one) if one else None for one in row] for row in token_logprobs])
        if "logprobs" in needs and token_logprobs
        else None,
        torch.stack([pairwise(row, similarity) for row in texts]) if "similarity" in needs else None,
        numbers_of([[one or None for one in row] for row in lengths])
        if "lengths" in needs and lengths
        else None,
    )


def numbers_of(rows: Sequence[Sequence[float | None]]) -> Float[Tensor, "b m"]:
    """Rows of equal length, float64, NaN for None."""
    return torch.tensor(
        [[float("nan") if value is None else float(value) for value in row] for row in rows],
        dtype=torch.float64,
    )
