"""Draw completions from vLLM's own OpenAI server, and give it new weights through a directory both can see."""

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

from nonpareil.answers import MOST_BYTES, Answer, UnusableAnswer, answer_bytes, fetch, parse_json, shown
from nonpareil.engines.checks import check_prompts, check_sampling
from nonpareil.engines.decoding import TEXT
from nonpareil.engines.vllm.answers import choices_of, field_of, read_choice, read_score
from nonpareil.engines.vllm.requests import (
    LOGPROBS_MODE,
    check_vllm_sampling,
    draws_of,
    request_settings,
)
from nonpareil.engines.vllm.worker import EXTENSION
from nonpareil.errors import ConfigError, DataError, EngineError, SyncError
from nonpareil.models.logprobs import TokenSequences
from nonpareil.models.vllm import save_tensors
from nonpareil.records import Draws, Prompt, SamplingParams
from nonpareil.remote import all_of, run_coroutine
from nonpareil.terminal import printable

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase as Tokenizer

T = TypeVar("T")
AT_ONCE = 32
"""Requests under way; the server makes its own batches of them."""
NO_PENALTIES = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""Sent always: a server takes what a request leaves out from the model's generation config."""


def server_command(model: str, port: int, host: str = "127.0.0.1") -> list[str]:
    """The command that starts such a server; set VLLM_SERVER_DEV_MODE=1 in its environment.

    That mode lets anyone who reaches the port change the weights: keep it on localhost or a trusted network.
    """
    return [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model),
        *("--host", host, "--port", str(port), "--logprobs-mode", LOGPROBS_MODE),
        *("--worker-extension-cls", EXTENSION),
    ]


