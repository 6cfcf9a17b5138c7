"""What every command begins with: the policy's prompts, then the rewards, each checked before anything is drawn.

A command makes its policy (`policies`), and then calls `load_prompts` for each of its sets of prompts,
`load_reward`, and `check_reward` with the prompts whose completions are to be scored.
"""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonpareil.commands.policies.base import Policy
from nonpareil.errors import ConfigError, DataError, ModelError
from nonpareil.in_memory import InMemory
from nonpareil.options.rewards import (
    CACHE,
    RewardOptions,
    check_remote,
    model_options,
    specs_of,
)
from nonpareil.options.shared import PromptOptions
from nonpareil.records import Prompt, SamplingParams
from nonpareil.settings import settings_of, values_of
from nonpareil.text_files import read_text
from nonpareil.training.settings.template import template_kwargs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from nonpareil.rewards.combine import CombinedReward
    from nonpareil.rewards.judge.judge_reward import JudgeReward


def require_all(options: Any, *, prompts_from_groups: bool = False, no_reward: str | None = None) -> None:
    """Policy, prompts and a reward, or a clear refusal before anything is loaded.

    `no_reward`: why none is named, where there is more to say; "" where none may be needed.

    Raises:
        ConfigError: naming the option that is missing.
    """
    if options.model_name_or_path is None:
        raise ConfigError("model_name_or_path is missing; name the policy")
    if options.prompt_source is None and not prompts_from_groups:
        raise ConfigError("dataset_name is missing; name a file or dataset of prompts")
    check_remote(options)
    if not specs_of(options) and options.judge_model is None and no_reward != "":
        raise ConfigError(
            no_reward
            or "no reward: give reward_model_name_or_path, reward_funcs, reward_endpoints, judge_model, or several"
        )


def load_prompts(
    options: PromptOptions,
    policy: Policy,
    sampling: SamplingParams,
    *,
    source: str | None,
    split: str,
    limit: int | None,
    held_out: bool = False,
    now: datetime | None = None,
) -> list[Prompt]:
    """One set of prompts, checked, and tokenised as the policy sees them (as text, where it has no tokenizer).

    Args:
        options: how any set of prompts is read.
        policy: what draws from them.
        sampling: with which settings.
        source: a file, folder or dataset; an option's `prompt_source`, or `eval_dataset_name`.
        split: of a dataset that has splits.
        limit: the first ones only.
        held_out: those that `test_split_size` holds out, where it is given; else the others.
        now: what a chat template that writes the date takes for now.

    Raises:
        DataError: no such source, no such column, or a prompt that cannot be drawn from.
        ConfigError: settings that cannot be, or that the policy does not take.
    """
    from nonpareil.rollouts import prompts

    if isinstance(source, InMemory) and len(source.value) and isinstance(source.value[0], Prompt):
        return _read_already(options, source.value[:limit], policy, sampling)
    try:
        rows = prompts.load_prompts(
            source or "",
            split=split,
            prompt_column=options.prompt_column,
            dataset_config=options.dataset_config,
            limit=limit,
            streaming=options.dataset_streaming,
            test_split_size=options.test_split_size,
            held_out=held_out,
        )
    except DataError as error:
        given, message = "eval_dataset_name", str(error)
        if source != getattr(options, given, None) or not message.startswith("dataset_name="):
            raise
        raise DataError(given + message.removeprefix("dataset_name")) from error
    found = prompts.tokenize_prompts(
        rows, policy.tokenizer, template_kwargs(options.chat_template_kwargs), now=now
    )
    policy.check(found, sampling)
    return found


def _read_already(
    options: PromptOptions, prompts: Sequence[Prompt], policy: Policy, sampling: SamplingParams
) -> list[Prompt]:
    """A trainer's prompts, which its policy has read.

    Raises:
        ConfigError: an option that says how rows are read.
        DataError: as `load_prompts`.
    """
    for name, value in values_of(options, PromptOptions).items():
        if name != "dataset_name" and value != settings_of(PromptOptions)[name].default:
            raise ConfigError(
                f"{name}={value!r} is not read: the prompts are those of the trainer, tokenised already; remove "
                "it, or give rows (dataset_name)"
            )
    policy.check(prompts, sampling)
    return list(prompts)


def load_reward(
    options: RewardOptions,
    tokenizer: "Tokenizer | None",
    prompts: Sequence[Prompt] = (),
    max_completion_length: int = 1,
) -> "CombinedReward":
    """The rewards of the options: the model first, then functions, endpoints and the judge.

    `tokenizer` is the policy's; None where it is only known to a server. Functions and verifiers that cannot score
    completions of these prompts are refused before a model is read.

    Raises:
        ConfigError: one that cannot be loaded, or special tokens to skip of a policy without a tokenizer here.
        ModelError: a model that is no reward model.
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
        [*specs_of(options), *_judge(options)],
        weights=options.reward_weights,
        timeout=options.reward_timeout,
        api_key_env=options.reward_api_key_env,
        skipped_tokens=special_tokens(tokenizer) if skips else (),
        check=(lambda reward: reward.check_prompts(prompts, max_completion_length, tokenizer))
        if prompts
        else None,
        **model_options(options),
    )


def load_second_reward(
    option: str, spec: str, options: RewardOptions, first: "CombinedReward"
) -> "CombinedReward":
    """The reward that an option names beside the `first`: policies are measured by it, and not trained on it.

    Raises:
        ConfigError, ModelError: naming the option; it cannot be loaded, or has the first reward's name.
    """
    from nonpareil.rewards.specs import load_rewards

    try:
        second = load_rewards(
            spec,
            timeout=options.reward_timeout,
            api_key_env=options.reward_api_key_env,
            skipped_tokens=first.skipped_tokens,
            **model_options(options, second=True),
        )
    except (ConfigError, ModelError) as error:  # which know the value alone
        raise type(error)(f"{option}={spec!r}: {error}") from error
    for name in second.names:
        if name in first.names:
            raise ConfigError(
                f"{option}={spec!r}: its name {name!r} is also the reward's, and one column would hold both; "
                "rename the function or the folder"
            )
    return second


def check_reward(
    reward: "CombinedReward",
    prompts: Sequence[Prompt],
    max_completion_length: int,
    tokenizer: "Tokenizer | None",
    errors_in: str | Path | None = None,
) -> None:
    """Refuse a reward that cannot score completions of the prompts; then let it go, until it is asked to score.

    Args:
        reward: loaded.
        prompts: whose completions it will score.
        max_completion_length: their most tokens.
        tokenizer: the policy's; None where it is only known to a server.
        errors_in: the folder that keeps the details of its failures.

    Raises:
        NonpareilError: naming what does not fit.
    """
    reward.check_prompts(prompts, max_completion_length, tokenizer)
    if errors_in is not None:
        reward.log_errors_to(Path(errors_in))
    reward.release()  # so that it is in memory while it scores, and never beside the policy's model


def _judge(options: RewardOptions) -> "list[JudgeReward]":
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
            chat_template_kwargs=options.judge_chat_template_kwargs,
            max_calls=options.judge_max_calls,
            cache=options.judge_cache or CACHE,
            api_key_env=options.judge_api_key_env or DEFAULT_KEY,
            timeout=options.reward_timeout,
        )
    ]
