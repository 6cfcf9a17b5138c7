"""A reward model that a vLLM server runs: token ids go in, as the model reads them, and logits come out."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nonpareil.answers import is_text, shown
from nonpareil.errors import ModelError, RewardError
from nonpareil.models.fingerprint import fingerprint
from nonpareil.models.loading import load_tokenizer
from nonpareil.models.pretrained import check_local_path, read_config
from nonpareil.records import ScoreRequest, Scores
from nonpareil.remote import run_coroutine
from nonpareil.rewards.endpoints.address import Endpoint, parse_endpoint
from nonpareil.rewards.endpoints.json_protocol import RemoteReward, read_scores
from nonpareil.rewards.models.classifier import check_single_label
from nonpareil.rewards.models.classifier_reward import ClassifierReward
from nonpareil.rewards.models.encoding import RewardEncoder, without_end_pads
from nonpareil.rewards.models.text_options import TEXT_OPTIONS, TextOptions

CANARIES = ("a", "The answer is no.", "It was good, and I would go there again.", "0 1 2 3 4 5 6 7 8 9")
"""Texts whose logits tell whether the server honours `use_activation`."""


class ServedRewardModel(ClassifierReward, RemoteReward):
    """The logit of `python -m vllm.entrypoints.openai.api_server --model MODEL --runner pooling`.

    Token ids are sent, written here with the reward model's own tokenizer and chat template, so that the
    text is read as `RewardModel` reads it; only configuration and tokenizer are loaded. The server is asked
    for the logit itself: by default it answers a sigmoid of it, and one that does not know the request's
    `use_activation` would too, so the difference between the two is looked for before anything is scored.

    Args:
        endpoint: `vllm+http://host:port#model`.
        tokenizer: the reward model's own; by default the one beside it.
        trust_remote_code: run code that the tokenizer brings along.
        **settings: how a text is written for it, as `TextOptions` has it, and the others of `RemoteReward`:
            `timeout`, `api_key_env`, `batch_size`, `at_once`, `max_retries`.

    Raises:
        ModelError: num_labels not 1, no tokenizer, a server that answers probabilities, or one that serves
            another model.
        ConfigError, RemoteError, RewardError: as `RemoteReward`.
    """

    def __init__(
        self,
        endpoint: str | Endpoint,
        tokenizer: Any | None = None,
        *,
        trust_remote_code: bool = False,
        **settings: Any,
    ) -> None:
        """See the class."""
        options = TextOptions(**{name: settings.pop(name) for name in TEXT_OPTIONS if name in settings})
        endpoint = parse_endpoint(endpoint) if isinstance(endpoint, str) else endpoint
        self._path = str(Path(endpoint.label).expanduser())
        check_local_path(self._path, "reward endpoint's model")
        if tokenizer is None:
            tokenizer = load_tokenizer(
                self._path, field="reward endpoint's model", trust_remote_code=trust_remote_code
            )
        config = read_config(self._path, trust_remote_code=trust_remote_code)
        check_single_label(config, self._path)
        name = Path(self._path).name
        self.encoder = RewardEncoder.of(tokenizer, config, name, options)
        self._has_activation = config.problem_type != "regression"  # vLLM leaves a regression's logit alone
        # An encoder pools at its class token, which comes first, whatever comes last.
        is_decoder = tokenizer.cls_token_id is None
        self._pad = config.get_text_config().pad_token_id if is_decoder else None
        self._fingerprint = fingerprint(self._path, trust_remote_code=trust_remote_code)
        super().__init__(endpoint, **settings)

    async def score_async(self, request: ScoreRequest) -> Scores:
        """As `score`, together with other rewards."""
        encoded = self._encoded(request)
        # Equal texts are scored once, so that they tie exactly whatever the server's batches do to rounding.
        unique = list(dict.fromkeys(tuple(text.token_ids) for text in encoded if text.failure is None))
        pieces = [unique[at : at + self._batch_size] for at in range(0, len(unique), self._batch_size)]
        scored = await self._post_all(
            [self._payload(piece) for piece in pieces], [len(piece) for piece in pieces]
        )
        by_ids = dict(zip(unique, zip(scored.values, scored.failures, strict=True), strict=True))
        rows = [(None, text.failure) if text.failure else by_ids[tuple(text.token_ids)] for text in encoded]
        return Scores([value for value, _ in rows], [failure for _, failure in rows])

    def inspect(self, request: ScoreRequest) -> list[list[int]]:
        """The exact token ids of each text, as `RewardModel.inspect` has them.

        Where the pad token is the end token, those at the end are not sent: `RewardModel` pools before them.

        Raises:
            DataError, ModelError: as `RewardModel.inspect`.
        """
        return super().inspect(request)

    def describe(self) -> dict[str, Any]:
        """Settings that change the scores, and no address. `fingerprint` is of the files that are read here."""
        return {
            "name": self.name,
            "kind": "vllm endpoint",
            "path": self._path,
            "served": self._served,
            "fingerprint": self._fingerprint,
            **self.encoder.options.describe(),
        }

    def _name(self) -> str:
        return self.encoder.name

    def _introduced(self) -> str | None:
        """The name the model is served under, once its logits have been seen to be logits."""
        texts = self.encoder.tokenizer(list(CANARIES), add_special_tokens=True)["input_ids"]
        rows = [list(ids) for ids in texts if ids]
        answer = run_coroutine(self._ask(self._payload(rows)))
        raw = self._read(answer, len(rows)).values
        served, named = self._identity(answer), Path(os.path.abspath(self._path)).name
        if served is not None and served != named:
            raise ModelError(
                f"reward {self.name!r}: the server serves {served!r} and not {named!r}, whose fingerprint would "
                "stand beside its scores; name the served model behind the #, or serve this one under its name "
                f"(--served-model-name {named})"
            )
        activated = run_coroutine(self._ask(self._payload(rows, activation=True)))
        activated = self._read(activated, len(rows)).values
        if self._has_activation and raw == activated and all(x is None or 0 <= x <= 1 for x in raw):
            raise ModelError(
                f"reward {self.name!r}: the server answers {raw} with and without use_activation, so these "
                "are probabilities and no logits; use a vLLM whose /classify knows use_activation"
            )
        return self._identity(answer)

    def _identity(self, answer: dict[str, Any]) -> str | None:
        served = answer.get("model")
        return Path(served).name if is_text(served) else None  # a machine's folders are no identity

    def _read(self, answer: Any, size: int) -> Scores:
        data = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(data, list) or not all(isinstance(row, dict) for row in data):
            said = self._client.said(answer, 100)
            raise RewardError(f"reward {self.name!r} answered {said!r}, not vLLM's classify route")
        # By what is written, since 1, 1.0 and true are one key.
        by_index = {shown(row.get("index")): row.get("probs") for row in data}
        if len(data) != size or set(by_index) != set(map(str, range(size))):
            raise RewardError(f"reward {self.name!r} answered {len(data)} scores for {size} texts")
        rows = [by_index[str(index)] for index in range(size)]
        for row in rows:
            if not isinstance(row, list) or len(row) != 1:
                labels = len(row) if isinstance(row, list) else "no"
                raise ModelError(
                    f"reward {self.name!r}: the served model answers {labels} labels a text; a reward is one "
                    "number, so num_labels must be 1"
                )
        return read_scores([row[0] for row in rows], [None] * size)

    def _payload(self, rows: Sequence[Sequence[int]], *, activation: bool = False) -> dict[str, Any]:
        return {"input": [without_end_pads(row, self._pad) for row in rows], "use_activation": activation}
