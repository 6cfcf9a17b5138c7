"""Groups on disk as training data: read, and compared with the policy, sampling and reward of this run."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from nonpareil.errors import ConfigError, DataError
from nonpareil.records import Group, Prompt, prompt_of
from nonpareil.settings import differing
from nonpareil.terminal import printable, tell
from nonpareil.training.settings.drawing import refuse_changed_groups, refuse_cut_groups

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from nonpareil.credits import CreditsByPrompt
    from nonpareil.methods.base import Method
    from nonpareil.models.endings import Endings
    from nonpareil.rewards.combine import CombinedReward
    from nonpareil.training.config import DistillationConfig


class KnownPolicy(Protocol):
    """A policy that is known by its path and not loaded yet."""

    name_or_path: str
    tokenizer: "Tokenizer"

    @property
    def config(self) -> Any:
        """The model's configuration; of an adapter its base's."""

    def info(self) -> dict[str, Any]:
        """Its path and fingerprint."""

    def endings_of(self, prompts: Sequence[Prompt]) -> "Endings":
        """Where a completion of these prompts ends."""


def load_groups(
    path: str,
    policy: KnownPolicy,
    config: "DistillationConfig",
    method: "Method",
    limit: int | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    credits: "CreditsByPrompt | None" = None,
) -> list[Group]:
    """The first `limit` groups of a `nonpareil sample` folder, or of vBoN's JSON lines, prompts as token ids.

    Those lines, and groups drawn from a server, are taken for their rewards alone: whose they are is unknown.
    `credits`: of their completions, for a method that reads them.

    Raises:
        DataError: no such groups, or groups that cannot be read or that the method cannot be trained on.
        ConfigError: groups drawn from another model than the reference, or with other sampling settings or
            arguments of the chat template: their log-probs would be silently wrong here.
    """
    from nonpareil.models.loading import stated_limits
    from nonpareil.rollouts.reading import read_groups
    from nonpareil.rollouts.vbon_lines import is_vbon
    from nonpareil.training.stored import check_stored
    from nonpareil.training.stored_credits import check_candidate_ids

    source, kwargs = Path(path), dict(chat_template_kwargs or {})
    manifest = None if is_vbon(source) else manifest_of(source)
    if manifest is not None:
        _check_origin(path, manifest, policy, config, method)
    groups = read_groups(source)
    if not all(group.prompt_token_ids for group in groups):
        groups = _with_token_ids(groups, policy, kwargs)
    elif manifest is not None:
        _check_rendering(path, manifest, policy, groups, kwargs)
        groups = _with_openings(groups, policy, kwargs)
    check_stored(groups[:limit], method, credits)
    if credits is not None:
        check_candidate_ids(groups[:limit], credits, stated_limits(policy.config)[1])
    return groups[:limit]


def check_stored_rewards(path: str, reward: "CombinedReward") -> None:
    """Refuse groups on disk whose rewards are another's; vBoN's JSON lines do not say whose theirs are.

    Raises:
        ConfigError: the first setting of the reward that differs.
    """
    from nonpareil.files import jsonable
    from nonpareil.rollouts.manifest import read_manifest

    stored = (read_manifest(Path(path)) or {}).get("rewards")
    if stored is None:
        return
    for key, (theirs, ours) in differing_rewards(stored, jsonable(reward.describe())).items():
        raise ConfigError(
            f"groups={path!r} was scored with {key}={theirs!r}, and this run has {ours!r}; "
            "score the groups anew with `nonpareil sample` (nothing is redrawn), or give the reward they have"
        )


def differing_rewards(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The settings by which two rewards differ, as manifests describe them, with both values."""
    from nonpareil.models.first_fingerprint import renewed

    return differing(reward_settings(renewed(there, here)), reward_settings(here))


def manifest_of(source: Path) -> dict[str, Any]:
    """The manifest of a folder of groups, without which nobody knows whose they are.

    Raises:
        DataError: there is none.
    """
    from nonpareil.rollouts.manifest import read_manifest

    manifest = read_manifest(source) if source.is_dir() else None
    if manifest is None:
        raise DataError(
            f"groups={str(source)!r} has no manifest.json, so the model it was drawn from is unknown; give a "
            "folder written by `nonpareil sample`"
        )
    return manifest


def is_served(manifest: Mapping[str, Any]) -> bool:
    """Whether the groups were drawn from a server, whose weights are as unknown as those of vBoN's lines."""
    return manifest["draw"].get("engine", {}).get("engine") == "openai"


def _check_origin(
    path: str,
    manifest: Mapping[str, Any],
    policy: KnownPolicy,
    config: "DistillationConfig",
    method: "Method",
) -> None:
    """The groups must be drawn from this policy, at this run's sampling settings.

    Of a server's groups nobody knows the policy, so that a method can have their rewards alone.

    Raises:
        ConfigError, DataError: naming what differs, or is not known.
    """
    if is_served(manifest) and method.policy_draws == 0:
        raise DataError(
            f"groups={path!r} was drawn from a server, so nobody can say that its model is model_name_or_path="
            f"{policy.name_or_path!r}, and {type(method).__name__} trains on the completions; draw groups with "
            "engine=transformers, take a method that needs their rewards alone (vbon), or have `nonpareil serve` "
            "keep them with groups_model, which says whose they are"
        )
    check_drawn_from(path, manifest, policy)
    refuse_cut_groups(path, sampling := manifest["draw"]["sampling"])
    _tell_dtype(path, manifest["draw"]["model"].get("dtype"), config)
    asked = vars(config.sampling(0))
    for name, (there, now) in differing(sampling, {name: asked[name] for name in sampling}).items():
        raise ConfigError(
            f"groups={path!r} was drawn with {name}={there}, and this run has {name}={now}; they must be equal"
        )


