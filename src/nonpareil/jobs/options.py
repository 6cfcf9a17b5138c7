"""The options that commands share. Plain dataclasses, read without importing torch."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from nonpareil.assets import demo_path
from nonpareil.errors import ConfigError, DataError
from nonpareil.jobs.remote_rewards import RemoteRewardOptions, check_remote, load_judge, specs_of
from nonpareil.records import Prompt, SamplingParams
from nonpareil.setting_types import SEED
from nonpareil.settings import DTYPES, CheckedOptions, option

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from nonpareil.rewards import CombinedReward


@dataclass
class FileOptions(CheckedOptions):
    """Where options came from."""

    config_file: str | None = field(default=None, init=False)
    """The YAML file; no option of its own, but one of the files that no output may be written over."""


@dataclass
class CodeOptions(CheckedOptions):
    """Whose code may run."""

    trust_remote_code: bool = option(
        False, "Run the code that a model, tokenizer or reward model brings along (auto_map)."
    )


@dataclass
class ModelOptions(CodeOptions):
    """Which policy."""

    model_name_or_path: str | None = option(None, "Model directory or hub name. Default: the embedded demo.")
    model_revision: str | None = option(None, "Branch, tag or commit of a hub model.")
    dtype: str = option(
        "auto",
        "auto (bfloat16 where this machine gains from it), bfloat16, float16 or float32.",
        choices=DTYPES,
    )


@dataclass
class PromptOptions(CheckedOptions):
    """Which prompts."""

    dataset_name: str | None = option(
        None, "Prompts: a .parquet, .json, .jsonl, .csv or .txt file, a directory, or a hub dataset."
    )
    dataset_config: str | None = option(None, "Of a hub dataset that has several.")
    prompt_column: str = option("prompt", "The column that holds the prompt.")
    chat_template_kwargs: dict[str, Any] | str | None = option(
        None,
        "Further arguments of the policy's chat template, for conversations, as JSON: "
        """'{"enable_thinking": false}'.""",
    )


@dataclass
class RewardInputOptions(RemoteRewardOptions):
    """Which rewards, and how reward models read their input."""

    reward_model_name_or_path: str | None = option(
        None, "A sequence-classification model with one label; its logit is the reward."
    )
    reward_funcs: list[str] | None = option(
        None, "Python rewards with TRL's signature: path/to/file.py:function or package.module.function."
    )
    reward_dtype: str = option("auto", "Of the reward model's body; its head is float32.", choices=DTYPES)
    reward_append_eos: bool = option(
        False, "End the text with the end token, where the reward model was trained so."
    )
    reward_prepend_bos: bool = option(
        False, "Begin with the begin token, where the reward model was trained so and its tokenizer does not."
    )
    reward_engine: str = option(
        "transformers",
        "What reward models run on: transformers, or vllm where it knows the model's class.",
        choices=("transformers", "vllm"),
    )
    reward_overlong: str = option(
        "error",
        "error, or truncate: cut the prompt from its left to fit the window.",
        choices=("error", "truncate"),
    )
    reward_skip_special_tokens: bool = option(
        False, "Leave the policy's special tokens (a think tag) out of the text that rewards read."
    )


@dataclass
class RewardOptions(RewardInputOptions, CodeOptions):
    """The same with weights, timeout and trust, which `DistillationConfig` holds for `nonpareil distill`."""

    reward_weights: list[float] | None = option(
        None, "One a reward: the model's, then functions, endpoints, judge. Default: 1 each."
    )
    reward_timeout: float | None = option(
        None, "Seconds a Python reward or a request may take; then its rewards are null.", above=0
    )


@dataclass
class SamplingOptions(CheckedOptions):
    """How completions are drawn."""

    max_completion_length: int = option(256, "Most tokens drawn a completion.", at_least=1)
    temperature: float = option(1.0, "Divides the logits.", above=0, why="best-of-N needs draws that differ")
    top_p: float = option(1.0, "Keep the likeliest tokens up to this mass.", above=0, at_most=1)
    top_k: int = option(0, "Keep this many tokens; 0 keeps all.", at_least=0)
    min_p: float = option(0.0, "Keep tokens at least this share of the likeliest one.", at_least=0, below=1)
    seed: int = option(0, "The same seed draws the same groups.", at_least=0, at_most=SEED)
    max_tokens_per_batch: int = option(
        32768, "Tokens, padding included, of one batch; bounds memory.", at_least=1
    )

    def sampling(self) -> SamplingParams:
        """These options as the engines take them."""
        return SamplingParams(
            self.max_completion_length, self.temperature, self.top_p, self.top_k, self.min_p, self.seed
        )


TARGETS = (2, 4, 8, 16)
"""The N of best-of-N that a policy is held against, where there are as many reference completions."""


def targets_of(n: Sequence[int] | None, num_reference_samples: int, name: str) -> tuple[int, ...]:
    """The N that were given, or those of `TARGETS` that so many reference completions show.

    `name` is the option that says how many.

    Raises:
        ConfigError: an N that is above them.
    """
    if n is None:
        return tuple(each for each in TARGETS if each <= num_reference_samples)
    if n and max(n) > num_reference_samples:
        raise ConfigError(
            f"n={list(n)} asks for more than {name}={num_reference_samples}; lower n or draw more"
        )
    return tuple(n)


DEMO_FIELDS = (
    "model_name_or_path",
    "dataset_name",
    *("reward_model_name_or_path", "reward_funcs", "reward_endpoints", "judge_model"),
    "base_url",  # a server does not have the demo's policy
)


def uses_demo(given: dict[str, Any]) -> bool:
    """Whether the embedded demo is meant: none of policy, prompts and rewards was named."""
    return not any(given.get(name) for name in DEMO_FIELDS)


def demo_defaults(split: str) -> dict[str, Any]:
    """The demo's policy, prompts and reward, as options."""
    return {
        "model_name_or_path": str(demo_path("policy")),
        "dataset_name": str(demo_path("prompts") / f"{split}.parquet"),
        "reward_model_name_or_path": str(demo_path("reward")),
        "max_completion_length": 40,
    }


