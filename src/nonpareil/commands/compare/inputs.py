"""What a comparison's paths hold: loaded once to see what is wrong with it, and told by content from then on."""

import hashlib
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonpareil.commands.compare.spec import ComparisonSpec, MethodEntry
from nonpareil.commands.inputs import check_reward, load_prompts, load_reward, load_second_reward
from nonpareil.errors import ConfigError
from nonpareil.user_code.load import is_function_path, load_function

if TYPE_CHECKING:
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


def read_inputs(spec: ComparisonSpec, *, tilted: bool = False) -> Inputs:
    """Load tokenizer, prompts and rewards; `tilted`: some runs begin tilted, which the policy must allow.

    Raises:
        NonpareilError: what cannot be loaded or cannot work, naming option, value and remedy.
    """
    from nonpareil.commands.policies.local import local_policy
    from nonpareil.records import SamplingParams, prompt_identity
    from nonpareil.training.tilted_start import check_tiltable

    options, pool = spec.options, spec.pool
    policy = local_policy(options)
    policy.check_drawable()
    if tilted:
        check_tiltable(policy.name_or_path, policy.config, trust_remote_code=policy.trust_remote_code)
    sampling = SamplingParams(options.max_completion_length, options.temperature)
    training, held_out = (
        load_prompts(options, policy, sampling, source=source, split=split, limit=limit)
        for source, split, limit in (
            (options.dataset_name, options.dataset_train_split, None),
            (spec.eval_source, options.dataset_test_split, options.max_eval_prompts),
        )
    )
    if pool and (pool.max_prompts or 0) > len(training):
        raise ConfigError(
            f"groups.max_prompts={pool.max_prompts}, but {options.dataset_name!r} has {len(training)} "
            "training prompts; lower it"
        )
    reward = load_reward(options, policy.tokenizer)
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