def check_drawn_from(
    path: str, manifest: Mapping[str, Any], policy: KnownPolicy, wanted: str = "the model that is trained"
) -> None:
    """Refuse groups of another model, or of this one guided or interpolated; whose a server's are is unknown.

    `wanted`: the model that they are to be drawn from, in words.

    Raises:
        ConfigError: naming both.
    """
    from nonpareil.models.first_fingerprint import renewed

    drawn, here = manifest["draw"], policy.info()
    refuse_changed_groups(path, drawn["sampling"])
    theirs, ours = renewed(drawn["model"], here).get("fingerprint"), here["fingerprint"]
    if theirs != ours and not is_served(manifest):
        raise ConfigError(
            f"groups={path!r} was drawn from {drawn['model'].get('path')!r} ({theirs}), not from "
            f"model_name_or_path={policy.name_or_path!r} ({ours}); draw groups from {wanted}"
        )
    if tilted := [name for name in ("guidance", "strength") if name in drawn["model"]]:
        raise ConfigError(
            f"groups={path!r} was drawn from model_name_or_path={policy.name_or_path!r} with a {tilted[0]} of its "
            f"own (manifest.json, draw.model), which is another policy; draw groups from {wanted}"
        )


def _check_rendering(
    path: str,
    manifest: Mapping[str, Any],
    policy: KnownPolicy,
    groups: list[Group],
    kwargs: Mapping[str, Any],
) -> None:
    """Stored token ids must be what the policy would read now, and its completions end where they did."""
    from nonpareil.rollouts.rendering import check_template_kwargs

    check_template_kwargs(kwargs, policy.tokenizer, chats=any(isinstance(g.prompt, list) for g in groups))
    rendering = manifest["draw"]["prompts"].get("rendering")
    drawn_with = rendering["chat_template_kwargs"] if isinstance(rendering, dict) else kwargs
    if drawn_with != kwargs:
        raise ConfigError(
            f"groups={path!r} was drawn with chat_template_kwargs={drawn_with!r}, and this run has {kwargs!r}; "
            "they must be equal"
        )
    if not is_served(manifest):
        check_endings(path, manifest["draw"]["model"], policy, groups)


def check_endings(path: str, drawn: dict[str, Any], policy: KnownPolicy, groups: list[Group]) -> None:
    """Completions must have ended where the policy's do. Earlier versions do not say where; the ids themselves do.

    Raises:
        ConfigError: naming both sets of ids, or a prompt whose completion goes on behind one.
    """
    there = drawn.get("end_token_ids")
    here = policy.endings_of([prompt_of(group) for group in groups[:1]]).ids
    if there is not None and there != sorted(here):
        raise ConfigError(
            f"groups={path!r} was drawn with completions that end with the ids {there!r}, and those of "
            f"model_name_or_path={policy.name_or_path!r} end with {sorted(here)!r}; draw the groups anew, or put "
            "back eos_token_id in its generation_config.json"
        )
    for group in groups:
        for ids in group.completion_token_ids:
            if behind := here.intersection(ids[:-1]):
                raise ConfigError(
                    f"groups={path!r}: a completion of prompt {group.prompt_id} goes on behind the id "
                    f"{min(behind)}, with which one of model_name_or_path={policy.name_or_path!r} ends; draw the "
                    "groups anew"
                )


def _with_token_ids(groups: list[Group], policy: KnownPolicy, kwargs: dict[str, Any]) -> list[Group]:
    """Groups of prompts as text only (vBoN's, a server's); the policy reads them as it reads any prompt."""
    from nonpareil.rollouts.prompts import tokenize_prompts

    rows = [{**group.columns, "prompt": group.prompt} for group in groups]
    prompts = tokenize_prompts(rows, policy.tokenizer, kwargs)
    pairs = zip(groups, prompts, strict=True)
    return [replace(g, prompt_token_ids=p.token_ids, opening=p.opening) for g, p in pairs]


def _with_openings(groups: list[Group], policy: KnownPolicy, kwargs: dict[str, Any]) -> list[Group]:
    """Groups of conversations with what their prompts write of the answer; folders of earlier versions lack it."""
    from nonpareil.rollouts.openings import Openings

    if not any(isinstance(g.prompt, list) and g.opening is None for g in groups):
        return groups
    openings = Openings(policy.tokenizer, kwargs)
    return [
        replace(g, opening=openings.of(g.prompt)) if isinstance(g.prompt, list) and g.opening is None else g
        for g in groups
    ]


def _tell_dtype(path: str, drawn_in: str | None, config: "DistillationConfig") -> None:
    """Say so where the groups' log-probs are not of the weights that this training computes with."""
    import torch

    from nonpareil.models.devices import dtype_name

    computes = dtype_name(config.compute_dtype(torch.float32))
    if drawn_in not in (None, computes):
        there = printable(str(drawn_in))
        tell(
            f"groups={path!r} was drawn in {there}, and this training computes in {computes}: the log-probs of its "
            f"completions are those of {there} weights. For one dtype, draw with --dtype {computes}, or set bf16"
        )


def reward_settings(described: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides the rewards, names first; a path is only a label where the weights have a fingerprint.

    How long a call may take decides none: what took longer has no reward.
    """
    settings = {"rewards": [one["name"] for one in described["rewards"]], "weights": described["weights"]}
    for one in described["rewards"]:
        unread = ("timeout", "path") if one.get("fingerprint") else ("timeout",)
        settings |= {f"{one['name']}.{key}": value for key, value in one.items() if key not in unread}
    return settings
