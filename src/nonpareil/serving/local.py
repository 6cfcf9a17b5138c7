"""An engine in this process as upstream: requests that wait are drawn in one batch, on a thread of its own."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nonpareil.engines.base import Engine
from nonpareil.engines.checks import check_sampling
from nonpareil.errors import NonpareilError, NotFiniteError
from nonpareil.records import Draws, Prompt, SamplingParams
from nonpareil.rollouts.prompts import tokenize_prompts
from nonpareil.serving.fields import has_effect
from nonpareil.serving.joined import Batch, Joined
from nonpareil.serving.problems import refused, told
from nonpareil.serving.reading import text_of_content
from nonpareil.serving.records import Answer, Drawn, DrawRequest, UpstreamError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

_NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty", "top_k")
HONOURED = {*_NUMBERS, "stop", "max_tokens", "max_completion_tokens", "logprobs", "chat_template_kwargs"}


@dataclass(frozen=True)
class _Job:
    prompt: Prompt
    best_of: int
    sampling: SamplingParams
    ends: frozenset[int]
    kwargs: dict[str, Any] = field(compare=False)
    """Of the chat template, those of the server and of the request."""


class LocalUpstream:
    """An engine over a model in this process.

    Args:
        engine: loaded; it is used by one thread alone, and told where completions end.
        tokenizer: the policy's.
        name: that clients call the model by.
        check: refuses a prompt with its sampling; a `NonpareilError` says why.
        ends: the ids that end a completion of such a prompt.
        template_kwargs: further arguments of the chat template, which a request may add to.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: "Tokenizer",
        name: str,
        *,
        check: Callable[[Prompt, SamplingParams], None],
        ends: Callable[[Prompt], frozenset[int]],
        template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """Starts the thread that draws."""
        self.engine, self.tokenizer, self.name = engine, tokenizer, name
        self._check, self._ends_of, self._template_kwargs = check, ends, template_kwargs or {}
        self._ends: dict[bool, frozenset[int]] = {}
        self._reading = threading.Lock()
        self._joined: Joined[_Job, Draws] = Joined(
            self._draw, key=lambda job: (job.best_of, job.sampling, job.ends), name="drawing"
        )

    async def draw(self, request: DrawRequest) -> Drawn:
        """See `records.Upstream`. The same request with the same seed gives the same answers, whatever else comes.

        Raises:
            UpstreamError: 400: a field that is not honoured here, or a prompt too long; 502: a model that
                gives no numbers.
        """
        sampling = sampling_of(request)
        try:
            job = await asyncio.to_thread(self._job, request, sampling)
        except NonpareilError as error:
            raise refused(told(error), _field(told(error), request)) from error
        try:
            draws = await self._joined.submit(job)
        except NotFiniteError as error:
            raise UpstreamError(502, "upstream_error", str(error)) from error
        wants = has_effect("logprobs", request.forwarded.get("logprobs"))
        return Drawn(
            answers=[self._answer(request.chat, draws, i, wants) for i in range(request.best_of)],
            prompt_tokens=len(job.prompt.token_ids),
            completion_tokens=sum(map(len, draws.completion_token_ids)),
            model=self.name,
            prompt_token_ids=job.prompt.token_ids,
            info={
                "opening": job.prompt.opening,
                "sampling": job.sampling,
                "chat_template_kwargs": job.kwargs,
            },
        )

    def describe(self) -> dict[str, Any]:
        """What changes the draws, as the engine says it."""
        return self.engine.describe()

    async def models(self) -> list[str]:
        """The one."""
        return [self.name]

    async def close(self) -> None:
        """Ends the thread, after what it draws now."""
        await self._joined.close()

    def _job(self, request: DrawRequest, sampling: SamplingParams) -> _Job:
        kwargs = request.forwarded.get("chat_template_kwargs") or {}
        if not isinstance(kwargs, dict):
            raise refused(f"chat_template_kwargs={kwargs!r:.200} must be an object", "chat_template_kwargs")
        with self._reading:
            row = {"prompt": _plain(request.prompt)}
            kwargs = {**self._template_kwargs, **kwargs} if request.chat else kwargs
            first = request.chat not in self._ends
            (prompt,) = tokenize_prompts([row], self.tokenizer, kwargs, hashed=first)
            if first:
                self._ends[request.chat] = self._ends_of(prompt)
        # Every draw's random numbers follow from this id; those of the request's seed from nothing else.
        drawing = f"{prompt.prompt_id}/{request.seed}" + (f"/{request.first}" if request.first else "")
        prompt = Prompt(drawing, prompt.prompt, prompt.token_ids, {}, opening=prompt.opening)
        self._check(prompt, sampling)
        return _Job(prompt, request.best_of, sampling, self._ends[request.chat], kwargs)

    def _draw(self, batch: Batch[_Job, Draws]) -> list[Draws]:
        first = batch.jobs[0]
        self.engine.end_ids = first.ends  # type: ignore[attr-defined]
        prompts = [job.prompt for job in batch.jobs]
        return self.engine.draw(prompts, first.best_of, first.sampling, lambda *_: batch.check())

    def _answer(self, chat: bool, draws: Draws, i: int, wants_logprobs: bool) -> Answer:
        text, ids, logprobs = draws.completions[i], draws.completion_token_ids[i], draws.logprobs[i]
        return Answer(
            text=text,
            finish_reason=draws.finish_reasons[i],
            message={"role": "assistant", "content": text} if chat else None,
            token_ids=ids,
            logprobs=self._logprobs(chat, ids, logprobs) if wants_logprobs else None,
            token_logprobs=logprobs or None,
        )

    def _logprobs(self, chat: bool, ids: list[int], logprobs: list[float]) -> dict[str, Any]:
        """As the protocol has them: of the sampled tokens, under the distribution that they were drawn from."""
        tokens = [str(self.tokenizer.decode([token])) for token in ids]
        if not chat:
            starts = [sum(map(len, tokens[:i])) for i in range(len(tokens))]
            return {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": None, "text_offset": starts}
        pairs = zip(tokens, logprobs, strict=True)
        content = [
            {
                "token": token,
                "logprob": value,
                "bytes": list(token.encode(errors="replace")),
                "top_logprobs": [],
            }
            for token, value in pairs
        ]
        return {"content": content, "refusal": None}


def sampling_of(request: DrawRequest) -> SamplingParams:
    """How the request is drawn; the seed is in the prompt's id.

    Raises:
        UpstreamError: 400: a field that is not honoured here, or that cannot be.
    """
    given = {name: value for name, value in request.forwarded.items() if has_effect(name, value)}
    for name, value in given.items():
        if name not in HONOURED or (
            name == "logprobs" and value is not True and (request.chat or value != 0)
        ):
            raise refused(
                f"{name}={value!r:.80} is not honoured by an engine in this process; leave it out, or serve the "
                "model with a server and name that (base_url)",
                name,
            )
    numbers = {name: given[name] for name in _NUMBERS if name in given}
    if numbers.get("temperature") == 0:  # of one answer: the likeliest token each time
        numbers |= {"temperature": 1.0, "top_k": 1}
    stop = given.get("stop", [])
    if not isinstance(stop, str | list):
        raise refused(f"stop={stop!r:.80} must be a text or a list of texts", "stop")
    limit: Any = given.get("max_completion_tokens", given.get("max_tokens"))
    numbers |= {name: float(v) for name, v in numbers.items() if name != "top_k" and type(v) is int}
    sampling = SamplingParams(
        **numbers, max_completion_length=limit, stop=(stop,) if isinstance(stop, str) else tuple(stop)
    )
    try:
        check_sampling(sampling)
    except NonpareilError as error:
        raise refused(told(error), _field(told(error), request)) from error
    return sampling


def _field(message: str, request: DrawRequest) -> str | None:
    """The field that a message begins with."""
    name = message.partition("=")[0]
    return name if name in request.forwarded else None


def _plain(prompt: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """Messages whose contents are texts.

    Raises:
        UpstreamError: 400: contents that the model cannot read, or a last turn that is the assistant's.
    """
    if isinstance(prompt, str):
        return prompt
    if prompt[-1]["role"] == "assistant":
        raise refused("the last message is the assistant's; end with the user's turn", "messages")
    return [
        # Beside calls alone there may be no content, which templates tell from an empty one.
        message
        if message.get("content") is None and message.get("tool_calls")
        else {**message, "content": text_of_content(message.get("content"), f"messages[{place}]")}
        for place, message in enumerate(prompt)
    ]
