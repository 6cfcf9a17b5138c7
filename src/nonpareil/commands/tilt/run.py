"""Count a tilt from stored groups, choose its strength, and write it."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonpareil.commands.places import check_output, inputs_of
from nonpareil.errors import ConfigError
from nonpareil.folders import is_bookkeeping, is_vacant, writing
from nonpareil.markers import OutputFolder
from nonpareil.options.tilt import TiltOptions
from nonpareil.terminal import tell

if TYPE_CHECKING:
    from nonpareil.commands.policies.local import LocalPolicy
    from nonpareil.commands.tilt.groups import TiltGroups
    from nonpareil.commands.tilt.path import TiltPath
    from nonpareil.credits import CreditsByPrompt

OWNER = "tilt"
DEFAULT_N = 2
GRID, MOST_KL = 32, 6.0
"""Strengths that are looked at, and the nats that the last of them may spend, roughly."""
SHOWN_TOKENS = 8


def run(options: TiltOptions) -> dict[str, Any]:
    """Write the folder; returns what the tilt is estimated to do, and where it lies.

    Raises:
        NonpareilError: options, groups or a policy that cannot work, before any weight is read where that can be
            known; or a win rate that the tilt cannot be told to reach.
    """
    for name in ("groups", "model_name_or_path", "output_dir"):
        if getattr(options, name) is None:
            raise ConfigError(f"{name} is missing; give --{name}")
    if options.n is not None and options.win_rate is not None:
        raise ConfigError(
            f"n={options.n} and win_rate={options.win_rate} both say how far to go; give one of them"
        )
    check_output("output_dir", options.output_dir or "", inputs_of(options), deletes=options.overwrite)
    with writing(options.output_dir or "", OWNER) as folder:
        folder.refuse_other_command()
        _check_folder(folder, overwrite=options.overwrite)
        return _tilt(options, folder)


def _check_folder(folder: OutputFolder, *, overwrite: bool) -> None:
    """Nothing may lie there but, with `overwrite`, an earlier tilt, which is replaced as a whole."""
    if is_vacant(folder.path):
        return
    if not overwrite:
        raise ConfigError(
            f"{folder.where} is not empty; name another directory, or give --overwrite to replace an earlier tilt "
            "there"
        )
    if foreign := [name for name in folder.foreign(["**/*"]) if not is_bookkeeping(Path(name))]:
        raise ConfigError(f"{folder.where} holds {foreign[0]!r}, which is not ours; name another directory")


def _tilt(options: TiltOptions, folder: OutputFolder) -> dict[str, Any]:
    from nonpareil.commands.policies.local import LocalPolicy
    from nonpareil.commands.tilt.groups import tilt_groups
    from nonpareil.models.output_bias import check_foldable

    policy = LocalPolicy(
        options.model_name_or_path or "",
        options.model_revision,
        "float32",
        trust_remote_code=options.trust_remote_code,
    )
    if options.format == "model":
        check_foldable(policy.name_or_path, policy.config)
    data = tilt_groups(options.groups or "", policy)
    credits = _credits(options, policy, data)
    earlier = folder.listed()
    with folder.staged() as staging:
        result = _written(options, policy, data, credits, staging)
        for name in earlier:  # only now that the new one is whole
            folder.delete(name)
    return {"output_dir": str(options.output_dir), **result}


def _credits(options: TiltOptions, policy: "LocalPolicy", data: "TiltGroups") -> "CreditsByPrompt | None":
    if options.credits is None:
        return None
    from nonpareil.commands.distill.credits import load_credits
    from nonpareil.training.stored_credits import check_credits_of

    credits = load_credits(options.credits, options.groups or "", policy)
    check_credits_of(data.groups, credits)
    return credits


def _written(
    options: TiltOptions,
    policy: "LocalPolicy",
    data: "TiltGroups",
    credits: "CreditsByPrompt | None",
    staging: Path,
) -> dict[str, Any]:
    """Count, estimate, choose, write; all of the result but where it lies."""
    from nonpareil.commands.tilt.counting import token_sums
    from nonpareil.commands.tilt.path import best_of_n_win_rate, strength_for, tilt_estimate, tilt_path
    from nonpareil.commands.tilt.written import write_logit_bias, write_model
    from nonpareil.files import jsonable, write_json
    from nonpareil.maths.vocabulary_tilt import strength_grid
    from nonpareil.models.devices import dtype_name
    from nonpareil.models.output_bias import check_head
    from nonpareil.models.saving import prepare_saving
    from nonpareil.records import prompt_of

    n = None if options.win_rate is not None else options.n or DEFAULT_N
    target = options.win_rate or best_of_n_win_rate(data, n or DEFAULT_N)
    model = policy.load()
    prompts = [prompt_of(group) for group in data.groups[:1]]
    if options.format == "model":
        check_head(policy.name_or_path, model)
        prepare_saving(model, policy.tokenizer, prompts)
    kept = {*policy.endings_of(prompts).ids, *policy.tokenizer.all_special_ids}
    sums = token_sums(data, credits, model.config.get_text_config().vocab_size, kept)
    tilt, counts = sums.tilt(), sums.counts.sum(0)
    strengths = strength_grid(tilt, counts, data.mean_length, MOST_KL, GRID)
    tell(f"{len(data)} completions of {len(data.groups)} prompts: what the tilt does at {GRID} strengths")
    path = tilt_path(model, data, sums.tilts_without(), strengths, options.max_tokens_per_batch)
    strength = strength_for(path, target, f"n={n}" if n is not None else f"win_rate={options.win_rate}")
    bias = tilt * strength * data.temperature  # of the logits, which the temperature then divides
    entries, share = write_logit_bias(staging / "logit_bias.json", bias, counts)
    result: dict[str, Any] = {
        "asked": {"n": n, "win_rate": target},
        "estimate": tilt_estimate(data, path, strength, options.seed),
        "temperature": data.temperature,
        "tokens": _most_tilted(bias, policy),
        "logit_bias": {"entries": entries, "share": share},
        "path": _rows(path),
    }
    if options.format == "model":
        fold, dtype = write_model(staging, policy, model, data, bias, options.max_tokens_per_batch)
        result["fold"] = {**jsonable(fold), "share": fold.share, "dtype": dtype_name(dtype)}
    write_json(staging / "tilt.json", {**result, "groups": options.groups, "credits": options.credits})
    return result


def _rows(path: "TiltPath") -> list[dict[str, float]]:
    columns = (path.strengths, path.win_rate, path.mean_kl, path.effective)
    names = ("strength", "win_rate", "kl", "effective_samples")
    return [
        dict(zip(names, row, strict=True)) for row in zip(*(each.tolist() for each in columns), strict=True)
    ]


def _most_tilted(bias: Any, policy: "LocalPolicy") -> dict[str, list[str]]:
    """The tokens that gain and lose most, as texts."""
    order = bias.argsort(descending=True).tolist()

    def texts(ids: Iterable[int]) -> list[str]:
        return [str(policy.tokenizer.decode([token])) for token in ids]

    return {"up": texts(order[:SHOWN_TOKENS]), "down": texts(order[: -SHOWN_TOKENS - 1 : -1])}
