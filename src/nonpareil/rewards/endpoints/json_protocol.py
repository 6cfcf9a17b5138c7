"""A reward that a server computes over our JSON protocol; docs/endpoints-rewards.md is for those who serve one."""

import math
from collections.abc import Sequence
from typing import Any

from nonpareil.answers import is_text, shown
from nonpareil.errors import ConfigError, DataError, RewardError
from nonpareil.files import jsonable
from nonpareil.records import ScoreRequest, Scores
from nonpareil.remote import JsonClient, run_coroutine
from nonpareil.rewards.base import Reward
from nonpareil.rewards.endpoints.address import Endpoint, parse_endpoint
from nonpareil.rewards.endpoints.requests import MAX_RETRIES, REQUESTS_AT_ONCE, TIMEOUT, ask_all, is_refusal
from nonpareil.user_code.contained import shortened


class RemoteReward(Reward):
    """Scores that a server computes over our JSON protocol.

    A request is `{"prompts", "completions", "columns"}`, lists of one entry a completion (columns: of each
    further dataset column), and its answer `{"scores": [number or null, ...]}`, with `"reasons"` beside it
    for the nulls where the server has some, and `"version"` where it has one. An empty request is sent when
    the reward is made, so that a server that is not there or speaks otherwise is told before anything is drawn.

    A request that fails, after its retries, makes its own completions None with the reason.

    Args:
        endpoint: `json+http://host:port/path#name`.
        timeout: seconds a request may take, each try.
        api_key_env: the environment variable whose value is sent as a bearer token; None sends none.
        batch_size: most completions a request.
        at_once: most requests under way.
        max_retries: of a request, after 429, 5xx, timeouts and connection errors only.

    Raises:
        ConfigError: a setting that cannot work.
        RemoteError: the server is not there, or refuses.
        RewardError: it speaks otherwise.
    """

    is_async = True

    def __init__(
        self,
        endpoint: str | Endpoint,
        *,
        timeout: float | None = None,
        api_key_env: str | None = None,
        batch_size: int = 32,
        at_once: int = REQUESTS_AT_ONCE,
        max_retries: int = MAX_RETRIES,
    ) -> None:
        """See the class."""
        self._endpoint = parse_endpoint(endpoint) if isinstance(endpoint, str) else endpoint
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size} must be at least 1")
        self._batch_size, self._at_once = batch_size, at_once
        self._client = JsonClient(
            self._endpoint.base_url,
            api_key_env=api_key_env,
            timeout=TIMEOUT if timeout is None else timeout,
            max_concurrency=at_once,
            max_retries=max_retries,
        )
        self.name = self._name()
        self._served = self._introduced()

    def score(self, request: ScoreRequest) -> Scores:
        """One score a completion; None with its reason where its request failed or the server gave none.

        Raises:
            RewardError: answers that break the protocol, a request that is refused, or a server that is down.
            DataError: a dataset column that JSON has no form for.
        """
        return run_coroutine(self.score_async(request))

    async def score_async(self, request: ScoreRequest) -> Scores:
        """As `score`, together with other rewards."""
        payloads = self._payloads(request)
        starts = range(0, len(request), self._batch_size)
        sizes = [min(self._batch_size, len(request) - start) for start in starts]
        return await self._post_all(payloads, sizes)

    def describe(self) -> dict[str, Any]:
        """What stored scores are reused by: the name and the server's version, and no address."""
        return {"name": self.name, "kind": "json endpoint", "version": self._served}

    def _name(self) -> str:
        return self._endpoint.label

    def _introduced(self) -> str | None:
        """What the server says it is, once it has answered an empty request."""
        answer = run_coroutine(self._ask({"prompts": [], "completions": [], "columns": {}}))
        self._read(answer, 0)
        return self._identity(answer)

    def _identity(self, answer: dict[str, Any]) -> str | None:
        version = answer.get("version")
        if version is not None and not is_text(version):
            said = self._client.quoted(version)
            raise RewardError(f"reward {self.name!r} answered version={said}; it must be a string")
        return version

    def _payloads(self, request: ScoreRequest) -> list[dict[str, Any]]:
        try:
            columns = jsonable(request.columns)
        except TypeError as error:
            raise DataError(
                f"reward {self.name!r}: a dataset column cannot be sent as JSON: {error}; drop the column"
            ) from error
        pieces = [slice(at, at + self._batch_size) for at in range(0, len(request), self._batch_size)]
        return [
            {
                "prompts": request.prompts[piece],
                "completions": request.completions[piece],
                "columns": {name: values[piece] for name, values in columns.items()},
            }
            for piece in pieces
        ]

    async def _ask(self, payload: dict[str, Any]) -> Any:
        async with self._client as client:
            return await client.post(self._endpoint.path, payload)

    async def _post_all(self, payloads: Sequence[dict[str, Any]], sizes: Sequence[int]) -> Scores:
        """The scores of all payloads, one behind the other."""
        parts: dict[int, Scores] = {}

        def take(place: int, answer: Any) -> None:
            parts[place] = self._read(answer, sizes[place])
            if (served := self._identity(answer)) != self._served:
                raise RewardError(
                    f"reward {self.name!r} was {self._served!r:.100} when the run began and is {served!r:.100} "
                    "now; scores of both would be mixed. Run again: what was scored so far is scored anew"
                )

        async with self._client as client:
            failures = await ask_all(
                client,
                self._endpoint.path,
                payloads,
                name=self.name,
                at_once=self._at_once,
                on_answer=take,
                is_fatal=is_refusal,
            )
        for place, reason in failures.items():
            parts[place] = Scores([None] * sizes[place], [reason] * sizes[place])
        ordered = [parts[place] for place in range(len(payloads))]
        return Scores(
            [value for part in ordered for value in part.values],
            [failure for part in ordered for failure in part.failures],
        )

    def _read(self, answer: Any, size: int) -> Scores:
        """The answer's scores, or what is wrong with it."""
        scores = answer.get("scores") if isinstance(answer, dict) else None
        if not isinstance(scores, list) or len(scores) != size:
            said = (
                f"{len(scores)} scores" if isinstance(scores, list) else f"{self._client.said(answer, 100)!r}"
            )
            raise RewardError(
                f"reward {self.name!r} answered {said} for {size} completions; it must answer "
                '{"scores": [...]} with one number or null each'
            )
        reasons = answer.get("reasons") or [None] * size
        if not isinstance(reasons, list) or len(reasons) != size:
            raise RewardError(f"reward {self.name!r}: reasons must be a list of {size}, as scores is")
        return read_scores(scores, [self._client.said(one) if one else None for one in reasons])


def read_scores(scores: Sequence[Any], reasons: Sequence[str | None]) -> Scores:
    """Finite numbers as they are, anything else as None with its reason."""
    values: list[float | None] = []
    failures: list[str | None] = []
    for score, reason in zip(scores, reasons, strict=True):
        is_number = isinstance(score, int | float) and not isinstance(score, bool)
        # A whole number may be too large for a float.
        number = float(score) if is_number and abs(score) < 1e300 else math.nan
        values.append(number if math.isfinite(number) else None)
        if math.isfinite(number):
            failures.append(None)
        else:
            said = (
                "the server gave no score" if score is None else f"the server's score is {shown(score):.50}"
            )
            failures.append(shortened(reason or said))
    return Scores(values, failures)