class VLLMServerEngine:
    """An engine over a server that `server_command` started.

    An API key, where the server has one, is taken from the environment variable VLLM_API_KEY.

    Args:
        base_url: `http://host:port`.
        tokenizer: decodes what is drawn.
        end_ids: the ids that end a completion, as `models.loading.end_token_ids` gives them.
        startup_timeout: seconds to wait for a server that is still loading.
        timeout: seconds that one request may take.
        push_directory: a directory that the server can see too; by default a temporary one of this machine.

    Raises:
        ConfigError: a server that was started in another way than `server_command` says.
        EngineError: no server there in time.
    """

    def __init__(
        self,
        base_url: str,
        tokenizer: "Tokenizer",
        end_ids: frozenset[int],
        *,
        startup_timeout: float = 240.0,
        timeout: float = 600.0,
        push_directory: str | None = None,
    ):
        """See the class."""
        self.base_url, self.tokenizer, self.end_ids = base_url.rstrip("/"), tokenizer, end_ids
        self.timeout, self.push_directory = timeout, push_directory
        self._key = os.environ.get("VLLM_API_KEY")
        self._wait_until_ready(startup_timeout)
        self._model = field_of(self._get("/v1/models"), str, "data", 0, "id")
        self.version = field_of(self._get("/version"), str, "version")
        self.started = self._described()
        self.dtype: str = self.started["dtype"]

    def describe(self) -> dict[str, Any]:
        """What changes the draws; not where the server is."""
        return {
            "engine": "vllm",
            **TEXT,
            "version": self.version,
            "dtype": self.dtype,
            "logprobs_mode": self.started["logprobs_mode"],
        }

    def draw(
        self,
        prompts: Sequence[Prompt],
        num_generations: int,
        sampling: SamplingParams,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Draws]:
        """Draw `num_generations` completions a prompt: one request each, `AT_ONCE` under way.

        Raises:
            DataError: an empty prompt, or one that leaves no room for `max_completion_length` in the window.
            ConfigError: sampling parameters that cannot work.
            EngineError: no answer in time, or one that is not what was asked for.
        """
        check_sampling(sampling)
        check_vllm_sampling(sampling)
        check_prompts(prompts, sampling.max_completion_length, self.started["max_model_len"])

        async def one(http: httpx.AsyncClient, prompt: Prompt) -> Draws:
            settings = request_settings(prompt, num_generations, sampling, self.end_ids)
            answer = await self._complete(http, prompt.token_ids, {**settings, **NO_PENALTIES})
            choices = [read_choice(each, self.started["vocab_size"]) for each in answer]
            draws = draws_of(prompt, choices, num_generations, sampling, self.end_ids, self.tokenizer)
            if on_progress is not None:
                on_progress(1, sum(map(len, draws.completion_token_ids)))
            return draws

        return self._together(one, prompts)

    def completion_logprobs(self, sequences: TokenSequences) -> list[float]:
        """log pi(completion | prompt) of each, nats, summed, at temperature 1 over the whole vocabulary.

        Raises:
            DataError: a sequence that fills the window: vLLM scores only while it draws a token more.
            EngineError: no answer in time, or one that is not what was asked for.
        """
        window = self.started["max_model_len"]
        if (longest := max(sequences.lengths(), default=0)) >= window:
            raise DataError(f"a sequence of {longest} tokens cannot be scored in vLLM's window of {window}")

        async def one(http: httpx.AsyncClient, sequence: tuple[list[int], list[int]]) -> float:
            prompt, completion = sequence
            settings = {"max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 0, **NO_PENALTIES}
            (choice,) = await self._complete(http, prompt + completion, settings)
            return read_score(choice, prompt, completion)

        return self._together(one, zip(sequences.prompt_ids, sequences.completion_ids, strict=True))

    def push_weights(self, weights: "str | Path | Iterable[tuple[str, Tensor]]") -> None:
        """Take new weights: a model directory, or a whole state dict's `items()` by transformers' names.

        Raises:
            EngineError: the server does not take them, or cannot see the directory.
            SyncError: cached prefixes of the old weights cannot be dropped.
        """
        if isinstance(weights, str | Path):
            self._rpc("nonpareil_push_directory", [str(weights)])
        else:
            with tempfile.TemporaryDirectory(prefix="nonpareil-push-", dir=self.push_directory) as folder:
                save_tensors(weights, Path(folder))
                self._rpc("nonpareil_push_directory", [folder])
        dropped = self._post("/reset_prefix_cache", None, "drop its cached prefixes")
        if field_of(dropped, bool, "success") is not True:
            raise SyncError(
                f"{self.base_url} keeps prefixes that were cached under the old weights: requests are running"
            )

    def release(self) -> None:
        """Nothing is held between calls; the server goes on."""

    def _together(self, one: Callable[..., Coroutine[Any, Any, T]], things: Iterable[Any]) -> list[T]:
        """`one(connections, thing)` of each, `AT_ONCE` of them under way."""

        async def work() -> list[T]:
            turn = asyncio.Semaphore(AT_ONCE)  # a request's time begins when it is sent
            async with self._opened() as http:

                async def in_turn(thing: Any) -> T:
                    async with turn:
                        return await one(http, thing)

                return await all_of(in_turn(thing) for thing in things)

        return run_coroutine(work())

    async def _complete(
        self, http: httpx.AsyncClient, token_ids: list[int], settings: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """The choices of a prompt, in their order."""
        body = {"model": self._model, "prompt": token_ids, "return_token_ids": True, **settings}
        count = body.get("n", 1)
        most = answer_bytes(count * body["max_tokens"] + len(token_ids), count * len(token_ids))
        answer = await self._ask(http, "POST", "/v1/completions", body, "complete a prompt", most)
        try:
            return choices_of(answer, count, token_ids)
        except EngineError as error:
            raise EngineError(f"{self.base_url} {error}") from error

    def _described(self) -> dict[str, Any]:
        """How the server was started, refused where draws or log-probs would silently be others."""
        command = " ".join(["VLLM_SERVER_DEV_MODE=1", *server_command("MODEL", 8000)[1:]])
        try:
            started = field_of(self._rpc("nonpareil_describe", []), dict, 0)
            started.setdefault("vocab_size", len(self.tokenizer))  # a server of an earlier version
            for name, kind in (("dtype", str), ("max_model_len", int), ("vocab_size", int)):
                field_of(started, kind, name)
        except EngineError as error:
            raise ConfigError(f"{error}; start the server with: {command}") from error
        mode, adapters = started.get("logprobs_mode"), started.get("takes_adapters")
        if mode != LOGPROBS_MODE or adapters is not False:
            raise ConfigError(
                f"the server at {self.base_url} was started with logprobs_mode={shown(mode):.40} and "
                f"enable_lora={shown(adapters):.40}; it must be {LOGPROBS_MODE!r} and False: {command}"
            )
        return started

    def _rpc(self, method: str, args: list[str]) -> list[Any]:
        answer = self._post("/collective_rpc", {"method": method, "args": args}, f"run {method}")
        return field_of(answer, list, "results")

    def _wait_until_ready(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                answer = run_coroutine(self._fetch("GET", "/health", timeout=5.0))
                if answer.status == 200:
                    return
                seen = "is not healthy"
            except (httpx.HTTPError, TimeoutError, UnusableAnswer) as error:
                seen = f"gives no answer ({type(error).__name__})"
            if time.monotonic() > deadline:
                raise EngineError(f"after {seconds:g} s the vLLM server at {self.base_url} still {seen}")
            time.sleep(0.5)

    def _get(self, path: str) -> Any:
        return self._answer("GET", path, None, f"answer {path}")

    def _post(self, path: str, body: Any, task: str) -> Any:
        return self._answer("POST", path, body, task)

    def _answer(self, method: str, path: str, body: Any, task: str) -> Any:
        async def work() -> Any:
            async with self._opened() as http:
                return await self._ask(http, method, path, body, task)

        return run_coroutine(work())

    async def _fetch(self, method: str, path: str, timeout: float) -> Answer:
        async with self._opened() as http:
            return await fetch(http, method, self.base_url + path, None, timeout=timeout)

    def _opened(self) -> httpx.AsyncClient:
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        return httpx.AsyncClient(headers=headers, timeout=None)  # `fetch` has a deadline for all of it

    async def _ask(
        self,
        http: httpx.AsyncClient,
        method: str,
        path: str,
        body: Any,
        task: str,
        most: int = MOST_BYTES,
    ) -> Any:
        """The parsed answer.

        Raises:
            EngineError: none, or one that cannot be used.
        """
        content = None if body is None else json.dumps(body).encode()
        try:
            url = self.base_url + path
            answer = await fetch(http, method, url, content, timeout=self.timeout, most=most)
            if answer.status != 200:
                said = printable(self._masked(answer.content).decode(errors="replace")[:300])
                raise EngineError(f"{self.base_url} did not {task}: HTTP {answer.status}, {said}")
            return parse_json(self._masked(answer.content))
        except TimeoutError as error:
            raise EngineError(f"{self.base_url} did not {task} within {self.timeout:g} s") from error
        except httpx.HTTPError as error:
            raise EngineError(f"{self.base_url} did not {task}: {type(error).__name__}: {error}") from error
        except UnusableAnswer as error:
            raise EngineError(f"{self.base_url} did not {task}: {error}") from error
        except (ValueError, RecursionError) as error:
            raise EngineError(f"{self.base_url} did not {task}: its answer is no JSON") from error

    def _masked(self, content: bytes) -> bytes:
        """Without the key: what an answer holds may stand in a message."""
        return content.replace(self._key.encode(), b"***") if self._key else content
