"""A reward model that transformers runs in this process: float32 head, scores that no batch changes."""

import inspect
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nonpareil.errors import ModelError, RewardError
from nonpareil.models.devices import best_device, resolve_dtype
from nonpareil.models.fingerprint import fingerprint, module_fingerprint
from nonpareil.models.memory import free_memory
from nonpareil.records import ScoreRequest, Scores
from nonpareil.rewards.models.classifier import (
    cast_body,
    check_single_label,
    keep_head_in_float32,
    load_classifier,
)
from nonpareil.rewards.models.classifier_reward import ClassifierReward
from nonpareil.rewards.models.encoding import RewardEncoder, score_once
from nonpareil.rewards.models.text_options import TextOptions
from nonpareil.setting_types import check_value


class RewardModel(ClassifierReward):
    """Scores prompt + completion with a `num_labels=1` classifier; the logit is the reward.

    Args:
        model: a path, a hub id, or a model already in memory (whose head is then kept in float32, in place).
        tokenizer: the reward model's own; by default the one beside it. A model in memory needs it given.
        name: of the reward's column; by default the last part of the model's path.
        dtype: of the body: "auto" (bfloat16 where the machine gains; a model in memory keeps its own),
            "bfloat16", "float16", "float32" or a torch dtype. The head is float32 always.
        device: by default the machine's best, or where a model in memory lies.
        max_tokens_per_batch: rows times the longest row; halved when memory runs out.
        revision: of a hub model.
        trust_remote_code: run code that the model brings along.
        **text: how a text is written for it: `append_eos`, `prepend_bos`, `max_length`, `overlong`; see
            `TextOptions`.

    Raises:
        ModelError: a random head, num_labels not 1, no tokenizer, or no such model; before any scoring.
        ConfigError: a setting that cannot work.
    """

    def __init__(
        self,
        model: str | Path | nn.Module,
        tokenizer: Any | None = None,
        *,
        name: str | None = None,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device | None = None,
        max_tokens_per_batch: int = 16384,
        revision: str | None = None,
        trust_remote_code: bool = False,
        **text: Any,
    ) -> None:
        """See the class."""
        options = TextOptions(**text)
        check_value("max_tokens_per_batch", max_tokens_per_batch, int, at_least=1)
        self._path = None if isinstance(model, nn.Module) else str(model)
        self._revision, self._trust = revision, trust_remote_code
        self._tokenizer = tokenizer
        self._dtype, self._device = dtype, device
        self._tokens_per_batch = max_tokens_per_batch
        self._fingerprint: str | None = None
        self._model: Any = None
        self._take(model) if isinstance(model, nn.Module) else self._load()
        config = self._loaded().config
        self.name = name or _short_name(self._path or config.name_or_path, type(self._model).__name__)
        self.encoder = RewardEncoder.of(self._tokenizer, config, self.name, options)

    def score(self, request: ScoreRequest) -> Scores:
        """The logit of every prompt + completion; None where it is not finite or the text cannot be scored.

        Raises:
            DataError, ModelError: as `inspect`.
            RewardError: out of memory on a single row.
        """
        return score_once(self._encoded(request), self._score_rows)

    def describe(self) -> dict[str, Any]:
        """Settings that change the scores, with a fingerprint of the weights."""
        if self._fingerprint is None:
            self._fingerprint = (
                fingerprint(self._path, self._revision, trust_remote_code=self._trust)
                if self._path
                else module_fingerprint(self._loaded())
            )
        return {
            "name": self.name,
            "kind": "model",
            "path": self._path,
            "revision": self._revision,
            "fingerprint": self._fingerprint,
            "dtype": str(self._body_dtype).removeprefix("torch."),
            **self.encoder.options.describe(),
            **({"trust_remote_code": True} if self._trust else {}),
        }

    def release(self) -> None:
        """Free the model's memory. A model given by path is loaded again when next it scores."""
        self._model = None
        free_memory()

    def _load(self) -> None:
        assert self._path is not None
        device = torch.device(self._device) if self._device else best_device()
        self._body_dtype = resolve_dtype(self._dtype, device)
        self._model, self._tokenizer = load_classifier(
            self._path, self._tokenizer, self._body_dtype, self._revision, trust_remote_code=self._trust
        )
        keep_head_in_float32(self._model)
        self._model.to(device)

    def _take(self, model: nn.Module) -> None:
        """Accept a model in memory, as it is but for its head's precision."""
        check_single_label(model.config, type(model).__name__)
        if self._tokenizer is None:
            raise ModelError(f"a {type(model).__name__} in memory needs its own tokenizer: pass tokenizer=")
        parameter = next(model.parameters())
        self._body_dtype = parameter.dtype
        if self._dtype != "auto":
            self._body_dtype = resolve_dtype(self._dtype, parameter.device)
            cast_body(model, self._body_dtype)
        keep_head_in_float32(model)
        self._model = model.to(self._device) if self._device else model

    def _loaded(self) -> Any:
        if self._model is None and self._path is None:
            raise ModelError(f"reward model {self.name!r} was released and has no path to load it from again")
        if self._model is None:
            self._load()
        return self._model

    def _score_rows(self, rows: list[tuple[int, ...]]) -> list[float]:
        """One logit a row, in order: longest rows first, so that memory runs out at once or not at all."""
        if not rows:
            return []
        model = self._loaded()
        was_training = model.training
        model.eval()
        pending = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        logits = [math.nan] * len(rows)
        try:
            while pending:
                longest = len(rows[pending[0]])
                batch = pending[: max(1, self._tokens_per_batch // longest)]
                scored = _forward_or_none(model, [rows[i] for i in batch])
                if scored is None:
                    self._halve(len(batch), longest)
                    continue
                for i, value in zip(batch, scored, strict=True):
                    logits[i] = value
                pending = pending[len(batch) :]
        finally:
            model.train(was_training)
        return logits

    def _halve(self, rows: int, longest: int) -> None:
        """Lower the budget for good: the next batch of this size would run out of memory too."""
        free_memory()
        if rows == 1:
            raise RewardError(
                f"reward model {self.name!r} ran out of memory on a single text of {longest} tokens; lower "
                "max_completion_length, use dtype='bfloat16' or a device with more memory"
            )
        self._tokens_per_batch = rows // 2 * longest


def _forward_or_none(model: Any, rows: list[tuple[int, ...]]) -> list[float] | None:
    """The logits of one batch, or None where memory ran out (not raised, so that the frames are freed)."""
    try:
        return _forward(model, rows)
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        message = str(error).lower()
        if isinstance(error, torch.OutOfMemoryError) or any(
            sign in message for sign in ("out of memory", "can't allocate memory", "not enough memory")
        ):
            return None
        raise


@torch.inference_mode()
def _forward(model: Any, rows: list[tuple[int, ...]]) -> list[float]:
    """Pad on the right, mask by length, and let the model pool where it was trained to.

    Decoder classifiers pool at the last token that is not `config.pad_token_id`, so we pad with that id.
    Where the model has none, an id that no row holds stands in for it during this forward.
    """
    config = model.config.get_text_config()
    embeddings = model.get_input_embeddings().weight
    vocabulary = embeddings.shape[0]
    largest = max(map(max, rows))
    if largest >= vocabulary:
        raise ModelError(
            f"the reward model's tokenizer gave token {largest}, but its model has {vocabulary} embeddings"
        )
    declared = config.pad_token_id
    pad: int | None = declared
    if declared is None or not 0 <= declared < vocabulary:
        pad = next(iter(set(range(vocabulary)).difference(*rows)), None)
        if pad is None and len(rows) > 1:  # every id is in use: a row alone needs no padding
            return [logit for row in rows for logit in _forward(model, [row])]
    input_ids = torch.full((len(rows), max(map(len, rows))), pad or 0)
    attention_mask = torch.zeros_like(input_ids)
    for i, row in enumerate(rows):
        input_ids[i, : len(row)] = torch.tensor(row)
        attention_mask[i, : len(row)] = 1
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    config.pad_token_id = pad
    try:
        output = model(**{name: tensor.to(embeddings.device) for name, tensor in inputs.items()}, **options)
    finally:
        config.pad_token_id = declared
    return output.logits.float().reshape(len(rows)).tolist()


def _short_name(path: str | None, fallback: str) -> str:
    return Path(path).name if path else fallback
