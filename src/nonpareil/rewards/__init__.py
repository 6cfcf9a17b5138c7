"""Rewards: classification models, Python functions, endpoints and judges, alone or as a weighted sum."""

import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nonpareil.errors import ConfigError
from nonpareil.protocols import Reward
from nonpareil.rewards.combine import CombinedReward
from nonpareil.rewards.endpoint import RemoteReward, is_endpoint, parse_endpoint
from nonpareil.rewards.functions.function import FunctionReward
from nonpareil.rewards.skipping import special_tokens
from nonpareil.user_code.load import is_function_path, load_function

if TYPE_CHECKING:
    from nonpareil.rewards.judge.judge import JudgeReward
    from nonpareil.rewards.models.local import RewardModel
    from nonpareil.rewards.models.served import VLLMReward

__all__ = [
    "CombinedReward",
    "FunctionReward",
    "JudgeReward",
    "RemoteReward",
    "RewardModel",
    "VLLMReward",
    "load_function",
    "load_rewards",
    "special_tokens",
]

TEXT_OPTIONS = ("append_eos", "prepend_bos", "max_length", "overlong", "trust_remote_code")
"""Of a reward model's options, those that also hold where vLLM serves it."""
_LATER = {"JudgeReward": "judge.judge", "RewardModel": "models.local", "VLLMReward": "models.served"}

ENGINES = ("transformers", "vllm")
"""What a reward model runs on."""
RewardSpec = Reward | Callable[..., Any] | str | Path
"""A reward, a function, a model in memory, or the name of a function, model or endpoint."""


def __getattr__(name: str) -> Any:
    """Import torch only for those who score with a model; a function's worker process starts without it."""
    if name in _LATER:
        return getattr(importlib.import_module(f"nonpareil.rewards.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load_rewards(
    specs: RewardSpec | Sequence[RewardSpec],
    *,
    tokenizers: Sequence[Any] | None = None,
    weights: Sequence[float] | None = None,
    timeout: float | None = None,
    api_key_env: str | None = None,
    engine: str = "transformers",
    skipped_tokens: Sequence[str] = (),
    **model_options: Any,
) -> CombinedReward:
    """Rewards from what a user names, combined.

    `file.py:fn` and `pkg.mod.fn` are functions; a directory or `org/name` is a reward model;
    `json+http://host:port/path#name` and `vllm+http://host:port#model` are endpoints.

    Args:
        specs: one, or a list that mixes kinds.
        tokenizers: one a spec (None for functions and for models that bring their own).
        weights: one a reward; 1 each by default.
        timeout: seconds a function may take a call, and an endpoint a request.
        api_key_env: the environment variable whose value is sent to endpoints as a bearer token.
        engine: what reward models run on, "transformers" or "vllm".
        skipped_tokens: texts that no reward is to read; `special_tokens(tokenizer)` gives a policy's.
        **model_options: for every reward model, as `RewardModel` takes them: `dtype`, `append_eos`, ...

    Raises:
        ConfigError: a spec that names nothing, an unknown option, or lists of different lengths.
        ModelError: a model that is no reward model.
    """
    listed = list(specs) if isinstance(specs, Sequence) and not isinstance(specs, str) else [specs]
    own_tokenizers = list(tokenizers) if tokenizers is not None else [None] * len(listed)
    if len(own_tokenizers) != len(listed):
        raise ConfigError(
            f"{len(own_tokenizers)} reward tokenizers for {len(listed)} rewards; give one each, or None"
        )
    if engine not in ENGINES:
        raise ConfigError(f"reward_engine={engine!r} must be one of {', '.join(ENGINES)}")
    _check_options(model_options, engine)
    pairs = zip(listed, own_tokenizers, strict=True)
    return CombinedReward(
        [_load(spec, tokenizer, timeout, api_key_env, engine, model_options) for spec, tokenizer in pairs],
        weights,
        skipped_tokens,
    )


def kind_of(spec: str) -> Literal["json", "vllm", "function", "model"]:
    """What a string names: one of two kinds of endpoints, a function or a model."""
    if is_endpoint(spec):
        return parse_endpoint(spec).kind
    # A directory may be called what a module is: what exists is meant.
    return "function" if not Path(spec).expanduser().is_dir() and is_function_path(spec) else "model"


def _load(
    spec: Any,
    tokenizer: Any,
    timeout: float | None,
    api_key_env: str | None,
    engine: str,
    model_options: dict[str, Any],
) -> Reward:
    if isinstance(spec, Path):
        spec = str(spec)
    if is_endpoint(spec):
        return _endpoint(spec, tokenizer, model_options, timeout=timeout, api_key_env=api_key_env)
    if isinstance(spec, str):
        if kind_of(spec) == "function":
            return FunctionReward(load_function(spec), timeout=timeout)
    elif not _is_torch_module(spec):
        if hasattr(spec, "score") and hasattr(spec, "describe"):
            return spec
        return FunctionReward(spec, timeout=timeout)
    return _model_class(engine)(spec, tokenizer, **model_options)


def _model_class(engine: str) -> type:
    if engine == "vllm":
        from nonpareil.rewards.models.vllm import VLLMRewardModel

        return VLLMRewardModel
    from nonpareil.rewards.models.local import RewardModel

    return RewardModel


def _endpoint(spec: str, tokenizer: Any, model_options: dict[str, Any], **settings: Any) -> Reward:
    endpoint = parse_endpoint(spec)
    if endpoint.kind == "json":
        return RemoteReward(endpoint, **settings)
    from nonpareil.rewards.models.served import VLLMReward

    # How texts are read; where and in what precision the model runs is the server's.
    read = {name: value for name, value in model_options.items() if name in TEXT_OPTIONS}
    return VLLMReward(endpoint, tokenizer, **read, **settings)


def _is_torch_module(spec: Any) -> bool:
    torch = sys.modules.get("torch")  # whoever holds a module has imported it
    return torch is not None and isinstance(spec, torch.nn.Module)


def _check_options(options: dict[str, Any], engine: str) -> None:
    if not options:
        return
    known = [
        name
        for name in inspect.signature(_model_class(engine)).parameters
        if name not in ("model", "tokenizer", "name")
    ]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
            raise ConfigError(f"unknown reward model option {name!r}{hint}")
