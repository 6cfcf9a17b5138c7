"""The options of rewards: models and functions, endpoints, and a chat model as a pairwise judge."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from nonpareil.errors import ConfigError
from nonpareil.options.shared import CodeOptions
from nonpareil.settings import DTYPES, CheckedOptions, option, refuse_unread, settings_of, values_of

CACHE = "nonpareil-judge.jsonl"
ENDPOINTS = "reward endpoints"
LIMITED = "reward functions, verifiers, endpoints and the judge"
LOADED_MODEL = "a reward model"
ANY_MODEL = "a reward model, served or not,"
FIRST_MODEL = "a reward model, served or not, that is no second reward"
"""Readers; `options.unread` says when they are absent."""


@dataclass
class RemoteRewardOptions(CheckedOptions):
    """Which servers score."""

    HEADING: ClassVar = "Rewards"

    reward_endpoints: list[str] | None = option(
        None,
        "Served rewards: json+http://host:port/path#name (protocol: docs/endpoints-rewards.md) or "
        "vllm+http://host:port#model, the directory or hub name of the served reward model.",
        names="reward",
        replaces_demo=True,
    )
    reward_api_key_env: str | None = option(
        None,
        "Environment variable whose value is sent to all reward endpoints. Default: no key.",
        reader=ENDPOINTS,
    )
    judge_model: str | None = option(
        None,
        "A chat model that compares a prompt's completions in pairs; the share won is the reward.",
        replaces_demo=True,
    )
    judge_base_url: str | None = option(
        None, "Its OpenAI-compatible server: http://host:port/v1.", of="judge_model"
    )
    judge_template: str | None = option(
        None,
        "File of what the judge reads, with {prompt}, {a} and {b}.",
        names="input",
        of="judge_model",
    )
    judge_chat_template_kwargs: dict[str, Any] | None = option(
        None,
        "Sent along for its chat template (vLLM, SGLang), as JSON: "
        """'{"enable_thinking": false}'.""",
        of="judge_model",
    )
    judge_max_calls: int | None = option(
        None,
        "Most calls per prompt. Default: all m(m-1)/2 pairs in both orders, m(m-1) calls.",
        at_least=1,
        of="judge_model",
    )
    judge_cache: str | None = option(
        None, f"File of the judge's answers, used again. Default: {CACHE}.", path=True, of="judge_model"
    )
    judge_api_key_env: str | None = option(
        None, "Environment variable of its key. Default: OPENAI_API_KEY, if set.", of="judge_model"
    )


def check_remote(options: RemoteRewardOptions) -> None:
    """Refuse settings that nothing would read.

    Raises:
        ConfigError: settings of a judge or of endpoints that were not named, or a judge without its server.
    """
    from nonpareil.remote import check_timeout, checked_base_url, key_of
    from nonpareil.rewards.endpoints.address import is_endpoint, parse_endpoint

    for spec in options.reward_endpoints or []:
        parse_endpoint(spec)
    refuse_unread(options, {} if any(map(is_endpoint, rewards_of(options))) else {ENDPOINTS: "none is named"})
    if options.judge_model is not None and options.judge_base_url is None:
        raise ConfigError(
            f"judge_model={options.judge_model!r} has no server; give judge_base_url, such as http://host:port/v1"
        )
    if (timeout := getattr(options, "reward_timeout", None)) is not None:
        check_timeout(timeout, "reward_timeout")
    key_of(options.reward_api_key_env, "reward_api_key_env")
    key_of(options.judge_api_key_env, "judge_api_key_env")
    if options.judge_base_url is not None:
        checked_base_url(options.judge_base_url, "judge_base_url")


def no_judge(why: str) -> str:
    """Why a judge is refused where policies are compared by their rewards, and what to do: `Limits.refused`."""
    return (
        f"cannot be: {why}; a judge's score says how a completion stands in its own group, so policy and "
        "reference, judged apart, would both have one half. Give a reward model, function or endpoint there "
        "(docs/endpoints-rewards.md says how to judge two policies)"
    )


def reward_labels(options: RemoteRewardOptions) -> list[str]:
    """All that scores, by the names a report may hold: endpoints and judge without their addresses."""
    from nonpareil.rewards.endpoints.address import public_name

    labels = [public_name(spec) for spec in specs_of(options)]
    return labels + ([f"judge {options.judge_model}"] if options.judge_model else [])


def without_addresses(cls: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a class as they are kept, shown and compared: what scores by its name, wherever it is served."""
    known = settings_of(cls)
    return {
        key: _public(value) if key in known and known[key].limits.names == "reward" else value
        for key, value in settings.items()
    }


def _public(value: Any) -> Any:
    from nonpareil.rewards.endpoints.address import public_name

    if isinstance(value, list | tuple):
        return [_public(one) for one in value]
    return public_name(value) if isinstance(value, str) else value


