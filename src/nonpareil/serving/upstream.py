"""Draw from any server that speaks OpenAI's protocol, on behalf of clients who wait: n answers in one request."""

import hashlib
import logging
import time
from collections.abc import Mapping
from typing import Any

from nonpareil.answers import MOST_BYTES, answer_bytes, is_text
from nonpareil.engines.openai import FEWEST_TO_JUDGE, MOST_CHOICES, NEUTRAL, SEEDS
from nonpareil.errors import ConfigError
from nonpareil.remote import DEFAULT_KEY, all_of
from nonpareil.serving.records import Answer, Drawn, DrawRequest, UpstreamError
from nonpareil.serving.upstream_answers import (
    choices_of,
    prompt_ids_of,
    read_choice,
    unusable,
    usage_of,
)
from nonpareil.serving.upstream_client import Reply, UpstreamClient
from nonpareil.serving.upstream_models import listed, served_model

LONGEST_ANSWER = 32_768
"""Tokens that are taken for an answer's most where neither client nor server says a limit."""
MOST_BODY = 256 * 2**20
"""Bytes of an answer, whatever was asked for."""
IDS_FROM = ("vllm",)
"""Servers, by what they call themselves, that give token ids when asked."""
STATED = {"temperature": 1.0, "top_p": 1.0}
"""What every server reads, where a client leaves it out and groups are kept."""
PROBE = "Say a word."
ONE_EACH = "ask for one choice a request: choices_per_request=1 (--choices_per_request 1)"
_LIMITS = ("max_tokens", "max_completion_tokens")


