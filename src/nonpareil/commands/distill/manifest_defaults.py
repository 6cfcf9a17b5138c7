"""What a manifest of stored groups says in place of options that were not given: how they were drawn and scored."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from nonpareil.assets import demo_path
from nonpareil.errors import DataError
from nonpareil.options.rewards import RemoteRewardOptions, RewardOptions
from nonpareil.settings import settings_of
from nonpareil.terminal import printable, tell

FROM_SAMPLING = ("max_completion_length", "temperature")
"""What training may have otherwise than by default; it draws from the whole vocabulary alone."""
NAMES = ("reward_model_name_or_path", "reward_funcs", "reward_endpoints", "judge_model")
"""Options each of which names rewards."""


def manifest_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults that stored groups bring along, from what was given; empty where none are named or known.

    Policy, length, temperature, arguments of the chat template, and the rewards, unless any reward was named: None
    where those cannot be named here (`why_not_named`). What was given stands as it is, and is held against the
    groups later.
    """
    named = given.get("groups")
    manifest = None if not isinstance(named, str) else manifest_there(Path(named).expanduser())
    if manifest is None:
        return {}
    draw = manifest["draw"]
    found = {name: draw["sampling"][name] for name in FROM_SAMPLING if name in draw.get("sampling", {})}
    rendering = draw.get("prompts", {}).get("rendering")
    if isinstance(rendering, dict) and rendering.get("chat_template_kwargs"):
        found["chat_template_kwargs"] = rendering["chat_template_kwargs"]
    if (policy := _policy(draw)) is not None:
        found["model_name_or_path"] = policy
    if not any(given.get(name) for name in NAMES):
        unnamed = why_not_named(str(named)) is not None
        found |= {"reward_model_name_or_path": None} if unnamed else _asked(manifest)
    taken = {name: value for name, value in found.items() if name not in given}
    if told := {name: value for name, value in taken.items() if value is not None}:
        words = ", ".join(f"{name}={value!r}" for name, value in told.items())
        tell(f"from the manifest of groups={str(named)!r}: {printable(words)}")
    return taken


def drawn_from_demo(found: Mapping[str, Any]) -> bool:
    """Whether policy and rewards are those of the embedded demo, as far as these defaults name any."""
    named = {name: found[name] for name in NAMES if name in found}
    policy, unnamed = found.get("model_name_or_path"), found.get("reward_model_name_or_path", "") is None
    reward = named.pop("reward_model_name_or_path", None)
    return (
        not (named or unnamed)
        and (policy is None or _is_demo(policy, "policy"))
        and (reward is None or _is_demo(reward, "reward"))
    )


def manifest_there(folder: Path) -> dict[str, Any] | None:
    """None where there is none that can be read: whoever reads the groups says why."""
    from nonpareil.rollouts.manifest import read_manifest

    try:
        return read_manifest(folder)
    except DataError:
        return None


def _policy(draw: Mapping[str, Any]) -> str | None:
    """Where the policy lies, if it lies there still and is no server's."""
    path = draw.get("model", {}).get("path")
    if not isinstance(path, str) or draw.get("engine", {}).get("engine") == "openai":
        return None
    return path if Path(path).is_dir() else None


def _is_demo(path: str, part: Literal["policy", "reward"]) -> bool:
    return Path(path).is_dir() and Path(path).samefile(demo_path(part))


def _asked(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The options that named the rewards when the groups were scored."""
    known = settings_of(RewardOptions)
    return {name: value for name, value in manifest.get("reward_options", {}).items() if name in known}


def why_not_named(groups: str) -> str | None:
    """Why the rewards of a folder of groups cannot be named here; None where they can, or none is known."""
    manifest = manifest_there(Path(groups).expanduser())
    asked = {} if manifest is None else _asked(manifest)
    remote = settings_of(RemoteRewardOptions)
    if served := {name: value for name, value in asked.items() if name in remote}:
        words = ", ".join(f"{name}={value!r}" for name, value in served.items())
        return (
            f"no reward: groups={groups!r} was scored with {printable(words)}, and no manifest keeps the "
            "address of a server; give the rewards again, as they were"
        )
    for spec in [asked.get("reward_model_name_or_path"), *(asked.get("reward_funcs") or [])]:
        if spec is not None and (gone := _gone(str(spec))):
            return (
                f"no reward: groups={groups!r} was scored with {printable(str(spec))!r}, and {gone} is not there; "
                "give the rewards again (reward_model_name_or_path, reward_funcs), as they were"
            )
    return None


def _gone(spec: str) -> str | None:
    """The file or folder that a reward's spec names and that is not there; other names are no paths."""
    file = Path(spec.rpartition(":")[0] if ".py:" in spec else spec)
    return str(file) if file.is_absolute() and not file.exists() else None
