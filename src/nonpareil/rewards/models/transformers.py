"""A reward model that transformers runs in this process: float32 head, scores that no batch changes."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nonpareil.errors import ConfigError, ModelError, RewardError
from nonpareil.models.devices import best_device, device_of, resolve_dtype
from nonpareil.models.fingerprint import fingerprint, module_fingerprint
from nonpareil.models.loading import load_tokenizer
from nonpareil.models.memory import free_memory
from nonpareil.records import ScoreRequest, Scores
from nonpareil.rewards.models.classifier_reward import ClassifierReward, score_once
from nonpareil.rewards.models.encoding import RewardEncoder
from nonpareil.rewards.models.loading import (
    cast_body,
    check_single_label,
    keep_head_in_float32,
    load_classifier,
)
from nonpareil.rewards.models.passes import check_ids, logits_of, none_without_memory, pad_of, pass_size
from nonpareil.rewards.models.prefix_cache import read_prefixes
from nonpareil.rewards.models.prefix_check import PrefixCheck
from nonpareil.rewards.models.shared_prefixes import Row, SharedBatch, shared_batches
from nonpareil.rewards.models.text_options import TextOptions
from nonpareil.setting_types import check_value

KEYS_HELD = 4
"""Keys of prefix and suffix together that a pass may hold in one layer, as a multiple of a pass's tokens."""