def specs_of(options: Any) -> list[str]:
    """The specs of models, functions and endpoints, in the order of their weights."""
    specs = [
        options.reward_model_name_or_path,
        *(options.reward_funcs or []),
        *(options.reward_endpoints or []),
    ]
    return [spec for spec in specs if spec]


def rewards_of(options: Any) -> list[str]:
    """The specs of all rewards that these options name, a second one included."""
    named = [
        getattr(options, name)
        for name, setting in settings_of(type(options)).items()
        if setting.limits.names == "reward"
    ]
    return [spec for value in named if value for spec in (value if isinstance(value, list) else [value])]


def model_options(options: Any, *, second: bool = False) -> dict[str, Any]:
    """What `load_rewards` hands to reward models: `reward_dtype` as `dtype`, and so on, by the options' readers.

    `second`: for a reward that is measured and not trained on. How the first one was trained is not said of it.
    """
    readers = {LOADED_MODEL, ANY_MODEL} if second else {LOADED_MODEL, ANY_MODEL, FIRST_MODEL}
    taken = {
        name.removeprefix("reward_"): getattr(options, name)
        for name, setting in settings_of(type(options)).items()
        if setting.limits.reader in readers
    }
    return {**taken, "trust_remote_code": options.trust_remote_code}


@dataclass
class RewardInputOptions(RemoteRewardOptions):
    """Which rewards, and how reward models read their input."""

    HEADING: ClassVar = "Rewards"

    reward_model_name_or_path: str | None = option(
        None,
        "A sequence-classification model with one label; its logit is the reward.",
        names="reward",
        replaces_demo=True,
    )
    reward_funcs: list[str] | None = option(
        None,
        "Rewards that verify, by name: accuracy, format, length, similarity, reasoning_gym, "
        "python_tests, instructions, with settings as "
        "accuracy:answer_column=solution (docs/verifiers.md). Or Python rewards with TRL's signature: "
        "path/to/file.py:function or package.module.function.",
        names="reward",
        replaces_demo=True,
    )
    reward_dtype: str = option(
        "auto", "Of the reward model's body; its head is float32.", choices=DTYPES, reader=LOADED_MODEL
    )
    reward_append_eos: bool = option(
        False, "End the text with the end token, where the reward model was trained so.", reader=FIRST_MODEL
    )
    reward_prepend_bos: bool = option(
        False,
        "Begin with the begin token, where the reward model was trained so and its tokenizer does not.",
        reader=FIRST_MODEL,
    )
    reward_engine: str = option(
        "transformers",
        "What reward models run on: transformers, or vllm where it knows the model's class.",
        choices=("transformers", "vllm"),
        reader=LOADED_MODEL,
    )
    reward_overlong: str = option(
        "error",
        "error, or truncate: cut the prompt from its left to fit the window.",
        choices=("error", "truncate"),
        reader=ANY_MODEL,
    )
    reward_chat_template_kwargs: dict[str, Any] | None = option(
        None,
        "Further arguments of the reward models' own chat templates, as JSON.",
        reader=ANY_MODEL,
    )
    reward_skip_special_tokens: bool = option(
        False, "Leave the policy's special tokens (a think tag) out of the text that rewards read."
    )


@dataclass
class RewardOptions(RewardInputOptions, CodeOptions):
    """The same with weights, timeout and trust, which `DistillationConfig` holds for `nonpareil distill`."""

    HEADING: ClassVar = "Rewards"

    reward_weights: list[float] | None = option(
        None, "One per reward: the model's, then functions, endpoints, judge. Default: 1 each."
    )
    reward_timeout: float | None = option(
        None,
        "Seconds a Python reward or a request may take, or a verifier for one completion; then its rewards are "
        "null.",
        above=0,
        reader=LIMITED,
    )


_NOT_KEPT = {"trust_remote_code", "reward_api_key_env", "judge_base_url", "judge_api_key_env", "judge_cache"}
"""What no manifest keeps."""


def asked_rewards(options: Any) -> dict[str, Any]:
    """The rewards as they were named, for `distill --groups`: no address, no key, nobody's leave to run code."""
    named = without_addresses(RewardOptions, values_of(options, RewardOptions))
    kept = {
        name: named[name]
        for name, setting in settings_of(RewardOptions).items()
        if named[name] != setting.default and name not in _NOT_KEPT
    }
    for name in ("reward_model_name_or_path", "reward_funcs"):
        if name in kept:
            value = kept[name]
            kept[name] = [_placed(one) for one in value] if isinstance(value, list) else _placed(value)
    return kept


def _placed(spec: str) -> str:
    """The spec of a reward, wherever it is read: a file or folder by its whole path."""
    file, colon, name = spec.rpartition(":") if ".py:" in spec else (spec, "", "")
    there = Path(file).expanduser()
    return f"{there.resolve()}{colon}{name}" if there.exists() else spec
