"""What a comparison's paths hold: loaded once to see what is wrong with it, and told by content from then on."""

import hashlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonpareil.commands.compare.spec import ComparisonSpec, MethodEntry
from nonpareil.commands.inputs import check_reward, load_prompts, load_reward, load_second_reward
from nonpareil.errors import ConfigError
from nonpareil.settings import settings_of
from nonpareil.user_code.load import is_function_path, load_function
from nonpareil.values.settings import CreditSettings

if TYPE_CHECKING:
    from nonpareil.commands.policies.local import LocalPolicy
    from nonpareil.rewards.combine import CombinedReward


@dataclass(frozen=True)
class Inputs:
    """The content behind the paths, so that what was made with other content is noticed."""

    model: str
    """The policy's fingerprint."""
    training: dict[str, Any]
    """Count and hashes of the training prompts, as a manifest of groups has them."""
    held_out: dict[str, Any]
    """The same of the prompts to evaluate on."""
    reward: dict[str, Any]
    """By name, fingerprints of weights and hashes of functions included; and the weights of the sum."""
    gold: dict[str, Any] | None


def read_inputs(spec: ComparisonSpec, credited: Mapping[str, Mapping[str, Any]]) -> Inputs:
    """Load tokenizer, prompts and rewards. `credited`: the settings, by name, of methods that make credits.

    Raises:
        NonpareilError: what cannot be loaded or cannot work, naming option, value and remedy.
    """
    from nonpareil.commands.policies.local import local_policy
    from nonpareil.records import SamplingParams, prompt_identity
    from nonpareil.training.tilted_start import check_tiltable

    options, pool = spec.options, spec.pool
    policy = local_policy(options)
    policy.check_drawable()
    for name, settings in credited.items():
        _check_candidates(policy, name, settings)
        if settings.get("tilted_start"):
            check_tiltable(policy.name_or_path, policy.config, trust_remote_code=policy.trust_remote_code)
    sampling = SamplingParams(options.max_completion_length, options.temperature)
    training, held_out = (
        load_prompts(options, policy, sampling, source=source, split=split, limit=limit, held_out=held_out)
        for source, split, limit, held_out in (
            (options.prompt_source, options.dataset_train_split, None, False),
            (spec.eval_source, spec.eval_split, options.max_eval_prompts, True),
        )
    )
    if pool and (pool.max_prompts or 0) > len(training):
        raise ConfigError(
            f"groups.max_prompts={pool.max_prompts}, but {options.prompt_source!r} has {len(training)} "
            "training prompts; lower it"
        )
    reward = load_reward(options, policy.tokenizer, training, options.max_completion_length)
    check_reward(reward, [*training, *held_out], options.max_completion_length, policy.tokenizer)
    gold = None
    if options.gold_reward:
        gold = load_second_reward("gold_reward", options.gold_reward, options, reward)
        check_reward(gold, held_out, options.max_completion_length, policy.tokenizer)
    return Inputs(
        model=policy.fingerprint,
        training=prompt_identity(training),
        held_out=prompt_identity(held_out),
        reward=_described(reward),
        gold=_described(gold) if gold else None,
    )


def _check_candidates(policy: "LocalPolicy", name: str, settings: Mapping[str, Any]) -> None:
    """Refuse, before the pool is drawn, what would be refused when credits are made of it."""
    from nonpareil.commands.credits import check_candidates

    given = {key: value for key, value in settings.items() if key in settings_of(CreditSettings)}
    try:
        check_candidates(policy, CreditSettings(**given))
    except ConfigError as error:
        raise ConfigError(f"methods.{name}: {error}") from error


def files_of(entry: MethodEntry) -> dict[str, str]:
    """Hashes of the user's own files that decide a run: an own method's, and those among a command's words."""
    if entry.command is not None:
        paths = {word: Path(word) for word in entry.command if Path(word).is_file()}
    elif is_function_path(entry.method):
        paths = {entry.method: Path(inspect.getfile(load_function(entry.method)))}
    else:
        return {}
    return {name: _sha256(path) for name, path in paths.items()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:  # a command may name a large one
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _described(reward: "CombinedReward") -> dict[str, Any]:
    """Its settings under each reward's name, so that a difference is told by it."""
    settings = reward.describe()
    return {"weights": settings["weights"], **{each["name"]: each for each in settings["rewards"]}}
