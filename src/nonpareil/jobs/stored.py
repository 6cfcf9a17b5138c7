"""Groups on disk as training data: read, and compared with the policy, sampling and reward of this run."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonpareil.errors import ConfigError, DataError
from nonpareil.records import Group

if TYPE_CHECKING:
    from nonpareil.jobs.policy import PolicySource
    from nonpareil.rewards import CombinedReward
    from nonpareil.training.config import DistillationConfig


def load_groups(
    path: str,
    policy: "PolicySource",
    config: "DistillationConfig",
    reward: "CombinedReward",
    limit: int | None = None,
) -> list[Group]:
    """The first `limit` groups of a `nonpareil sample` folder, or of vBoN's JSON lines (cached rewards only).

    Raises:
        DataError: no such groups, or groups that cannot be read.
        ConfigError: groups drawn from another model than the reference, with other sampling settings, or scored
            with another reward: their log-probs or rewards would be silently wrong here.
    """
    source = Path(path)
    if source.suffix in (".json", ".jsonl"):
        return _with_token_ids(source, policy)[:limit]
    from nonpareil.rollouts.manifest import read_manifest
    from nonpareil.rollouts.store import read_groups

    manifest = read_manifest(source) if source.is_dir() else None
    if manifest is None:
        raise DataError(
            f"groups={path!r} has no manifest.json, so the model it was drawn from is unknown; give a folder "
            "written by `nonpareil sample`"
        )
    _check_origin(path, manifest, policy, config)
    _check_reward(path, manifest.get("rewards"), reward)
    return read_groups(source)[:limit]


def _with_token_ids(source: Path, policy: "PolicySource") -> list[Group]:
    """vBoN's groups have prompts as text only; the policy reads them as it reads any prompt."""
    from nonpareil.rollouts.prompts import tokenize_prompts
    from nonpareil.rollouts.vbon import read_vbon

    groups = read_vbon(source)
    prompts = tokenize_prompts([{"prompt": group.prompt} for group in groups], policy.tokenizer)
    return [replace(g, prompt_token_ids=p.token_ids) for g, p in zip(groups, prompts, strict=True)]


def _check_origin(
    path: str, manifest: dict[str, Any], policy: "PolicySource", config: "DistillationConfig"
) -> None:
    drawn = manifest["draw"]
    theirs, ours = drawn["model"].get("fingerprint"), policy.info()["fingerprint"]
    if theirs != ours:
        raise ConfigError(
            f"groups={path!r} was drawn from {drawn['model'].get('path')!r} ({theirs}), not from "
            f"model_name_or_path={policy.name_or_path!r} ({ours}); draw groups from the model that is trained"
        )
    asked = vars(config.sampling(0))
    for name, value in drawn["sampling"].items():
        if asked[name] != value:
            raise ConfigError(
                f"groups={path!r} was drawn with {name}={value}, and this run has {name}={asked[name]}; "
                "they must be equal"
            )


def _check_reward(path: str, stored: dict[str, Any] | None, reward: "CombinedReward") -> None:
    from nonpareil.files import jsonable

    if stored is None:
        raise DataError(f"groups={path!r} is not scored; score it with `nonpareil sample`")
    ours = jsonable(reward.describe())
    for key in ("rewards", "weights"):
        if stored.get(key) != ours[key]:
            raise ConfigError(
                f"groups={path!r} was scored with {key}={stored.get(key)}, and this run has {ours[key]}; score the "
                "groups anew with `nonpareil sample` (nothing is redrawn), or give the reward they have"
            )