class RewardModel(ClassifierReward):
    """Scores prompt + completion with a `num_labels=1` classifier; the logit is the reward.

    Args:
        model: a path, a hub id, or a model already in memory (whose head is then kept in float32, in place).
        tokenizer: the reward model's own; by default the one beside it, or where a model in memory came from.
        name: of the reward's column; by default the last part of the model's path.
        dtype: of the body: "auto" (bfloat16 where the machine gains; a model in memory keeps its own),
            "bfloat16", "float16", "float32" or a torch dtype. The head is float32 always.
        device: by default the machine's best, or where a model in memory lies.
        max_tokens_per_batch: rows times the longest row of a pass, by default 2,048 on a CPU and 16,384 elsewhere;
            halved when memory runs out. What the completions of a prompt begin with is read once, where the model
            scores alike then and it pays, and does not count again.
        revision: of a hub model.
        trust_remote_code: run code that the model brings along.
        **text: how a text is written for it: `append_eos`, `prepend_bos`, `max_length`, `overlong`,
            `chat_template_kwargs`; see `TextOptions`.

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
        max_tokens_per_batch: int | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        **text: Any,
    ) -> None:
        """See the class."""
        options = TextOptions(**text)
        if max_tokens_per_batch is not None:
            check_value("max_tokens_per_batch", max_tokens_per_batch, int, at_least=1)
        self._path = None if isinstance(model, nn.Module) else str(model)
        self._revision, self._trust = revision, trust_remote_code
        self._tokenizer = tokenizer
        self._dtype, self._device = dtype, device
        self._fingerprint: str | None = None
        self._model: Any = None
        self._check: PrefixCheck | None = None
        self._take(model) if isinstance(model, nn.Module) else self._load()
        self._tokens_per_batch = max_tokens_per_batch or pass_size(device_of(self._loaded())).tokens
        config = self._loaded().config
        self.name = name or _short_name(self._path or config.name_or_path, type(self._model).__name__)
        self.encoder = RewardEncoder.of(self._tokenizer, config, self.name, options)

    def score(self, request: ScoreRequest) -> Scores:
        """The logit of every prompt + completion; None where it is not finite or the text cannot be scored.

        Raises:
            DataError, ModelError: as `inspect`.
            RewardError: out of memory on a single row.
        """
        encoded = self._encoded(request)
        prompt_of = {
            tuple(text.token_ids): prompt if isinstance(prompt, str) else repr(prompt)
            for text, prompt in zip(encoded, request.prompts, strict=True)
        }
        return score_once(encoded, partial(self._score_rows, prompt_of=prompt_of))

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
        self._model = self._check = None
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
            self._tokenizer = _tokenizer_beside(model, trust_remote_code=self._trust)
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

    def _score_rows(self, rows: list[Row], prompt_of: Mapping[Row, str]) -> list[float]:
        """One logit per row, in order; what rows of one prompt begin with is read once, where that pays."""
        if not rows:
            return []
        model = self._loaded()
        check_ids(model, rows)
        was_training = model.training
        model.eval()
        logits: dict[int, float] = {}
        try:
            for batch in self._shared(rows, prompt_of):
                self._score_shared(rows, batch, logits)
            self._score_whole(rows, logits)
        finally:
            model.train(was_training)
        return [logits[i] for i in range(len(rows))]

    def _shared(self, rows: list[Row], prompt_of: Mapping[Row, str]) -> list[SharedBatch]:
        """The batches to score behind prefixes; none where the model does not score alike then."""
        overhead = pass_size(device_of(self._model)).overhead
        batches = shared_batches(rows, prompt_of, pad_of(self._model), self._tokens_per_batch, overhead)
        if not batches:
            return []
        self._check = self._check or PrefixCheck(self._model)
        shortest = min(batch.length for batch in batches)
        longest = max(len(rows[i]) for batch in batches for group in batch.members for i in group)
        return batches if self._check.holds(shortest, longest) else []

    def _score_shared(self, rows: list[Row], batch: SharedBatch, logits: dict[int, float]) -> None:
        """Read the batch's prefixes once, and score what follows each; rows that find no memory stay unscored."""
        length = batch.length
        read = partial(read_prefixes, self._model, [rows[group[0]][:length] for group in batch.members])
        prefixes = none_without_memory(read)
        if prefixes is None:
            return self._halve(self._tokens_per_batch // 2)
        owner = {i: place for place, group in enumerate(batch.members) for i in group}
        pending = sorted(owner, key=lambda i: -len(rows[i]))
        while pending:
            longest = len(rows[pending[0]])
            most = min(
                self._tokens_per_batch // (longest - length), KEYS_HELD * self._tokens_per_batch // longest
            )
            batch_rows = pending[: max(1, most)]
            pending = pending[len(batch_rows) :]
            suffixes = [rows[i][length:] for i in batch_rows]
            owners = [owner[i] for i in batch_rows]
            scored = none_without_memory(partial(logits_of, self._model, suffixes, prefixes, owners))
            if scored is None:
                return self._halve(self._tokens_per_batch // 2)
            logits.update(zip(batch_rows, scored, strict=True))
        return None

    def _score_whole(self, rows: list[Row], logits: dict[int, float]) -> None:
        """Score what has no logit yet: longest rows first, so that memory runs out at once or not at all."""
        pending = sorted((i for i in range(len(rows)) if i not in logits), key=lambda i: -len(rows[i]))
        while pending:
            longest = len(rows[pending[0]])
            batch = pending[: max(1, self._tokens_per_batch // longest)]
            scored = none_without_memory(partial(logits_of, self._model, [rows[i] for i in batch]))
            if scored is None:
                if len(batch) == 1:
                    free_memory()
                    raise RewardError(
                        f"reward model {self.name!r} ran out of memory on a single text of {longest} tokens; lower "
                        "max_completion_length, use dtype='bfloat16' or a device with more memory"
                    )
                self._halve(len(batch) // 2 * longest)
                continue
            logits.update(zip(batch, scored, strict=True))
            pending = pending[len(batch) :]

    def _halve(self, tokens: int) -> None:
        """Lower the budget for good: the next batch of this size would run out of memory too."""
        free_memory()
        self._tokens_per_batch = max(1, tokens)


def _tokenizer_beside(model: Any, *, trust_remote_code: bool) -> Any:
    """The tokenizer where a model in memory was loaded from, as TRL finds it.

    Raises:
        ModelError: the model does not say where that is, or there is none.
    """
    name = str(getattr(model.config, "name_or_path", "") or "")
    needed = (
        f"a {type(model).__name__} in memory needs its own tokenizer: pass tokenizer= (to a trainer, "
        "reward_processing_classes=)"
    )
    if not name:
        raise ModelError(needed)
    try:
        return load_tokenizer(name, field="reward model", trust_remote_code=trust_remote_code)
    except (ConfigError, ModelError) as error:
        raise ModelError(f"{needed}, and none could be read where the model came from: {error}") from error


def _short_name(path: str | None, fallback: str) -> str:
    return Path(path).name if path else fallback
