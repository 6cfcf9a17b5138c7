"""From what a user names (a path, a function, a model, an endpoint, an object of their own) to what scores."""

import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from nonpareil.errors import ConfigError
from nonpareil.in_memory import InMemory
from nonpareil.rewards.base import Reward
from nonpareil.rewards.combine import CombinedReward
from nonpareil.rewards.endpoints.address import is_endpoint, parse_endpoint
from nonpareil.rewards.endpoints.json_protocol import RemoteReward
from nonpareil.rewards.functions.function_reward import FunctionReward
from nonpareil.rewards.models.text_options import TEXT_OPTIONS
from nonpareil.rewards.verifiers.names import is_verifier, make_verifier, refuse_near_miss
from nonpareil.setting_types import nearest
from nonpareil.user_code.load import is_function_path

RewardSpec = Reward | Callable[..., Any] | str | Path
"""A reward, a function, a model in memory, or the name of a verifier, function, model or endpoint."""
SpecKind = Literal["json", "vllm", "function", "verifier", "model"]
ENGINES = ("transformers", "vllm")
"""What a reward model runs on."""
SERVED_MODEL_OPTIONS = (*TEXT_OPTIONS, "trust_remote_code")
"""Of a reward model's options, those that hold where vLLM serves it."""


_LIGHT = ("function", "verifier")
"""Kinds that are made without a model."""


def load_rewards(
    specs: RewardSpec | Sequence[RewardSpec],
    *,
    tokenizers: Any = None,
    weights: Sequence[float] | None = None,
    timeout: float | None = None,
    api_key_env: str | None = None,
    engine: str = "transformers",
    skipped_tokens: Sequence[str] = (),
    check: Callable[[Reward], None] | None = None,
    **model_options: Any,
) -> CombinedReward:
    """Rewards from what a user names, combined.

    `accuracy` or `accuracy:setting=value` is a verifier (`rewards/verifiers/names.py` has the list); `file.py:fn`
    and `pkg.mod.fn` are functions; a directory or `org/name` is a reward model;
    `json+http://host:port/path#name` and `vllm+http://host:port#model` are endpoints. An object is a `Reward`, a
    function, or a classifier of transformers (a `torch.nn.Module`).

    Args:
        specs: one, or a list that mixes kinds.
        tokenizers: one, or a list with one per spec (None for functions and for models that bring their own).
        weights: one per reward; 1 each by default.
        timeout: seconds a function may take per call, an endpoint per request, and a verifier per completion.
        api_key_env: the environment variable whose value is sent to endpoints as a bearer token.
        engine: what reward models run on, "transformers" or "vllm".
        skipped_tokens: texts that no reward is to read; `special_tokens(tokenizer)` gives a policy's.
        check: called with each function and verifier before any model is read; it may refuse one.
        **model_options: for every reward model, as `RewardModel` takes them: `dtype`, `append_eos`, ... Of a served
            one those of `TextOptions` and `trust_remote_code` hold; the rest is its server's to decide.

    Raises:
        ConfigError: a spec that names nothing, or a verifier and a folder too, an object that is no reward, an
            unknown option, or lists of different lengths.
        ModelError: a model that is no reward model.
    """
    listed = list(specs) if isinstance(specs, Sequence) and not isinstance(specs, str) else [specs]
    own_tokenizers = [None] * len(listed)
    if tokenizers is not None:  # TRL takes one alone
        own_tokenizers = list(tokenizers) if isinstance(tokenizers, list | tuple) else [tokenizers]
    if len(own_tokenizers) != len(listed):
        raise ConfigError(
            f"{len(own_tokenizers)} reward tokenizers for {len(listed)} rewards; give one each, or None"
        )
    if engine not in ENGINES:
        raise ConfigError(f"reward_engine={engine!r} must be one of {', '.join(ENGINES)}")
    if model_options:  # naming the class imports torch
        _check_options(model_options, engine)
    asking = {"timeout": timeout, "api_key_env": api_key_env}
    loaded: dict[int, Reward] = {}
    light = [kind_of(spec) in _LIGHT for spec in listed]
    for place in sorted(range(len(listed)), key=lambda place: not light[place]):
        loaded[place] = _load(listed[place], own_tokenizers[place], asking, engine, model_options)
        if check is not None and light[place]:
            check(loaded[place])
    return CombinedReward([loaded[place] for place in range(len(listed))], weights, skipped_tokens)


def kind_of(spec: Any) -> SpecKind:
    """What a user named: one of two kinds of endpoints, a verifier, a model or a function.

    Raises:
        ConfigError: a verifier's bare name that is also the folder of a model here, or nearly one's.
    """
    spec = spec.value if isinstance(spec, InMemory) else spec
    if isinstance(spec, str | Path):
        named = str(spec)
        if isinstance(spec, str) and is_verifier(named):
            if (Path(named) / "config.json").is_file():
                raise ConfigError(
                    f"{named!r} is a verifier and the folder of a model here; write ./{named} for the model, or "
                    f"{named}: for the verifier"
                )
            return "verifier"
        if is_endpoint(named):
            return parse_endpoint(named).kind
        if Path(named).expanduser().is_dir():  # it may be called what a module is: what exists is meant
            return "model"
        if isinstance(spec, str):
            refuse_near_miss(named)
        return "function" if is_function_path(named) else "model"
    return "model" if _is_torch_module(spec) else "function"


def _load(
    spec: Any, tokenizer: Any, asking: dict[str, Any], engine: str, model_options: dict[str, Any]
) -> Reward:
    """The reward of one spec; `asking`: how functions and servers are called."""
    spec = spec.value if isinstance(spec, InMemory) else spec
    if isinstance(spec, Reward):
        return spec
    kind = kind_of(spec)
    if isinstance(spec, Path):
        spec = str(spec)
    if kind == "verifier":
        return make_verifier(spec, asking["timeout"])
    if kind == "function":
        return FunctionReward(spec, timeout=asking["timeout"])
    if kind == "model":
        return _model_class(engine)(spec, tokenizer, **model_options)
    if kind == "json":
        return RemoteReward(spec, **asking)
    from nonpareil.rewards.models.served import ServedRewardModel

    # How texts are written; on what and in what precision the model runs is its server's.
    taken = {name: value for name, value in model_options.items() if name in SERVED_MODEL_OPTIONS}
    return ServedRewardModel(spec, tokenizer, **taken, **asking)


def _model_class(engine: str) -> type:
    if engine == "vllm":
        from nonpareil.rewards.models.vllm import VLLMRewardModel

        return VLLMRewardModel
    from nonpareil.rewards.models.transformers import RewardModel

    return RewardModel


def _is_torch_module(spec: Any) -> bool:
    torch = sys.modules.get("torch")  # whoever holds a module has imported it
    return torch is not None and isinstance(spec, torch.nn.Module)


def _check_options(options: dict[str, Any], engine: str) -> None:
    own = inspect.signature(_model_class(engine)).parameters
    known = [name for name in own if name not in ("model", "tokenizer", "name", "text")] + [*TEXT_OPTIONS]
    for name in options:
        if name not in known:
            hint = nearest(name, known, quoted=True) or f"; known: {', '.join(known)}"
            raise ConfigError(f"unknown reward model option {name!r}{hint}")