def require_all(options: Any, *, prompts_from_groups: bool = False) -> None:
    """Policy, prompts and a reward, or a clear refusal before anything is loaded.

    Raises:
        ConfigError: naming the option that is missing.
    """
    if options.model_name_or_path is None:
        raise ConfigError("model_name_or_path is missing; name the policy")
    if options.dataset_name is None and not prompts_from_groups:
        raise ConfigError("dataset_name is missing; name a file or dataset of prompts")
    check_remote(options)
    if not specs_of(options) and options.judge_model is None:
        raise ConfigError(
            "no reward: give reward_model_name_or_path, reward_funcs, reward_endpoints, judge_model, or several"
        )


def load_reward(
    options: RewardInputOptions,
    weights: list[float] | None,
    timeout: float | None,
    *,
    trust_remote_code: bool,
    tokenizer: "Tokenizer | None",
) -> "CombinedReward":
    """The rewards of the options: the model first, then functions, endpoints and the judge.

    Raises:
        ConfigError: one that cannot be loaded, or special tokens to skip of a policy without a tokenizer here.
    """
    from nonpareil.rewards import load_rewards, special_tokens

    skips = options.reward_skip_special_tokens
    if skips and tokenizer is None:
        raise ConfigError(
            "reward_skip_special_tokens=true: which tokens are special is the served model's tokenizer's to say; "
            "give tokenizer_name_or_path"
        )
    return load_rewards(
        [*specs_of(options), *load_judge(options, timeout)],
        weights=weights,
        timeout=timeout,
        api_key_env=options.reward_api_key_env,
        dtype=options.reward_dtype,
        append_eos=options.reward_append_eos,
        prepend_bos=options.reward_prepend_bos,
        overlong=options.reward_overlong,
        engine=options.reward_engine,
        skipped_tokens=special_tokens(tokenizer) if skips else (),
        trust_remote_code=trust_remote_code,
    )


def load_reward_of(options: RewardOptions, tokenizer: "Tokenizer | None") -> "CombinedReward":
    """The same of options that hold weights, timeout and trust themselves; the tokenizer is the policy's."""
    return load_reward(
        options,
        options.reward_weights,
        options.reward_timeout,
        trust_remote_code=options.trust_remote_code,
        tokenizer=tokenizer,
    )


def load_prompt_records(
    options: PromptOptions,
    tokenizer: "Tokenizer | None",
    *,
    source: str,
    split: str,
    limit: int | None,
    seed: int | None = None,
    now: datetime | None = None,
) -> list[Prompt]:
    """Prompts, checked and tokenised as the policy sees them; without a tokenizer, as text alone.

    `now` is what a chat template that writes the date takes for now.
    """
    from nonpareil.rollouts.prompts import load_prompts, tokenize_prompts

    try:
        rows = load_prompts(
            source,
            split=split,
            prompt_column=options.prompt_column,
            dataset_config=options.dataset_config,
            limit=limit,
            seed=seed,
        )
    except DataError as error:
        given, message = "eval_dataset_name", str(error)
        if source != getattr(options, given, None) or not message.startswith("dataset_name="):
            raise
        raise DataError(given + message.removeprefix("dataset_name")) from error
    return tokenize_prompts(rows, tokenizer, template_kwargs(options), now=now)


def template_kwargs(options: PromptOptions) -> dict[str, Any]:
    """The chat template's further arguments, from a flag's JSON or a YAML file's mapping.

    Raises:
        ConfigError: no JSON object, or a value that JSON has no form for (a date that YAML reads as one).
    """
    given = options.chat_template_kwargs
    wanted = f"chat_template_kwargs={given!r} must be a JSON object"
    if given is None:
        return {}
    try:
        value = json.loads(given) if isinstance(given, str) else json.loads(json.dumps(given))
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"""{wanted}, such as '{{"date_string": "26 Nov 2026"}}' (text in quotes): {error}"""
        ) from error
    if not isinstance(value, dict) or (isinstance(given, dict) and value != given):
        raise ConfigError(f"{wanted} with text for its keys")
    return value
