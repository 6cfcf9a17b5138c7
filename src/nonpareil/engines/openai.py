"""Draw completions from any server that speaks OpenAI's protocol: vLLM, SGLang, llama.cpp, a hosted one.

Prompts with token ids go to `/completions` as ids. Others go as text: strings to `/completions`,
conversations to `/chat/completions`, whose server applies its own template.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nonpareil.answers import answer_bytes, is_text
from nonpareil.engines.checks import check_sampling, refuse_changed_draws
from nonpareil.engines.choices import ServedChoice, read_choices
from nonpareil.engines.decoding import TEXT
from nonpareil.engines.sampling import sample_keys
from nonpareil.errors import RemoteError
from nonpareil.records import Draws, Prompt, SamplingParams, turn_text
from nonpareil.remote import JsonClient, all_of, run_coroutine

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

MOST_CHOICES = 128
"""Of one request: OpenAI's own limit."""
SEEDS = 2**31
"""Seeds lie below it: some servers take no larger ones."""
NEUTRAL = {"vllm": {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "skip_special_tokens": False}}
"""By what a server calls itself: the values that switch off what it would take from the model's own
generation_config, where a request leaves them out (the policy asked for has none of them), and that leave special
tokens in the text."""
FEWEST_TO_JUDGE = 4
"""Groups of nothing but equal completions that are more than chance."""
FEWEST_REPEATS = 8
"""Likewise, choices that repeat the first one of their request."""


_NO_PENALTY = (
    "the protocol has no such setting, and this server (owned_by in its list of models) is none that is known to "
    f"read it: {', '.join(NEUTRAL)}"
)


