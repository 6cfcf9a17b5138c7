"""What every command begins with: its prompts, its rewards, and what nothing would read refused."""

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonpareil.errors import ConfigError, DataError
from nonpareil.options.rewards import (
    CACHE,
    RemoteRewardOptions,
    RewardInputOptions,
    RewardOptions,
    check_remote,
    specs_of,
)
from nonpareil.options.shared import PromptOptions
from nonpareil.records import Prompt
from nonpareil.text_files import read_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from nonpareil.rewards.combine import CombinedReward
    from nonpareil.rewards.judge.judge_reward import JudgeReward
if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer


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


def load_judge(options: RemoteRewardOptions, timeout: float | None) -> "list[JudgeReward]":
    """The judge, where one is named.

    Raises:
        ConfigError: a template that cannot be read or lacks its places, or as `JudgeReward`.
    """
    if options.judge_model is None:
        return []
    from nonpareil.remote import DEFAULT_KEY
    from nonpareil.rewards.judge.judge_reward import TEMPLATE, JudgeReward

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
    from nonpareil.rewards.skipped_tokens import special_tokens
    from nonpareil.rewards.specs import load_rewards

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
