"""Options that nothing would read with the others that were given: refused by name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nonpareil.errors import ConfigError
from nonpareil.options.rewards import specs_of
from nonpareil.setting_types import shown
from nonpareil.settings import settings_of

OF_MODELS = ("reward_dtype", "reward_engine", "reward_overlong", "reward_append_eos", "reward_prepend_bos")
"""How reward models are run and read; a second reward's are read as they come, so the last two are not theirs."""
OF_SERVED_MODELS = ("reward_overlong", "reward_append_eos", "reward_prepend_bos")


def refuse_unread_of_distill(options: Any, timeout: float | None, eval_source: str | None) -> None:
    """What a distillation would not read; `eval_source`: of the held-out prompts, None where none are read.

    Raises:
        ConfigError: naming the option, and what would read it.
    """
    if not options.evaluate_after:  # its other settings may stay; this one names something to be measured
        reader = "the evaluation after training, and evaluate_after is false"
        refuse_given(options, ["unseen_reward"], reader)
    refuse_unread_of_rewards(options, options.unseen_reward, timeout)
    sources = {} if options.groups is not None else {"dataset_train_split": options.dataset_name or ""}
    if eval_source is not None:
        sources["dataset_test_split"] = eval_source
    refuse_unread_of_files(options, sources)
    if options.groups is not None:
        names = [
            "dataset_train_split",
            *([] if sources else ["dataset_name", "prompt_column", "dataset_config"]),
        ]
        refuse_given(options, names, "runs that draw their own, and groups hold prompts already")


def refuse_unread_of_rewards(options: Any, second: str | None, timeout: float | None) -> None:
    """Options of reward models without one, and a time limit of nothing that has one.

    `second` is a reward that is not trained on.

    Raises:
        ConfigError: naming the option, and what would read it.
    """
    from nonpareil.rewards.specs import kind_of

    kinds = {kind_of(spec) for spec in specs_of(options)}
    other = kind_of(second) if second is not None else None
    read: set[str] = set()
    if "model" in kinds:
        read |= {*OF_MODELS}
    if other == "model":
        read |= {*OF_MODELS[:3]}
    if "vllm" in kinds:
        read |= {*OF_SERVED_MODELS}
    if other == "vllm":
        read |= {"reward_overlong"}
    refuse_given(
        options, [name for name in OF_MODELS if name not in read], "a reward model only, and none is named"
    )
    if timeout is not None and not ({*kinds, other} - {"model", None} or options.judge_model):
        raise ConfigError(
            f"reward_timeout={timeout:g} is read by reward functions, endpoints and the judge only, and none is "
            "named; remove it"
        )


def refuse_unread_of_files(options: Any, sources: dict[str, str]) -> None:
    """A split or a configuration of a file, which has none; `sources`: the split's option, and whence it is.

    Raises:
        ConfigError: naming the option and the file.
    """
    files = {split: source for split, source in sources.items() if Path(source).expanduser().is_file()}
    for split, source in files.items():
        refuse_given(options, [split], f"datasets with splits, and {source!r} is one file")
    if files and len(files) == len(sources):
        source = next(iter(files.values()))
        refuse_given(options, ["dataset_config"], f"hub datasets only, and {source!r} is one file")


def refuse_given(options: Any, names: Sequence[str], reader: str) -> None:
    """Refuse each of the options that is not at its default.

    Raises:
        ConfigError: naming it.
    """
    settings = settings_of(type(options))
    for name in names:
        if name in settings and (value := getattr(options, name)) != settings[name].default:
            raise ConfigError(f"{name}={shown(value)} is read by {reader}; remove it")
