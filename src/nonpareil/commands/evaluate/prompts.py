"""The held-out prompts of an evaluation: both models must read and end them alike, or a KL compares nothing."""

from collections.abc import Sequence
from datetime import datetime

from nonpareil.commands.inputs import load_prompts
from nonpareil.commands.policies.local import LocalPolicy
from nonpareil.errors import ConfigError
from nonpareil.models.endings import shown
from nonpareil.options.evaluate import EvaluateOptions
from nonpareil.records import Prompt


def prompts_of_both(options: EvaluateOptions, policy: LocalPolicy, reference: LocalPolicy) -> list[Prompt]:
    """The prompts, which policy and reference read as the same tokens; what cannot be drawn or compared is refused.

    Raises:
        NonpareilError: a model or a prompt that cannot be drawn from, or two models that read or end otherwise.
    """
    for side in (policy, reference):
        side.check_drawable()
    now = datetime.now()  # for both: a chat template may write it
    ours, theirs = (
        load_prompts(
            options,
            side,
            options.sampling(),
            source=options.prompt_source,
            split=options.dataset_split,
            limit=options.max_prompts,
            held_out=True,
            now=now,
        )
        for side in (policy, reference)
    )
    _check_same_tokens(options, ours, theirs)
    _check_same_endings(policy, reference)
    return theirs


def _check_same_tokens(options: EvaluateOptions, ours: Sequence[Prompt], theirs: Sequence[Prompt]) -> None:
    """The KL compares token by token."""
    for mine, other in zip(ours, theirs, strict=True):
        if mine.token_ids != other.token_ids:
            raise ConfigError(
                f"model_name_or_path={options.model_name_or_path!r} and reference_model_name_or_path="
                f"{options.reference_model_name_or_path!r} tokenise prompt {mine.prompt_id} differently; "
                "a KL between them needs one tokenizer"
            )


def _check_same_endings(policy: LocalPolicy, reference: LocalPolicy) -> None:
    """Completions that end elsewhere are of another task; where they do, checking the prompts has told."""
    ours, theirs = (side.endings.ids if side.endings else frozenset() for side in (policy, reference))
    if ours != theirs:
        one, other = shown(ours, policy.tokenizer), shown(theirs, reference.tokenizer)
        raise ConfigError(
            f"model_name_or_path={policy.name_or_path!r} ends a completion with {one}, and "
            f"reference_model_name_or_path={reference.name_or_path!r} with {other}: lengths, rewards and KL would "
            "compare two tasks; give both the same eos_token_id in generation_config.json"
        )
