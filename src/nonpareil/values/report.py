"""How good a value is on prompts that it was not fitted on: likelihood, correlation and calibration."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from nonpareil.files import jsonable
from nonpareil.maths.bootstrap import Interval, bootstrap_interval
from nonpareil.models.logprobs import token_budget_batches
from nonpareil.models.modes import evaluation_mode
from nonpareil.values.examples import Examples
from nonpareil.values.network import prefix_states, read_head

TENTHS = 10


@dataclass(frozen=True)
class AtPosition:
    """After so many tokens."""

    tokens: int | None
    """None: at the completion's end."""
    completions: int
    """That are so long."""
    gain: float
    """Nats by which the quantile is likelier than under a uniform law: mean over those completions."""
    squared_correlation: float
    """Within prompts, of the predicted mean quantile with the quantile; of all completions, with the last
    prediction of those that have ended. NaN where nothing varies."""


@dataclass(frozen=True)
class Tenth:
    """Of all prefixes, in the order of the predicted mean quantile."""

    predicted: float
    seen: float
    """The mean quantile of their completions."""


@dataclass(frozen=True)
class ValueReport:
    """A value on held-out prompts. Quantiles are those within the stored group."""

    prompts: int
    completions: int
    bins: int
    gain: Interval
    """Nats per prefix below the uniform law's log(bins); over prompts."""
    fitted_gain: float
    """The same on as many of the prompts that it was fitted on: what is more there was remembered."""
    by_position: list[AtPosition]
    calibration: list[Tenth]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return jsonable(self)

    @property
    def tells_nothing(self) -> bool:
        """Whether a uniform law does as well."""
        return not self.gain.estimate > 0


@dataclass(frozen=True)
class _Predictions:
    """Of each completion, at each of its t + 1 prefixes."""

    gains: list[Float[Tensor, " t"]]
    means: list[Float[Tensor, " t"]]
    """The mean quantile that is predicted."""


def value_report(
    model: PreTrainedModel,
    held_out: Examples,
    fitted: Examples,
    max_tokens_per_batch: int = 16384,
    seed: int = 0,
) -> ValueReport:
    """Of a fitted network; `fitted` has as many prompts as `held_out` or less, and `seed` is the bootstrap's."""
    predicted = _predict(model, held_out, max_tokens_per_batch)
    bins = held_out.labels.shape[1]
    middles = (torch.arange(bins, dtype=torch.float64) + 0.5) / bins
    quantiles = held_out.labels.double() @ middles
    prompts = torch.tensor(held_out.prompts)
    return ValueReport(
        prompts=held_out.num_prompts,
        completions=len(held_out),
        bins=bins,
        gain=bootstrap_interval(_of_prompts(predicted, held_out), seed=seed),
        fitted_gain=_of_prompts(_predict(model, fitted, max_tokens_per_batch), fitted).mean().item(),
        by_position=[_at(t, predicted, quantiles, prompts) for t in _positions(predicted)],
        calibration=_calibration(predicted, quantiles),
    )


@torch.no_grad()
def _predict(model: PreTrainedModel, examples: Examples, max_tokens: int) -> _Predictions:
    bins = examples.labels.shape[1]
    middles = (torch.arange(bins) + 0.5) / bins
    found: list[tuple[Tensor, Tensor]] = [(torch.empty(0), torch.empty(0))] * len(examples)
    with evaluation_mode(model):
        for batch in token_budget_batches(examples.sequences.lengths(), max_tokens):
            some = examples.sequences.select(batch)
            sizes = [len(ids) + 1 for ids in some.completion_ids]
            logprobs = read_head(model, prefix_states(model, some)).log_softmax(-1).cpu()
            for row, own in zip(batch, logprobs.split(sizes), strict=True):
                found[row] = own @ examples.labels[row] + math.log(bins), own.exp() @ middles
    return _Predictions(*map(list, zip(*found, strict=True)))


def _of_prompts(predicted: _Predictions, examples: Examples) -> Float[Tensor, " b"]:
    """The mean gain over the prefixes of each prompt."""
    prompts = torch.tensor(examples.prompts)
    sums = torch.zeros(2, examples.num_prompts, dtype=torch.float64)
    sums[0].index_add_(0, prompts, torch.stack([gain.double().sum() for gain in predicted.gains]))
    sums[1].index_add_(0, prompts, torch.tensor([len(gain) for gain in predicted.gains]).double())
    return sums[0] / sums[1]


def _positions(predicted: _Predictions) -> list[int | None]:
    """1, 2, 5, 10, 20, 50, ... tokens, as far as half of the completions go; then the end."""
    lengths = torch.tensor([len(gain) - 1 for gain in predicted.gains])
    steps = [digit * 10**power for power in range(7) for digit in (1, 2, 5)]
    return [*(step for step in steps if step <= lengths.median()), None]


def _at(tokens: int | None, predicted: _Predictions, quantiles: Tensor, prompts: Tensor) -> AtPosition:
    far = torch.tensor([tokens is None or len(gain) > tokens for gain in predicted.gains])
    place = -1 if tokens is None else tokens
    gains = [gain[place] for gain, here in zip(predicted.gains, far.tolist(), strict=True) if here]
    means = torch.stack(
        [mean[place if here else -1] for mean, here in zip(predicted.means, far.tolist(), strict=True)]
    )
    return AtPosition(
        tokens=tokens,
        completions=len(gains),
        gain=torch.stack(gains).double().mean().item(),
        squared_correlation=squared_within(means.double(), quantiles, prompts),
    )


def squared_within(one: Float[Tensor, " b"], other: Float[Tensor, " b"], prompts: Tensor) -> float:
    """The squared correlation of what is left of each once every prompt's mean is taken off."""
    left = [values - _means(values, prompts) for values in (one, other)]
    spread = left[0].square().sum() * left[1].square().sum()
    return (left[0].dot(left[1]).square() / spread).item() if spread > 0 else math.nan


def _means(values: Tensor, prompts: Tensor) -> Tensor:
    sums = torch.zeros(2, int(prompts.max()) + 1, dtype=values.dtype)
    sums[0].index_add_(0, prompts, values)
    sums[1].index_add_(0, prompts, torch.ones_like(values))
    return (sums[0] / sums[1])[prompts]


def _calibration(predicted: _Predictions, quantiles: Tensor) -> list[Tenth]:
    means = torch.cat(predicted.means).double()
    seen = quantiles.repeat_interleave(torch.tensor([len(mean) for mean in predicted.means]))
    parts = means.argsort().tensor_split(TENTHS)
    return [Tenth(means[part].mean().item(), seen[part].mean().item()) for part in parts if len(part)]
