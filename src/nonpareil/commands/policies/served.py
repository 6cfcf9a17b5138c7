"""A policy behind an OpenAI-compatible server, known before any request is sent."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nonpareil.commands.policies.base import Policy
from nonpareil.engines.checks import check_prompts, check_sampling
from nonpareil.engines.openai import OpenAIEngine
from nonpareil.errors import ConfigError, DataError
from nonpareil.records import Prompt, SamplingParams
from nonpareil.remote import DEFAULT_KEY, JsonClient, check_timeout

if TYPE_CHECKING:
    from nonpareil.options.sample import SampleOptions

REQUEST_TIMEOUT = 600.0
"""Seconds: a whole group may be one request."""
MAX_CONCURRENCY = 16
MAX_RETRIES = 6


class ServedPolicy(Policy):
    """The served model of the options; no weights are read here."""

    def __init__(self, options: "SampleOptions") -> None:
        """Checks the server's settings, and reads the tokenizer if one is named.

        Raises:
            ConfigError: no base_url, or one that cannot work.
            ModelError: no such tokenizer.
        """
        if options.base_url is None:
            raise ConfigError("base_url is missing; engine=openai draws from a server: --base_url URL")
        timeout = REQUEST_TIMEOUT if options.request_timeout is None else options.request_timeout
        check_timeout(timeout, "request_timeout")
        self.name = options.model_name_or_path or ""
        self._client = JsonClient(
            options.base_url,
            api_key_env=options.api_key_env or DEFAULT_KEY,
            timeout=timeout,
            max_concurrency=MAX_CONCURRENCY if options.max_concurrency is None else options.max_concurrency,
            max_retries=MAX_RETRIES if options.max_retries is None else options.max_retries,
        )
        self.tokenizer = None
        if options.tokenizer_name_or_path is not None:
            from nonpareil.models.loading import load_tokenizer

            self.tokenizer = load_tokenizer(
                options.tokenizer_name_or_path, alone=True, trust_remote_code=options.trust_remote_code
            )
        self._trial: tuple[Prompt, SamplingParams] | None = None

    def check(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> None:
        """Refuse sampling settings and prompts that cannot work; the window is the server's to check.

        Raises:
            ConfigError: sampling parameters out of their range.
            DataError: an empty prompt, or a conversation sent as messages that the assistant spoke last in.
        """
        check_sampling(sampling)
        if self.tokenizer is not None:
            check_prompts(prompts, sampling.max_completion_length, None)
        for prompt in prompts:
            talk = prompt.prompt
            if not prompt.token_ids and not isinstance(talk, str) and talk[-1]["role"] == "assistant":
                raise DataError(
                    f"prompt {prompt.prompt_id}: the assistant spoke last, and a server would begin another "
                    "turn instead of continuing it; give tokenizer_name_or_path, or end with the user's turn"
                )
        self._trial = (prompts[0], sampling)

    def info(self) -> dict[str, Any]:
        """The served model's name. Without a fingerprint: nobody here has seen the weights."""
        return {"path": self.name}

    def engine(self, max_tokens_per_batch: int) -> OpenAIEngine:
        """The engine; batches are the server's, so `max_tokens_per_batch` is not read."""
        assert self._trial is not None, "check comes first"
        return OpenAIEngine(self.name, self._client, self._trial, self.tokenizer)
