"""Draw inside vLLM what the transformers engine draws: each token by its completion's own key and step.

A processor of logits for version 1 of vLLM's model runner, the one on CPUs: it draws the token, and leaves it as
the only one that vLLM, picking greedily, can pick. Drawn by vLLM, with a seed for each request, a token costs a
random number for every entry of the vocabulary. vLLM's workers load this file by its import path.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, process_dict_updates

from nonpareil.engines.sampling import sample_tokens
from nonpareil.engines.vllm.requests import KEYED, keyed_request
from nonpareil.maths.keyed_noise import keys_after
from nonpareil.records import SamplingParams

if TYPE_CHECKING:
    from vllm import SamplingParams as VLLMParams
    from vllm.config import VllmConfig


@dataclass(frozen=True)
class _Row:
    """A request in vLLM's batch."""

    number: int
    """Of the request within its call."""
    key: int
    sampling: SamplingParams
    drawn: list[int]
    """Its tokens so far; vLLM's own list, which grows."""


@dataclass(frozen=True)
class _Rows:
    """The rows of a batch that are drawn alike."""

    places: torch.Tensor
    numbers: np.ndarray
    keys: np.ndarray
    sampling: SamplingParams
    drawn: list[list[int]]


@dataclass
class _Log:
    """Log-probs of what was drawn, in the order of drawing: of each, the requests, the steps and the values."""

    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)

    def take(self) -> dict[int, list[float]]:
        """One list per request, by its number, in the order of the steps; and forget them.

        Of a step that was drawn more than once, as after a prompt read in parts, the last value counts.
        """
        found: dict[int, dict[int, float]] = {}
        for part in self.parts:
            for number, step, value in zip(*(column.tolist() for column in part), strict=True):
                found.setdefault(number, {})[step] = value
        self.parts = []
        return {number: [values[step] for step in sorted(values)] for number, values in found.items()}


class KeyedDraws(LogitsProcessor):
    """Draws the requests of `requests.keyed_settings`; all others it leaves to vLLM."""

    def __init__(self, vllm_config: "VllmConfig", device: torch.device, is_pin_memory: bool) -> None:
        """As vLLM calls it."""
        self.device, self.log = device, _Log()
        self._rows: dict[int, _Row] = {}
        self._batches: list[_Rows] = []

    def is_argmax_invariant(self) -> bool:
        """It decides what is picked."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the requests that come, go and move within the batch."""
        if process_dict_updates(self._rows, batch_update, _row):
            self._batches = list(_alike(self._rows, self.device))

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Draw a token for each row that is ours, of float32 logits [rows, vocabulary]; the others stay."""
        for rows in self._batches:
            whole = len(rows.places) == len(logits)
            steps = np.array([len(drawn) for drawn in rows.drawn])
            keys = keys_after(rows.keys, steps)
            tokens, logprobs = sample_tokens(logits if whole else logits[rows.places], rows.sampling, keys, 0)
            logits[... if whole else rows.places] = -torch.inf
            logits[rows.places, tokens] = 0.0
            self.log.parts.append((rows.numbers, steps, logprobs.cpu().numpy()))
        return logits


def _row(params: "VLLMParams", prompt: list[int] | None, drawn: list[int]) -> _Row | None:
    arguments: list[Any] | None = (params.extra_args or {}).get(KEYED)
    return None if arguments is None else _Row(*keyed_request(arguments), drawn)


def _alike(rows: dict[int, _Row], device: torch.device) -> Iterable[_Rows]:
    """The rows by their sampling settings, each part in the order of the batch."""
    for sampling in dict.fromkeys(row.sampling for row in rows.values()):
        places = sorted(place for place, row in rows.items() if row.sampling == sampling)
        ours = [rows[place] for place in places]
        yield _Rows(
            torch.tensor(places, device=device),
            np.array([row.number for row in ours]),
            np.array([row.key for row in ours], dtype=np.uint64),
            sampling,
            [row.drawn for row in ours],
        )