class HttpUpstream:
    """An upstream behind HTTP.

    What a client asks for is passed on as it is. Where groups are kept, or tell quantiles (`for_groups`), the
    request says besides what he left out and a server would take from the model's own generation_config
    (temperature 1, the whole vocabulary, no penalty), since otherwise nobody knew what was sampled; and ids and
    log-probs are asked for where the server is known to give them (`IDS_FROM`). Log-probs are kept with the answer
    only where they are the sampling policy's: at temperature 1, of the whole vocabulary.

    Args:
        base_url: of the server, `http://127.0.0.1:8000/v1`.
        model: its name on the server; None takes the only one that is served.
        api_key_env: the environment variable of the server's key.
        choices_per_request: the most choices that one request asks for; 1 for a server that ignores `n`, which
            then gets `best_of` requests at once. None asks for all in one.
        max_tokens: of an answer, where the client gives no limit; None leaves it to the server.
        try_timeout: most seconds of one try.
        for_groups: see above.

    Raises:
        ConfigError: a setting that cannot work.
    """

    def __init__(
        self,
        base_url: str,
        *,
        model: str | None = None,
        api_key_env: str | None = DEFAULT_KEY,
        choices_per_request: int | None = None,
        max_tokens: int | None = None,
        try_timeout: float | None = None,
        for_groups: bool = False,
    ) -> None:
        """Sends nothing yet."""
        self._client = UpstreamClient(base_url, api_key_env=api_key_env, try_timeout=try_timeout)
        self.model = model
        self._at_once = choices_per_request or MOST_CHOICES
        self._max_tokens, self._for_groups = max_tokens, for_groups
        self._owner: str | None = None
        self._window: int | None = None
        self._groups = self._mixed = 0
        self.known_weights = False
        """Whether somebody here has the weights that are served, so that stored groups can train them."""
        self.trial: Drawn | None = None
        """The two answers of `check`."""

    async def check(self, timeout: float = 60.0) -> None:
        """Ask which models there are, and for two one-token answers, within so many seconds.

        Raises:
            ConfigError: no server, or one that does not serve the model, ignores `n`, or does not count tokens;
                each with its remedy.
        """
        deadline = time.monotonic() + timeout
        try:
            served = await served_model(self._client, self.model, deadline)
            self.model, self._owner, self._window = served.name, served.owner, served.window
            await self._probe(deadline)
        except UpstreamError as error:
            raise ConfigError(f"base_url={self._client.base_url!r}: {error.message}") from error
        finally:
            await self._client.close()  # the loop of this check may not be the one that serves

    async def models(self) -> list[str]:
        """The names that the upstream serves, or the one that it was told to serve where it keeps no list."""
        names = [entry["id"] for entry in await listed(self._client, time.monotonic() + 10.0)]
        return names or ([self.model] if self.model else [])

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    def describe(self) -> dict[str, Any]:
        """Who serves which model. Without the address, which may be private."""
        engine = "served" if self.known_weights else "openai"
        return {"engine": engine, "model": self.model, "server": self._owner}

    async def draw(self, request: DrawRequest) -> Drawn:
        """`best_of` answers; cancelling the task closes its connections, which ends the upstream's work.

        Raises:
            UpstreamError: see `UpstreamClient.post`; or an answer that cannot be used.
        """
        starts = range(0, request.best_of, self._at_once)
        counts = [min(self._at_once, request.best_of - start) for start in starts]
        parts = await all_of(
            self._ask(request, n, request.first + start) for n, start in zip(counts, starts, strict=True)
        )
        answers = [answer for part in parts for answer in part.answers]
        self._judge(answers, request)
        return Drawn(
            answers=answers,
            prompt_tokens=parts[0].prompt_tokens,
            completion_tokens=sum(part.completion_tokens for part in parts),
            model=parts[0].model,
            prompt_token_ids=parts[0].prompt_token_ids,
            upstream_requests=sum(part.upstream_requests for part in parts),
            info={"max_tokens": self._limit(request.forwarded) or self._window},
        )

    async def _ask(self, request: DrawRequest, n: int, first: int) -> Drawn:
        payload = self._payload(request, n, first)
        path = "chat/completions" if request.chat else "completions"
        reply = await self._client.post(path, payload, request.deadline, self._most_bytes(request, n))
        return self._read(request, payload, reply, n)

    def _read(self, request: DrawRequest, payload: dict[str, Any], reply: Reply, n: int) -> Drawn:
        choices = choices_of(reply.content)
        if len(choices) != n:
            raise unusable(
                f"{len(choices)} choices for n={n}; let one request ask for as many as the server honours "
                "(choices_per_request)"
            )
        asked = request.forwarded.get("logprobs")
        answers = [
            read_choice(
                choice,
                chat=request.chat,
                asked_logprobs=asked is not None and asked is not False,
                ids_known=not request.forwarded.get("stop"),
                own_logprobs=self._for_groups and self._owner in NEUTRAL and _samples_unchanged(payload),
            )
            for choice in choices
        ]
        prompt_tokens, completion_tokens = usage_of(reply.content, answers)
        name = reply.content.get("model")
        return Drawn(
            answers,
            prompt_tokens,
            completion_tokens,
            name if is_text(name) else payload["model"],
            prompt_ids_of(reply.content, choices),
            reply.tries,
        )

    def _payload(self, request: DrawRequest, n: int, first: int) -> dict[str, Any]:
        base = int.from_bytes(hashlib.sha256(b"%d" % request.seed).digest()[:4]) % SEEDS
        payload: dict[str, Any] = {
            **request.forwarded,
            "model": self.model or request.model,
            "n": n,
            # A server that gives its n choices the seeds seed, seed + 1, ... (vLLM) never meets another request's.
            "seed": (base + first) % SEEDS,
            ("messages" if request.chat else "prompt"): request.prompt,
        }
        if self._max_tokens is not None and self._limit(request.forwarded) is None:
            payload["max_tokens"] = self._max_tokens
        if self._for_groups:
            self._state(payload, request)
        return payload

    def _state(self, payload: dict[str, Any], request: DrawRequest) -> None:
        """Say what was left out, and ask for what a stored group needs."""
        neutral = {k: v for k, v in NEUTRAL.get(self._owner or "", {}).items() if k != "skip_special_tokens"}
        for name, value in {**STATED, **neutral}.items():
            if payload.get(name) is None:
                payload[name] = value
        if self._owner in IDS_FROM:
            payload.setdefault("return_token_ids", True)
            if payload.get("logprobs") in (None, False):
                payload["logprobs"] = True if request.chat else 0  # 0: of the sampled token alone

    def _limit(self, forwarded: Mapping[str, Any]) -> int | None:
        given = [forwarded[name] for name in _LIMITS if isinstance(forwarded.get(name), int)]
        return min(given) if given else self._max_tokens

    def _most_bytes(self, request: DrawRequest, n: int) -> int:
        limit = self._limit(request.forwarded) or self._window or LONGEST_ANSWER
        shown = request.forwarded.get("top_logprobs") or request.forwarded.get("logprobs") or 0
        per_token = 1 + (int(shown) if isinstance(shown, int) else 0)
        # A token of the prompt is a byte of it at least, and ids of it may stand in every choice.
        size = len(str(request.prompt).encode(errors="replace"))
        return max(MOST_BYTES, min(MOST_BODY, answer_bytes(n * limit * per_token, n * size)))

    def _judge(self, answers: list[Answer], request: DrawRequest) -> None:
        """Warn, once, of a server whose draws do not differ: of equal ones the best is the first."""
        if len(answers) < 2 or request.forwarded.get("temperature") == 0:
            return
        self._groups += 1
        self._mixed += len({(one.text, str(one.message)) for one in answers}) > 1
        if self._groups == FEWEST_TO_JUDGE and not self._mixed:
            logging.getLogger(__name__).warning(
                f"all of the first {self._groups} requests got equal answers throughout: the upstream is greedy "
                "(its generation_config or a default temperature of 0), or repeats one draw for all choices of a "
                "request (then choices_per_request=1 helps); best-of-N needs draws that differ"
            )

    async def _probe(self, deadline: float) -> None:
        """Two answers of one token, from whichever endpoint there is."""
        n = min(2, self._at_once)
        chat = await self._refused(True, n, deadline)
        if chat is None:
            return
        text = await self._refused(False, n, deadline)
        if text is None:
            return
        if n > 1:
            single = await self._refused(True, 1, deadline)
            if single is None or await self._refused(False, 1, deadline) is None:
                raise ConfigError(
                    f"base_url={self._client.base_url!r} refuses n={n} ({chat.message}) and answers n=1; {ONE_EACH}"
                )
        raise chat

    async def _refused(self, chat: bool, n: int, deadline: float) -> UpstreamError | None:
        """How the server refuses such a request as such; None where it answers as it must.

        Raises:
            ConfigError: it ignores `n`.
            UpstreamError: it is not fit to be drawn from.
        """
        prompt: Any = [{"role": "user", "content": PROBE}] if chat else PROBE
        request = DrawRequest(
            prompt, chat, n, 0, {"max_tokens": 1, "temperature": 1.0}, deadline, self.model or ""
        )
        path, payload = "chat/completions" if chat else "completions", self._payload(request, n, 0)
        try:
            reply = await self._client.post(path, payload, deadline)
        except UpstreamError as error:
            if error.status == 400:
                return error
            raise
        count = len(choices_of(reply.content))
        if count != n:
            raise ConfigError(
                f"base_url={self._client.base_url!r} answers {count} choices to n={n}: it ignores n, and best-of-N "
                f"would be best-of-1; {ONE_EACH}"
            )
        self.trial = self._read(request, payload, reply, n)
        return None


def _samples_unchanged(payload: Mapping[str, Any]) -> bool:
    """Whether a server's log-probs, of the raw or the processed distribution, are those of what was sampled."""
    neutral = {"temperature": 1, "top_p": 1, "top_k": 0, "min_p": 0, "repetition_penalty": 1}
    return all(payload.get(name, value) == value for name, value in neutral.items()) and not any(
        payload.get(name)
        for name in ("presence_penalty", "frequency_penalty", "logit_bias", "response_format")
    )