class OpenAIEngine:
    """An engine over a served model.

    What is kept of an answer: the text always, as its ids read where they and the tokenizer are known. Token ids
    only where the server gives them together with the prompt's (or those were sent). Log-probs only beside ids,
    one each, only for draws at temperature 1 from the whole vocabulary, and only of a server that was told to add
    nothing of its own (`NEUTRAL`): servers may give those of the unchanged distribution (vLLM does unless told
    otherwise), and elsewhere these are not the sampling policy's. What is not kept is an empty list; where the
    trial had shown it, a warning says so once.
    Completions are reproducible as far as the server honours `seed`.

    Args:
        model: its name on the server.
        client: to the server, not yet opened.
        trial: a prompt and its sampling, for the one-token request that shows what the server gives; it is
            made before the first draw.
        tokenizer: that wrote the prompts' ids; the ids that come back are held against their text.
    """

    def __init__(
        self,
        model: str,
        client: JsonClient,
        trial: tuple[Prompt, SamplingParams],
        tokenizer: "Tokenizer | None" = None,
    ) -> None:
        """Sends nothing yet."""
        self._model, self._client, self._trial, self._tokenizer = model, client, trial, tokenizer
        self._told = False
        self._owner: str | None = None
        self._at_once = MOST_CHOICES
        self._seen: dict[str, Any] | None = None
        self._groups = self._mixed = 0
        self._repeats = self._varied = 0  # choices beside the first of their request, equal to it and not

    def describe(self) -> dict[str, Any]:
        """The served model, who serves it, the endpoint, and whether ids and log-probs are given.

        The address is left out: it may be private, and a server that has moved gives the same draws.

        Raises:
            RemoteError: no answer, or one that cannot be used.
        """
        return run_coroutine(self._opened(self._look))

    def draw(
        self,
        prompts: Sequence[Prompt],
        num_generations: int,
        sampling: SamplingParams,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Draws]:
        """Draw `num_generations` completions per prompt; see `engines.base.Engine`.

        Raises:
            ConfigError: sampling parameters out of their range.
            RemoteError: a request refused or given up, an answer that cannot be used, or draws that are all
                equal.
        """
        check_sampling(sampling)

        async def group(prompt: Prompt, seen: dict[str, Any]) -> Draws:
            choices = await self._choices(prompt, num_generations, 0, sampling)
            keep_logprobs = seen["logprobs"] and self._samples_unchanged(sampling)
            draws = _draws(choices, seen["token_ids"], keep_logprobs)
            self._tell_lost(prompt, draws, seen["token_ids"], keep_logprobs)
            if on_progress is not None:
                on_progress(1, sum(map(len, draws.completion_token_ids)))
            return draws

        async def together() -> list[Draws]:
            seen = await self._look()
            return await all_of(group(prompt, seen) for prompt in prompts)

        drawn = run_coroutine(self._opened(together))
        self._check_differ(drawn)
        return drawn

    def _tell_lost(self, prompt: Prompt, draws: Draws, had_ids: bool, had_logprobs: bool) -> None:
        """Once, the first group that lacks what the trial had."""
        lost_ids = had_ids and not any(draws.completion_token_ids)
        if not self._told and (lost_ids or (had_logprobs and not any(draws.logprobs))):
            self._told = True
            what = "no token ids for" if lost_ids else "no log-prob, a number of 0 or less, of each token of"
            logging.getLogger(__name__).warning(
                f"prompt {prompt.prompt_id}: the server gave {what} every completion; those of its group are not "
                "kept, here and in later groups"
            )

    def _check_differ(self, drawn: list[Draws]) -> None:
        self._groups += len(drawn)
        self._mixed += sum(len(set(draws.completions)) > 1 for draws in drawn)
        if self._groups >= FEWEST_TO_JUDGE and not self._mixed:
            raise RemoteError(
                f"all {self._groups} prompts got equal completions throughout: the server is greedy "
                "(transformers serve is, unless the model's generation_config says do_sample), or a cache "
                "answers for it; best-of-N needs draws that differ"
            )
        if self._mixed and self._repeats >= FEWEST_REPEATS and not self._varied:
            raise RemoteError(
                f"the choices of each request are equal ({self._repeats} repeat the first), those of different "
                "requests are not: the server draws once and repeats it (one seed for all choices, or a cache), "
                "and best-of-N needs draws that differ; let it answer one choice per request"
            )

    async def _opened(self, work: Callable) -> Any:
        async with self._client:
            return await work()

    async def _look(self) -> dict[str, Any]:
        """Ask once who serves, and for two completions of one token."""
        if self._seen is None:
            served = await self._served()
            owner = served.get("owned_by")
            self._owner = owner if is_text(owner) else None
            prompt, sampling = self._trial
            if sampling.repetition_penalty != 1 and self._owner not in NEUTRAL:
                refuse_changed_draws(replace(sampling, stop=()), _NO_PENALTY)
            short = SamplingParams(**{**vars(sampling), "max_completion_length": 1})
            choice = (await self._choices(prompt, 2, 0, short))[0]
            self._seen = {
                "engine": "openai",
                "model": served.get("id", self._model),
                "server": self._owner,
                "endpoint": _endpoint(prompt),
                "token_ids": bool(choice.token_ids),
                "logprobs": bool(choice.logprobs) and self._samples_unchanged(sampling),
                **(
                    TEXT
                    if (choice.token_ids and self._tokenizer is not None) or self._owner in NEUTRAL
                    else {}
                ),
            }
        return self._seen

    async def _served(self) -> dict[str, Any]:
        """The server's own entry of the model, or nothing where it keeps no list or does not list it."""
        try:
            listed = await self._client.get("models")
        except RemoteError as error:
            # Without a list, or broken at it for good (transformers serve without a cache folder): the trial
            # that follows says what else is wrong. A server that is only busy must not count as unknown.
            if error.status is None or error.status in (429, 502, 503, 504):
                raise
            return {}
        entries = listed.get("data") if isinstance(listed, dict) else None
        entries = entries if isinstance(entries, list) else []
        named = [e for e in entries if isinstance(e, dict) and e.get("id") == self._model]
        return named[0] if named else {}

    async def _choices(
        self, prompt: Prompt, count: int, first: int, sampling: SamplingParams
    ) -> list[ServedChoice]:
        """The choices first .. first + count - 1 of a prompt's group, in as few requests as the server allows."""
        if count > (most := self._at_once):
            starts = range(0, count, most)
            parts = await all_of(
                self._choices(prompt, min(most, count - start), first + start, sampling) for start in starts
            )
            return [choice for part in parts for choice in part]
        got = await self._ask(prompt, count, first, sampling)
        if len(got) < count:
            # Whatever n says, some servers answer one.
            self._at_once = min(self._at_once, max(1, len(got)))
            got = got + await self._choices(prompt, count - len(got), first + len(got), sampling)
        return got

    async def _ask(self, prompt: Prompt, n: int, first: int, sampling: SamplingParams) -> list[ServedChoice]:
        """One request. None at all where the server refuses several choices: the caller asks for one each."""
        path = _endpoint(prompt)
        limit, mask = sampling.max_completion_length, self._client.masked
        most = answer_bytes(n * limit, n * _most_prompt_tokens(prompt))
        try:
            answer = await self._client.post(path, self._payload(prompt, n, first, sampling), most)
        except RemoteError as error:
            if n > 1 and error.status in (400, 422):
                return []
            raise
        choices = read_choices(
            answer,
            n,
            limit,
            prompt.token_ids,
            mask,
            None if sampling.stop else self._tokenizer,
            sampling.stop,
        )
        differing = sum(choice.text != choices[0].text for choice in choices)
        self._varied += differing
        self._repeats += len(choices) - 1 - differing
        return choices

    def _payload(self, prompt: Prompt, n: int, first: int, sampling: SamplingParams) -> dict[str, Any]:
        base = int(sample_keys(prompt.prompt_id, [0], sampling.seed)[0]) % SEEDS
        payload: dict[str, Any] = {
            "model": self._model,
            "n": n,
            "max_tokens": sampling.max_completion_length,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            # Each choice has a number of its own in its group: a server that gives its n choices the seeds
            # seed, seed + 1, ... (vLLM) never meets those of another request.
            "seed": (base + first) % SEEDS,
            **NEUTRAL.get(self._owner or "", {}),
        }
        if sampling.top_k > 0:
            payload["top_k"] = sampling.top_k
        if sampling.min_p > 0:
            payload["min_p"] = sampling.min_p
        if sampling.repetition_penalty != 1:
            payload["repetition_penalty"] = sampling.repetition_penalty
        if sampling.stop:
            payload["stop"] = list(sampling.stop)
        chat = _endpoint(prompt) == "chat/completions"
        payload["messages" if chat else "prompt"] = prompt.token_ids or prompt.prompt
        if (prompt.token_ids or self._owner == "vllm") and not sampling.stop:
            payload["return_token_ids"] = True
            if self._samples_unchanged(sampling):
                payload["logprobs"] = True if chat else 0  # 0: of the sampled token alone
        return payload

    def _samples_unchanged(self, sampling: SamplingParams) -> bool:
        """Whether the server's log-probs are the sampling policy's, of whichever distribution it gives them."""
        plain = sampling.temperature == sampling.repetition_penalty == 1 and sampling.keeps_whole_vocabulary
        return plain and self._owner in NEUTRAL


def _endpoint(prompt: Prompt) -> str:
    return "completions" if prompt.token_ids or isinstance(prompt.prompt, str) else "chat/completions"


def _most_prompt_tokens(prompt: Prompt) -> int:
    """A token of text is a byte of it at least; a template's own words are few beside those."""
    if prompt.token_ids:
        return len(prompt.token_ids)
    texts = [prompt.prompt] if isinstance(prompt.prompt, str) else [turn_text(m) for m in prompt.prompt]
    return sum(len(text.encode(errors="replace")) for text in texts)


def _draws(choices: list[ServedChoice], keep_ids: bool, keep_logprobs: bool) -> Draws:
    # A group has ids, or log-probs, of all its completions or of none.
    ids = keep_ids and all(choice.token_ids for choice in choices)
    logprobs = ids and keep_logprobs and all(choice.logprobs for choice in choices)
    return Draws(
        completions=[choice.text for choice in choices],
        completion_token_ids=[choice.token_ids if ids else [] for choice in choices],
        finish_reasons=[choice.finish_reason for choice in choices],
        logprobs=[choice.logprobs if logprobs else [] for choice in choices],
        prompt_token_ids=choices[0].prompt_token_ids,
    )
