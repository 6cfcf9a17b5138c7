"""The evaluation of what a trainer has trained, in Python: its folder against what the policy was before."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonpareil.commands.distill.card import failed, reached
from nonpareil.commands.distill.manifest_defaults import NAMES as REWARD_NAMES
from nonpareil.commands.evaluate import run as evaluate
from nonpareil.errors import ConfigError, ModelError, NonpareilError
from nonpareil.in_memory import InMemory
from nonpareil.options.evaluate import EvaluateOptions
from nonpareil.options.yaml import typed

if TYPE_CHECKING:
    from nonpareil.training.trainer import DistillationTrainer

_READ_BY = (
    *("attn_implementation", "model_init_kwargs", "load_in_4bit", "load_in_8bit"),
    *("bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage"),
)
"""How the trainer reads its policy, and so how the evaluation reads both models."""


def evaluate_trainer(trainer: "DistillationTrainer", given: Mapping[str, Any]) -> dict[str, Any]:
    """Save what was not saved, evaluate, complete the card, and push where the trainer's settings say so.

    `given`: options of the evaluation, in place of those that follow from the trainer. All processes call it; the
    first one evaluates, and the others return nothing.

    Raises:
        NonpareilError: as `nonpareil evaluate`; or a trainer that has no held-out prompts, was not trained, or
            whose policy's beginnings are not known to be a model's that can be loaded.
    """
    from nonpareil.training.trainer import DistillationTrainer

    if not isinstance(trainer, DistillationTrainer):
        raise ConfigError(
            f"evaluate was given a {type(trainer).__name__}; give a DistillationTrainer, or model_name_or_path and "
            "reference_model_name_or_path by keyword"
        )
    if not trainer.state.global_step:
        raise ConfigError("the trainer has not trained a step; call train() first")
    options = typed(EvaluateOptions, {**_follows(trainer, given), **given}, "")
    if not trainer.is_saved:
        trainer.save_model()
    if not trainer.is_world_process_zero():
        return {}
    result = _evaluate(trainer, options, inside="output_dir" not in given)
    trainer.create_model_card()
    if trainer.args.push_to_hub:
        result["pushed"] = trainer.push_to_hub()
    return result


def _evaluate(trainer: "DistillationTrainer", options: EvaluateOptions, *, inside: bool) -> dict[str, Any]:
    """The evaluation, and what the card says of it; `inside` the trainer's own folder nothing is in its way."""
    try:
        result = evaluate.run(options, inside=inside)
    except ConfigError:
        raise
    except NonpareilError as error:
        trainer.measured = failed(error)
        trainer.create_model_card()
        raise
    if "evaluation" in result:
        trainer.measured = reached(result["evaluation"])
    return result


def _follows(trainer: "DistillationTrainer", given: Mapping[str, Any]) -> dict[str, Any]:
    """The options that follow from a trainer, but for those that are given."""
    from nonpareil.commands.evaluate.dtypes import training_dtype
    from nonpareil.methods import spec_of

    args, own = trainer.args, Path(str(trainer.args.output_dir))
    options: dict[str, Any] = {
        "model_name_or_path": str(own),
        "max_completion_length": args.max_completion_length,
        "temperature": args.temperature,
        "seed": args.seed,
        "max_tokens_per_batch": args.max_tokens_per_batch,
        "dtype": training_dtype(args, given.get("kl_dtype", "float32")),
        "output_dir": str(own / "evaluation"),
        "title": f"{own.name}: trained with {spec_of(type(trainer.method))}",
        "trust_remote_code": args.trust_remote_code,
        **{name: getattr(args, name) for name in _READ_BY},
        "overwrite": "output_dir" not in given,
    }
    if given.get("reference_model_name_or_path") is None:
        name, revision = _reference(trainer)
        options |= {"reference_model_name_or_path": name, "reference_model_revision": revision}
        options["reference_gguf_file"] = args.gguf_file
    if given.get("dataset_name") is None and given.get("datasets") is None:
        options["dataset_name"] = _held_out(trainer)
    if not {*REWARD_NAMES} & {*given}:
        options |= _rewards(trainer)
    return options


def _held_out(trainer: "DistillationTrainer") -> InMemory:
    prompts: Any = trainer.eval_dataset
    if not prompts:
        raise ConfigError(
            "the trainer has no eval_dataset; give it held-out prompts, or give dataset_name here: a policy is not "
            "measured on the prompts that it was trained on"
        )
    return InMemory("eval_dataset of the trainer", list(prompts))


def _rewards(trainer: "DistillationTrainer") -> dict[str, Any]:
    """The trainer's own rewards, each under its name, with their weights."""
    reward = trainer.reward
    if reward.names_within_groups:
        raise ConfigError(
            f"{', '.join(reward.names_within_groups)} scores a completion within its own group, so policy and "
            "reference, each in groups of its own, would both have one half; give reward_funcs to evaluate with"
        )
    named = zip(reward.names, reward.rewards, strict=True)
    return {
        "reward_funcs": [InMemory(name, each) for name, each in named],
        "reward_weights": list(reward.weights),
        "reward_skip_special_tokens": bool(reward.skipped_tokens),
    }


def _reference(trainer: "DistillationTrainer") -> tuple[str, str | None]:
    """What the policy was before its training, as a folder or a hub model, and its revision.

    Raises:
        ConfigError: the weights that the trainer was given are none that can be loaded again.
    """
    import torch

    from nonpareil.models.adapters import plain_model
    from nonpareil.models.fingerprint import fingerprint, module_fingerprint
    from nonpareil.models.loading import load_policy

    model, before = plain_model(trainer.model), trainer.identity["model"]
    name = model.name_or_path or ""
    how: dict[str, Any] = {"trust_remote_code": trainer.args.trust_remote_code, "init": trainer.args.init()}
    commit = None if Path(name).is_dir() else getattr(model.config, "_commit_hash", None)
    with suppress(ModelError):
        if name and fingerprint(name, commit, **how) == before:
            return name, commit
        if name:  # the trainer was given a model in memory: is it that of the folder?
            dtype = str(model.dtype).removeprefix("torch.")
            there, _ = load_policy(name, dtype=dtype, device=torch.device("cpu"), revision=commit, **how)
            if module_fingerprint(there) == before:
                return name, commit
    of = f"not the weights of {name!r} as they are now" if name else "no weights of a folder or a hub model"
    raise ConfigError(
        f"the trainer was given a model in memory that has {of}, so what the policy was before is not known; "
        "give reference_model_name_or_path, a folder that it was saved to before the training"
    )
