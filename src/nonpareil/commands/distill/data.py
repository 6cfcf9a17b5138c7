"""Groups on disk as training data: read, and compared with the policy, sampling and reward of this run."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonpareil.commands.inputs import load_prompt_records, load_reward, template_kwargs
from nonpareil.errors import ConfigError, DataError
from nonpareil.options.commands import DistillOptions
from nonpareil.records import Group, Prompt, prompt_of
from nonpareil.terminal import printable, tell

if TYPE_CHECKING:
    from nonpareil.commands.policies.local import LocalPolicy
    from nonpareil.rewards.combine import CombinedReward
    from nonpareil.training.config import DistillationConfig

if TYPE_CHECKING:
    from nonpareil.commands.policies.local import LocalPolicy
    from nonpareil.methods.base import Method
    from nonpareil.training.config import DistillationConfig

if TYPE_CHECKING:
    from nonpareil.commands.policies.local import LocalPolicy
    from nonpareil.methods.base import Method
    from nonpareil.rewards.combine import CombinedReward
    from nonpareil.training.config import DistillationConfig


def load_groups(
    path: str,
    policy: "LocalPolicy",
    config: "DistillationConfig",
    method: "Method",
    limit: int | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[Group]:
    """The first `limit` groups of a `nonpareil sample` folder, or of vBoN's JSON lines.

    Those lines, and groups drawn from a server, are taken for their rewards alone: whose they are is unknown.

    Raises:
        DataError: no such groups, or groups that cannot be read or that the method cannot be trained on.
        ConfigError: groups drawn from another model than the reference, or with other sampling settings or
            arguments of the chat template: their log-probs would be silently wrong here.
    """
    from nonpareil.training.stored import check_stored

    source, kwargs = Path(path), dict(chat_template_kwargs or {})
    is_file = source.suffix in (".json", ".jsonl")
    if is_file:
        from nonpareil.rollouts.vbon_lines import read_vbon

        groups = _with_token_ids(read_vbon(source), policy, kwargs)
    else:
        groups = _read_folder(source, policy, config, method, kwargs)
    check_stored(groups[:limit], method)
    return groups[:limit]


def check_reward(path: str, reward: "CombinedReward") -> None:
    """Refuse groups on disk whose rewards are another's; vBoN's JSON lines do not say whose theirs are.

    Raises:
        ConfigError: the first setting of the reward that differs.
    """
    from nonpareil.files import jsonable
    from nonpareil.models.first_fingerprint import renewed
    from nonpareil.rollouts.manifest import read_manifest

    stored = (read_manifest(Path(path)) or {}).get("rewards")
    if stored is None:
        return
    described = jsonable(reward.describe())
    there, here = _reward_settings(renewed(stored, described)), _reward_settings(described)
    for key in dict.fromkeys((*there, *here)):
        if there.get(key) != here.get(key):
            raise ConfigError(
                f"groups={path!r} was scored with {key}={there.get(key)!r}, and this run has {here.get(key)!r}; "
                "score the groups anew with `nonpareil sample` (nothing is redrawn), or give the reward they have"
            )


def _read_folder(
    source: Path,
    policy: "LocalPolicy",
    config: "DistillationConfig",
    method: "Method",
    kwargs: dict[str, Any],
) -> list[Group]:
    from nonpareil.rollouts.manifest import read_manifest
    from nonpareil.rollouts.reading import read_groups
    from nonpareil.rollouts.rendering import check_template_kwargs

    path = str(source)
    manifest = read_manifest(source) if source.is_dir() else None
    if manifest is None:
        raise DataError(
            f"groups={path!r} has no manifest.json, so the model it was drawn from is unknown; give a folder "
            "written by `nonpareil sample`"
        )
    served = manifest["draw"].get("engine", {}).get("engine") == "openai"
    if served and method.policy_draws == 0:
        raise DataError(
            f"groups={path!r} was drawn from a server, so nobody can say that its model is model_name_or_path="
            f"{policy.name_or_path!r}, and {type(method).__name__} trains on the completions; draw groups with "
            "engine=transformers, or take a method that needs their rewards alone (vbon)"
        )
    _check_origin(path, manifest, policy, config, served=served)
    groups = read_groups(source)
    if not all(group.prompt_token_ids for group in groups):
        return _with_token_ids(groups, policy, kwargs)
    check_template_kwargs(kwargs, policy.tokenizer, chats=any(isinstance(g.prompt, list) for g in groups))
    rendering = manifest["draw"]["prompts"].get("rendering")
    drawn_with = rendering["chat_template_kwargs"] if isinstance(rendering, dict) else kwargs
    if drawn_with != kwargs:
        raise ConfigError(
            f"groups={path!r} was drawn with chat_template_kwargs={drawn_with!r}, and this run has {kwargs!r}; "
            "they must be equal"
        )
    if not served:
        _check_endings(path, manifest["draw"]["model"], policy, groups)
    return groups


def _check_endings(path: str, drawn: dict[str, Any], policy: "LocalPolicy", groups: list[Group]) -> None:
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


def _with_token_ids(groups: list[Group], policy: "LocalPolicy", kwargs: dict[str, Any]) -> list[Group]:
    """Groups of prompts as text only (vBoN's, a server's); the policy reads them as it reads any prompt."""
    from nonpareil.rollouts.prompts import tokenize_prompts

    prompts = tokenize_prompts([{"prompt": group.prompt} for group in groups], policy.tokenizer, kwargs)
    return [replace(g, prompt_token_ids=p.token_ids) for g, p in zip(groups, prompts, strict=True)]


def _check_origin(
    path: str, manifest: dict[str, Any], policy: "LocalPolicy", config: "DistillationConfig", *, served: bool
) -> None:
    from nonpareil.models.first_fingerprint import renewed

    drawn = manifest["draw"]
    here = policy.info()
    theirs, ours = renewed(drawn["model"], here).get("fingerprint"), here["fingerprint"]
    if theirs != ours and not served:  # a server's weights are as unknown as those of vBoN's lines
        raise ConfigError(
            f"groups={path!r} was drawn from {drawn['model'].get('path')!r} ({theirs}), not from "
            f"model_name_or_path={policy.name_or_path!r} ({ours}); draw groups from the model that is trained"
        )
    _tell_dtype(path, drawn["model"].get("dtype"), config)
    asked = vars(config.sampling(0))
    for name, value in drawn["sampling"].items():
        if asked[name] != value:
            raise ConfigError(
                f"groups={path!r} was drawn with {name}={value}, and this run has {name}={asked[name]}; "
                "they must be equal"
            )


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


def _reward_settings(described: dict[str, Any]) -> dict[str, Any]:
    """All that decides the rewards, names first; a path is only a label where the weights have a fingerprint."""
    settings = {"rewards": [one["name"] for one in described["rewards"]], "weights": described["weights"]}
    for one in described["rewards"]:
        label = "path" if one.get("fingerprint") else None
        settings |= {f"{one['name']}.{key}": value for key, value in one.items() if key != label}
    return settings


def eval_source_of(options: DistillOptions) -> str:
    """Where held-out prompts come from; never the training prompts by default."""
    train = options.dataset_name or ""
    if not train and options.eval_dataset_name is None and options.evaluate_after:
        raise ConfigError(
            "eval_dataset_name is missing: groups hold training prompts only; give held-out prompts, or "
            "evaluate_after=false"
        )
    if options.eval_dataset_name is None and options.evaluate_after and Path(train).is_file():
        raise ConfigError(
            f"dataset_name={train!r} is one file, without a test split, and evaluation needs held-out prompts; "
            "give eval_dataset_name, or evaluate_after=false"
        )
    return options.eval_dataset_name or train


def training_data(
    options: DistillOptions, config: "DistillationConfig", method: "Method", policy: "LocalPolicy"
) -> "tuple[list[Group] | None, list[Prompt]]":
    """The stored groups, where there are some, and the prompts; what cannot work is refused here."""
    from nonpareil.commands.distill.data import load_groups

    groups = None
    if options.groups is not None:
        kwargs = template_kwargs(options)
        groups = load_groups(options.groups, policy, config, method, options.max_train_prompts, kwargs)
        prompts = [prompt_of(group) for group in groups]
    else:
        prompts = _prompts(options, policy, options.dataset_name or "", options.dataset_train_split)
    policy.check(prompts, config.sampling(config.seed))
    return groups, prompts


def _prompts(
    options: DistillOptions, policy: "LocalPolicy", source: str, split: str, held_out: bool = False
) -> list[Prompt]:
    limit = options.max_eval_prompts if held_out else options.max_train_prompts
    return load_prompt_records(options, policy.tokenizer, source=source, split=split, limit=limit)


def trained_policy(options: DistillOptions, config: "DistillationConfig", dtype: str) -> "LocalPolicy":
    """The policy to train, by its path; checked for being drawable where it is drawn from in this process."""
    from nonpareil.commands.policies.local import LocalPolicy

    name, revision = options.model_name_or_path or "", options.model_revision
    policy = LocalPolicy(name, revision, dtype, trust_remote_code=config.trust_remote_code)
    if options.evaluate_after or not (options.groups or config.use_vllm):
        policy.check_drawable()
    return policy


def training_reward(
    options: DistillOptions, config: "DistillationConfig", policy: "LocalPolicy"
) -> "CombinedReward":
    """The rewards to train on, loaded."""
    weights, timeout, trust = config.reward_weights, config.reward_timeout, config.trust_remote_code
    return load_reward(options, weights, timeout, trust_remote_code=trust, tokenizer=policy.tokenizer)
