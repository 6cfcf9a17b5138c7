"""Draw completions from vLLM's own OpenAI server, and give it new weights through a directory both can see."""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonpareil.engines.transformers import check_prompts, check_sampling
from nonpareil.engines.vllm_extension import EXTENSION
from nonpareil.engines.vllm_requests import (
    LOGPROBS_MODE,
    Choice,
    check_vllm_sampling,
    draws_of,
    request_settings,
)
from nonpareil.errors import ConfigError, DataError, EngineError, SyncError
from nonpareil.models.logprobs import TokenSequences
from nonpareil.models.vllm_load import save_tensors
from nonpareil.records import Draws, Prompt, SamplingParams

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase as Tokenizer

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
        import httpx

        self.base_url, self.tokenizer, self.end_ids = base_url.rstrip("/"), tokenizer, end_ids
        self.timeout, self.push_directory = timeout, push_directory
        key = os.environ.get("VLLM_API_KEY")
        self._client = httpx.Client(
            base_url=self.base_url,
            timeout=timeout,
            headers={"Authorization": f"Bearer {key}"} if key else None,
        )
        self._wait_until_ready(startup_timeout)
        self._model = self._get("/v1/models")["data"][0]["id"]
        self.version = self._get("/version")["version"]
        self.started = self._described()
        self.dtype: str = self.started["dtype"]

    def describe(self) -> dict[str, Any]:
        """What changes the draws; not where the server is."""
        return {
            "engine": "vllm",
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

        def one(prompt: Prompt) -> Draws:
            settings = request_settings(prompt, num_generations, sampling, self.end_ids)
            answer = self._complete(prompt.token_ids, {**settings, **NO_PENALTIES})
            choices = [_choice(each) for each in sorted(answer, key=lambda each: each["index"])]
            return draws_of(prompt, choices, num_generations, sampling, self.end_ids, self.tokenizer)

        drawn = []
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for draws in pool.map(one, prompts):
                drawn.append(draws)
                if on_progress is not None:
                    on_progress(1, sum(map(len, draws.completion_token_ids)))
        return drawn

    def completion_logprobs(self, sequences: TokenSequences) -> list[float]:
        """log pi(completion | prompt) of each, nats, summed, at temperature 1 over the whole vocabulary.

        Raises:
            DataError: a sequence that fills the window: vLLM scores only while it draws a token more.
            EngineError: no answer in time, or one that is not what was asked for.
        """
        window = self.started["max_model_len"]
        if (longest := max(sequences.lengths(), default=0)) >= window:
            raise DataError(f"a sequence of {longest} tokens cannot be scored in vLLM's window of {window}")
        values = []
        for prompt, completion in zip(sequences.prompt_ids, sequences.completion_ids, strict=True):
            settings = {"max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 0, **NO_PENALTIES}
            (choice,) = self._complete(prompt + completion, settings)
            scored = choice["prompt_logprobs"][len(prompt) :]
            pairs = zip(completion, scored, strict=True)
            values.append(sum(at[str(token)]["logprob"] for token, at in pairs))
        return values

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
        if not self._post("/reset_prefix_cache", None, "drop its cached prefixes").get("success"):
            raise SyncError(
                f"{self.base_url} keeps prefixes that were cached under the old weights: requests are running"
            )

    def release(self) -> None:
        """Close the connections; the server goes on."""
        self._client.close()

    def _complete(self, token_ids: list[int], settings: dict[str, Any]) -> list[dict[str, Any]]:
        body = {"model": self._model, "prompt": token_ids, "return_token_ids": True, **settings}
        answer = self._post("/v1/completions", body, "complete a prompt")
        choices = answer.get("choices")
        if not isinstance(choices, list) or len(choices) != body.get("n", 1):
            count = len(choices) if isinstance(choices, list) else "no"
            raise EngineError(
                f"{self.base_url} answered {count} choices where n={body.get('n', 1)} were asked for"
            )
        if choices[0].get("prompt_token_ids") != token_ids:
            raise EngineError(f"{self.base_url} answered another prompt than the one it was sent")
        return choices

    def _described(self) -> dict[str, Any]:
        """How the server was started, refused where draws or log-probs would silently be others."""
        command = " ".join(["VLLM_SERVER_DEV_MODE=1", *server_command("MODEL", 8000)[1:]])
        try:
            started = self._rpc("nonpareil_describe", [])[0]
        except EngineError as error:
            raise ConfigError(f"{error}; start the server with: {command}") from error
        if started["logprobs_mode"] != LOGPROBS_MODE or started["takes_adapters"]:
            raise ConfigError(
                f"the server at {self.base_url} was started with logprobs_mode={started['logprobs_mode']!r} and "
                f"enable_lora={started['takes_adapters']}; it must be {LOGPROBS_MODE!r} and False: {command}"
            )
        return started

    def _rpc(self, method: str, args: list[str]) -> list[Any]:
        return self._post("/collective_rpc", {"method": method, "args": args}, f"run {method}")["results"]

    def _wait_until_ready(self, seconds: float) -> None:
        import httpx

        deadline = time.monotonic() + seconds
        while True:
            try:
                if self._client.get("/health", timeout=5.0).status_code == 200:
                    return
                seen = "is not healthy"
            except httpx.HTTPError as error:
                seen = f"gives no answer ({type(error).__name__})"
            if time.monotonic() > deadline:
                raise EngineError(f"after {seconds:g} s the vLLM server at {self.base_url} still {seen}")
            time.sleep(0.5)

    def _get(self, path: str) -> dict[str, Any]:
        return self._answer("GET", path, None, f"answer {path}")

    def _post(self, path: str, body: Any, task: str) -> dict[str, Any]:
        return self._answer("POST", path, body, task)

    def _answer(self, method: str, path: str, body: Any, task: str) -> dict[str, Any]:
        import httpx

        try:
            response = self._client.request(method, path, json=body)
            if response.status_code != 200:
                said = response.text[:300]
                raise EngineError(f"{self.base_url} did not {task}: HTTP {response.status_code}, {said}")
            return response.json()
        except httpx.TimeoutException as error:
            raise EngineError(f"{self.base_url} did not {task} within {self.timeout:g} s") from error
        except httpx.HTTPError as error:
            raise EngineError(f"{self.base_url} did not {task}: {type(error).__name__}: {error}") from error
        except ValueError as error:
            raise EngineError(f"{self.base_url} did not {task}: its answer is no JSON") from error


def _choice(answer: dict[str, Any]) -> Choice:
    """A choice's ids and log-probs; what is missing stays empty, and is refused where choices are checked."""
    logprobs = (answer.get("logprobs") or {}).get("token_logprobs") or []
    return Choice(list(answer.get("token_ids") or []), list(logprobs), answer.get("finish_reason"))
