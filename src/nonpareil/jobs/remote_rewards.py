"""The options of rewards that a server computes: endpoints, and a chat model as a pairwise judge."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonpareil.errors import ConfigError, DataError
from nonpareil.text_files import read_text

if TYPE_CHECKING:
    from nonpareil.rewards import JudgeReward

CACHE = "nonpareil-judge.jsonl"
NAMES_OF_REWARDS = (
    *("reward_model_name_or_path", "reward_funcs", "reward_endpoints"),
    *("unseen_reward", "gold_reward"),
)
"""Options that name what scores, each of which takes an endpoint."""
_OF_THE_JUDGE = ("judge_base_url", "judge_template", "judge_max_calls", "judge_cache", "judge_api_key_env")


@dataclass
class RemoteRewardOptions:
    """Which servers score."""

    reward_endpoints: list[str] | None = field(
        default=None,
        metadata={
            "help": "Served rewards: json+http://host:port/path#name (protocol: docs/endpoints-rewards.md) or "
            "vllm+http://host:port#model, the directory or hub name of the served reward model."
        },
    )
    reward_api_key_env: str | None = field(
        default=None,
        metadata={
            "help": "Environment variable whose value is sent to all reward endpoints. Default: no key."
        },
    )
    judge_model: str | None = field(
        default=None,
        metadata={
            "help": "A chat model that compares a prompt's completions in pairs; the share won is the reward."
        },
    )
    judge_base_url: str | None = field(
        default=None, metadata={"help": "Its OpenAI-compatible server: http://host:port/v1."}
    )
    judge_template: str | None = field(
        default=None, metadata={"help": "File of what the judge reads, with {prompt}, {a} and {b}."}
    )
    judge_max_calls: int | None = field(
        default=None,
        metadata={"help": "Most calls a prompt. Default: all m(m-1)/2 pairs in both orders, m(m-1) calls."},
    )
    judge_cache: str | None = field(
        default=None, metadata={"help": f"File of the judge's answers, used again. Default: {CACHE}."}
    )
    judge_api_key_env: str | None = field(
        default=None, metadata={"help": "Environment variable of its key. Default: OPENAI_API_KEY, if set."}
    )


def check_remote(options: RemoteRewardOptions) -> None:
    """Refuse settings that nothing would read.

    Raises:
        ConfigError: settings of a judge or of endpoints that were not named, or a judge without its server.
    """
    from nonpareil.remote import check_timeout, checked_base_url, key_of
    from nonpareil.rewards.remote import is_endpoint, parse_endpoint

    for spec in options.reward_endpoints or []:
        parse_endpoint(spec)
    named = [*specs_of(options), *(getattr(options, name, None) for name in ("unseen_reward", "gold_reward"))]
    if options.reward_api_key_env is not None and not any(is_endpoint(spec) for spec in named):
        raise ConfigError(
            f"reward_api_key_env={options.reward_api_key_env!r} is read by reward endpoints only, and there is "
            "none; give reward_endpoints, or remove it"
        )
    if options.judge_model is None:
        for name in _OF_THE_JUDGE:
            if (value := getattr(options, name)) is not None:
                raise ConfigError(
                    f"{name}={value!r} is not read without judge_model; give it, or remove {name}"
                )
    elif options.judge_base_url is None:
        raise ConfigError(
            f"judge_model={options.judge_model!r} has no server; give judge_base_url, such as http://host:port/v1"
        )
    if (timeout := getattr(options, "reward_timeout", None)) is not None:
        check_timeout(timeout, "reward_timeout")
    key_of(options.reward_api_key_env, "reward_api_key_env")
    key_of(options.judge_api_key_env, "judge_api_key_env")
    if options.judge_base_url is not None:
        checked_base_url(options.judge_base_url, "judge_base_url")


def refuse_judge(options: RemoteRewardOptions, why: str) -> None:
    """Refuse a judge where policies are compared by their rewards.

    Raises:
        ConfigError: with the reason and what to do.
    """
    if options.judge_model is not None:
        raise ConfigError(
            f"judge_model={options.judge_model!r}: {why}; a judge's score says how a completion stands in its own "
            "group, so policy and reference, judged apart, would both have one half. Give a reward model, function "
            "or endpoint there (docs/endpoints-rewards.md says how to judge two policies)"
        )


def load_judge(options: RemoteRewardOptions, timeout: float | None) -> "list[JudgeReward]":
    """The judge, where one is named.

    Raises:
        ConfigError: a template that cannot be read or lacks its places, or as `JudgeReward`.
    """
    if options.judge_model is None:
        return []
    from nonpareil.remote import DEFAULT_KEY
    from nonpareil.rewards.judge import TEMPLATE, JudgeReward

    template = TEMPLATE
    if options.judge_template is not None:
        try:
            template = read_text(Path(options.judge_template).expanduser())
        except (OSError, DataError) as error:
            raise ConfigError(f"judge_template={options.judge_template!r} cannot be read: {error}") from error
    return [
        JudgeReward(
            options.judge_model,
            options.judge_base_url or "",
            template=template,
            max_calls=options.judge_max_calls,
            cache=options.judge_cache or CACHE,
            api_key_env=options.judge_api_key_env or DEFAULT_KEY,
            timeout=timeout,
        )
    ]


def reward_labels(options: RemoteRewardOptions) -> list[str]:
    """All that scores, by the names a report may hold: endpoints and judge without their addresses."""
    from nonpareil.rewards.remote import public_name

    labels = [public_name(spec) for spec in specs_of(options)]
    return labels + ([f"judge {options.judge_model}"] if options.judge_model else [])


def without_addresses(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they are kept, shown and compared: what scores by its name, wherever it is served."""
    return {key: _public(value) if key in NAMES_OF_REWARDS else value for key, value in settings.items()}


def _public(value: Any) -> Any:
    from nonpareil.rewards.remote import public_name

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
