"""What would read an option is absent: said of the rewards and prompts that were named, so that it is refused."""

from typing import Any

from nonpareil.files import one_dataset
from nonpareil.in_memory import InMemory
from nonpareil.options.rewards import ANY_MODEL, FIRST_MODEL, LIMITED, LOADED_MODEL, specs_of
from nonpareil.options.shared import (
    DRAWS_POOL,
    HELD_OUT_SPLITS,
    HUB_DATASETS,
    OWN_PROMPTS,
    STREAMS,
    TRAINING_SPLITS,
)
from nonpareil.settings import refuse_unread
from nonpareil.values.settings import MAKES_CREDITS


def refuse_unread_of_distill(options: Any, config: Any, eval_source: str | None) -> None:
    """What a distillation would not read; `eval_source`: of the held-out prompts, None where none are read.

    Raises:
        ConfigError: naming the option, and what would read it.
    """
    absent = absent_rewards(options, options.unseen_reward) | _absent_makers(options, config)
    sources = {} if options.groups is not None else {TRAINING_SPLITS: options.prompt_source or ""}
    if eval_source is not None:
        sources[HELD_OUT_SPLITS] = eval_source
    absent |= absent_splits(sources)
    if options.groups is not None:
        readers = [TRAINING_SPLITS, *([] if sources else [OWN_PROMPTS, HUB_DATASETS, STREAMS])]
        absent |= dict.fromkeys(readers, "groups hold prompts already")
    for each in (options, config):
        refuse_unread(each, absent)


def _absent_makers(options: Any, config: Any) -> dict[str, str]:
    """Whether groups are drawn before training, and credits made, and why not."""
    from nonpareil.options.methods import reads_credits

    if not reads_credits(config.method):
        return dict.fromkeys((DRAWS_POOL, MAKES_CREDITS), "the method reads no credits")
    absent = {} if options.groups is None else {DRAWS_POOL: "groups are given"}
    return absent if options.credits is None else {**absent, MAKES_CREDITS: "credits are given"}


def absent_rewards(options: Any, second: str | None) -> dict[str, str]:
    """Readers of rewards' options that are absent, and why; `second` is a reward that is not trained on."""
    from nonpareil.rewards.specs import kind_of

    first = {kind_of(spec) for spec in specs_of(options)}
    kinds = first | ({kind_of(second)} if second is not None else set())
    there = {
        LOADED_MODEL: "model" in kinds,
        ANY_MODEL: {"model", "vllm"} & kinds,
        FIRST_MODEL: {"model", "vllm"} & first,
        LIMITED: kinds - {"model"} or options.judge_model,
    }
    return {reader: "none is named" for reader, is_there in there.items() if not is_there}


def absent_splits(sources: dict[str, str]) -> dict[str, str]:
    """Readers of splits and configurations that are absent: a file or saved dataset has none.

    `sources`: by reader of splits.
    """
    absent = {
        reader: f"{source!r} {'has no splits' if isinstance(source, InMemory) else f'is {one_dataset(source)}'}"
        for reader, source in sources.items()
        if is_one_split(source)
    }
    if absent and len(absent) == len(sources):
        absent[HUB_DATASETS] = next(iter(absent.values()))
        if not any(getattr(source, "can_stream", False) for source in sources.values()):
            absent[STREAMS] = absent[HUB_DATASETS]
    return absent


def is_one_split(source: str) -> bool:
    """Whether prompts come without splits: of one file or saved dataset, or in memory."""
    return isinstance(source, InMemory) or one_dataset(source) is not None
