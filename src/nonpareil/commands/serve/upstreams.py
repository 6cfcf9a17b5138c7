"""What a server draws from: an engine in this process, or another server; known before anything is loaded."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonpareil.commands.serve.weights import known_weights
from nonpareil.engines.checks import check_prompts, check_sampling, check_token_ids
from nonpareil.errors import ConfigError
from nonpareil.records import Prompt, SamplingParams
from nonpareil.remote import DEFAULT_KEY
from nonpareil.serving.replies import OWNER
from nonpareil.training.settings.template import template_kwargs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from nonpareil.commands.policies.local import LocalPolicy
    from nonpareil.options.serve import ServeOptions
    from nonpareil.serving.local import LocalUpstream
    from nonpareil.serving.upstream import HttpUpstream


class LocalSource:
    """A policy of this machine, by transformers or vLLM; its weights are read by `open`."""

    def __init__(self, options: "ServeOptions") -> None:
        """Reads tokenizer and config.

        Raises:
            ConfigError, ModelError: no such model, or one that the engine cannot draw from.
        """
        from nonpareil.commands.policies.local import local_policy
        from nonpareil.commands.policies.vllm import VLLMPolicy
        from nonpareil.models.loading import stated_limits

        if options.model_name_or_path is None:
            raise ConfigError("model_name_or_path is missing; name the policy, or an upstream (base_url)")
        local = local_policy(options)
        self._policy: LocalPolicy | VLLMPolicy = local
        if options.engine == "vllm":
            self._policy = VLLMPolicy(options)
        else:
            local.check_drawable()
        self._local, self._batch = local, options.max_tokens_per_batch
        self.tokenizer: Tokenizer = local.tokenizer
        self.name = options.served_model_name or Path(options.model_name_or_path).name
        self.template_kwargs = template_kwargs(options.chat_template_kwargs)
        window, self._vocabulary = stated_limits(local.config)
        limits = [each for each in (window, options.vllm_max_model_len) if each is not None]
        self._window = min(limits) if limits else None
        self._on_vllm = options.engine == "vllm"

    def check(self, prompt: Prompt, sampling: SamplingParams) -> None:
        """Refuse a prompt, or sampling, that the engine cannot draw.

        Raises:
            ConfigError, DataError: naming what does not fit.
        """
        from nonpareil.engines.vllm.requests import check_vllm_sampling

        (check_vllm_sampling if self._on_vllm else check_sampling)(sampling)
        check_prompts([prompt], sampling.max_completion_length, self._window)
        check_token_ids([prompt], self._vocabulary, f"the model {self.name!r}")

    def info(self) -> dict[str, Any]:
        """What decides the policy, for stored groups."""
        return self._local.info()

    def started(self) -> "LocalUpstream":
        """Loads the weights."""
        from nonpareil.serving.local import LocalUpstream

        return LocalUpstream(
            self._policy.engine(self._batch),
            self.tokenizer,
            self.name,
            check=self.check,
            ends=lambda prompt: self._local.endings_of([prompt]).ids,
            template_kwargs=self.template_kwargs,
        )


class ServedSource:
    """Another server; it is asked at once what it serves."""

    tokenizer = None

    def __init__(self, options: "ServeOptions") -> None:
        """Asks the server for its models, and for two answers of one token.

        Raises:
            ConfigError: no server there, a model that it does not serve, an `n` that it ignores, or a setting that
                is not its.
        """
        from nonpareil.serving.upstream import HttpUpstream

        if options.base_url is None:
            raise ConfigError("base_url is missing; engine=openai draws from a server: --base_url URL")
        if options.chat_template_kwargs is not None:
            raise ConfigError(
                f"chat_template_kwargs={options.chat_template_kwargs!r} is read by an engine in this process only; "
                "give it in the body of a request, or to the server at base_url"
            )
        self._upstream = HttpUpstream(
            options.base_url,
            model=options.model_name_or_path,
            api_key_env=options.api_key_env or DEFAULT_KEY,
            # One answer a request needs no server that honours n.
            choices_per_request=options.choices_per_request if options.chooses else 1,
            try_timeout=options.request_timeout,
            for_groups=options.groups is not None or options.calibration is not None,
        )
        asyncio.run(self._upstream.check())
        if self._upstream.describe()["server"] == OWNER:
            raise ConfigError(
                f"base_url={options.base_url!r} is a `nonpareil serve` itself, whose answers are chosen already; "
                "name the server that it draws from"
            )
        self.model = self._upstream.model or ""
        self.name = options.served_model_name or self.model
        self._weights: dict[str, Any] | None = None
        if options.groups_model is not None:
            self._weights = known_weights(options, self._upstream)

    def check(self, prompt: Prompt, sampling: SamplingParams) -> None:
        """The server's own to say."""

    def info(self) -> dict[str, Any]:
        """What is known of its weights: the served model's name alone, where nobody here has them."""
        return self._weights or {"path": self.model}

    def started(self) -> "HttpUpstream":
        """Connects when it is first asked."""
        return self._upstream


def source_of(options: "ServeOptions") -> LocalSource | ServedSource:
    """What the options name.

    Raises:
        ConfigError, ModelError: naming what is missing or cannot work.
    """
    if options.engine == "ray":
        raise ConfigError(
            "engine=ray draws stored groups; serve with transformers, vllm or an upstream (base_url)"
        )
    return ServedSource(options) if options.engine == "openai" else LocalSource(options)
