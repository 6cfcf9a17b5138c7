"""Prompts and sampling settings that no engine could draw from: refused before any compute."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

from nonpareil.errors import ConfigError, DataError
from nonpareil.records import Prompt, SamplingParams
from nonpareil.setting_types import check_value
from nonpareil.settings import check_settings


def check_prompts(prompts: Sequence[Prompt], max_completion_length: int, window: int | None) -> None:
    """Refuse, before any compute, prompts that the model cannot answer in full.

    Raises:
        DataError: an empty prompt, or prompt + max_completion_length longer than the window.
    """
    for prompt in prompts:
        if not prompt.token_ids:
            raise DataError(
                f"prompt {prompt.prompt_id} is empty: no token to start from; remove it or give the "
                "tokenizer a beginning-of-text token"
            )
        needed = len(prompt.token_ids) + max_completion_length
        if window is not None and needed > window:
            raise DataError(
                f"prompt {prompt.prompt_id} has {len(prompt.token_ids)} tokens; with max_completion_length="
                f"{max_completion_length} that is {needed}, over the model's window of {window}; "
                "drop or shorten the prompt, or lower max_completion_length"
            )


def check_token_ids(prompts: Sequence[Prompt], vocabulary: int | None, model: str) -> None:
    """Refuse token ids that the model has no embedding for; `vocabulary` is how many it has, None where unknown.

    A tokenizer may know more tokens than the model, as long as no prompt has one.

    Raises:
        DataError: naming the prompt, the id and the model.
    """
    for prompt in prompts:
        for token in prompt.token_ids:
            if not isinstance(token, Integral):
                raise DataError(
                    f"prompt {prompt.prompt_id} has token id {token!r}, a {type(token).__name__}; "
                    "ids are whole numbers"
                )
            if token < 0 or (vocabulary is not None and token >= vocabulary):
                raise DataError(
                    f"prompt {prompt.prompt_id} has token id {token}, and {model} has token embeddings 0 to "
                    f"{vocabulary - 1 if vocabulary else '...'}: the tokenizer is not this model's, or got tokens "
                    "that the model was not resized for (model.resize_token_embeddings)"
                )


def check_sampling(sampling: SamplingParams) -> None:
    """Refuse sampling parameters out of range, naming the field.

    Raises:
        ConfigError: with the field, its value and the range.
    """
    check_value("sampling", sampling, SamplingParams)
    check_settings(sampling)
    check_stop(sampling.stop)


def check_stop(stop: Sequence[Any]) -> None:
    """Refuse what is no text, or an empty one: spaces and line ends are some.

    Raises:
        ConfigError: naming it.
    """
    for text in stop:
        if not isinstance(text, str) or not text:
            raise ConfigError(f"stop={list(stop)!r}: {text!r} is no text that could end a completion")


def refuse_changed_draws(sampling: SamplingParams, why: str) -> None:
    """Refuse stop strings and a penalty on repetitions, for what cannot take them.

    Raises:
        ConfigError: naming the setting, with the reason.
    """
    if sampling.stop:
        raise ConfigError(f"stop={list(sampling.stop)!r}: {why}; remove it")
    if sampling.repetition_penalty != 1:
        raise ConfigError(f"repetition_penalty={sampling.repetition_penalty}: {why}; remove it")
