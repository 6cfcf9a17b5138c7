"""The options that commands share. Plain dataclasses, read without importing torch."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from nonpareil.errors import ConfigError
from nonpareil.models.model_init import (
    ATTENTION_HELP,
    ATTENTIONS,
    EIGHT_BIT_HELP,
    FOUR_BIT_HELP,
    GGUF_HELP,
    KWARGS_HELP,
    NESTED_HELP,
    QUANT_TYPE_HELP,
    QUANT_TYPES,
    STORAGE_HELP,
    STORAGES,
)
from nonpareil.records import SamplingParams
from nonpareil.setting_types import SEED, shown
from nonpareil.settings import DTYPES, CheckedOptions, option
from nonpareil.training.settings.template import TemplateSettings

LOADED_HERE = "engine=transformers|vllm|ray"
"""What belongs to a model that is loaded here; a server has loaded its own."""
LOADED_BY_TRANSFORMERS = "engine=transformers|ray"
OWN_PROMPTS = "runs that draw their own"
DRAWS_POOL = "what draws stored groups before it trains"
HUB_DATASETS = "hub datasets"
STREAMS = "hub datasets and mixtures of them"
WITH_SPLITS = "datasets with splits"
TRAINING_SPLITS = "datasets with a training split"
HELD_OUT_SPLITS = "datasets with a held-out split"
"""Readers; `options.unread` says when they are absent."""


@dataclass
class FileOptions(CheckedOptions):
    """Where options came from."""

    config_file: str | None = field(default=None, init=False)
    """The YAML file; no option of its own, but one of the files that no output may be written over."""


@dataclass
class CodeOptions(CheckedOptions):
    """Whose code may run."""

    HEADING: ClassVar = "Policy"

    trust_remote_code: bool = option(
        False, "Run the code that a model, tokenizer or reward model brings along (auto_map)."
    )


@dataclass
class ModelOptions(CodeOptions):
    """Which policy."""

    HEADING: ClassVar = "Policy"

    model_name_or_path: str | None = option(
        None, "Model directory or hub name.", names="input", replaces_demo=True
    )
    model_revision: str | None = option(None, "Branch, tag or commit of a hub model.", of=LOADED_HERE)
    dtype: str = option(
        "auto",
        "auto (bfloat16 where this machine gains from it), bfloat16, float16 or float32.",
        choices=DTYPES,
        of=LOADED_HERE,
    )
    attn_implementation: str | None = option(
        None, ATTENTION_HELP, choices=ATTENTIONS, of=LOADED_BY_TRANSFORMERS
    )
    model_init_kwargs: dict[str, Any] | str | None = option(None, KWARGS_HELP, of=LOADED_BY_TRANSFORMERS)
    gguf_file: str | None = option(None, GGUF_HELP, of=LOADED_BY_TRANSFORMERS)
    load_in_4bit: bool = option(False, FOUR_BIT_HELP, of=LOADED_BY_TRANSFORMERS)
    load_in_8bit: bool = option(False, EIGHT_BIT_HELP, of=LOADED_BY_TRANSFORMERS)
    bnb_4bit_quant_type: str = option("nf4", QUANT_TYPE_HELP, choices=QUANT_TYPES, of="load_in_4bit")
    use_bnb_nested_quant: bool = option(False, NESTED_HELP, of="load_in_4bit")
    bnb_4bit_quant_storage: str | None = option(None, STORAGE_HELP, choices=STORAGES, of="load_in_4bit")


@dataclass
class PromptOptions(TemplateSettings, CheckedOptions):
    """Which prompts, and how they are rendered."""

    HEADING: ClassVar = "Prompts"

    dataset_name: str | None = option(
        None,
        "Prompts: a .parquet, .json, .jsonl, .csv or .txt file, a directory, or a hub dataset.",
        names="input",
        replaces_demo=True,
        reader=OWN_PROMPTS,
    )
    datasets: list[dict[str, Any] | str] | None = option(
        None,
        "A mixture in dataset_name's place: names, or JSON objects of path, split, columns, fraction, ... as TRL. "
        "Fractions hold in every beginning, up to where a dataset has no more: no prompt is taken twice. Without "
        "them all are taken. The column dataset_source says of which a prompt is.",
        names="input",
        replaces_demo=True,
        reader=OWN_PROMPTS,
    )
    dataset_config: str | None = option(None, "Of a hub dataset that has several.", reader=HUB_DATASETS)
    prompt_column: str = option("prompt", "The column that holds the prompt.", reader=OWN_PROMPTS)
    dataset_streaming: bool = option(
        False, "Read no more of a hub dataset than the first prompts that are asked for.", reader=STREAMS
    )
    test_split_size: float | None = option(
        None,
        "Hold out this share of the prompts (below 1) or this many, the same ones in every run: training and "
        "sample leave them out, evaluations take them. For datasets without a test split.",
        above=0,
        reader=OWN_PROMPTS,
    )

    def __post_init__(self) -> None:
        """Refuse a mixture that cannot be, before any of it is read.

        Raises:
            ConfigError: naming the dataset, or one that is named besides.
        """
        super().__post_init__()
        if self.datasets is not None and self.dataset_name is not None:
            raise ConfigError(
                f"dataset_name={self.dataset_name!r} and datasets={shown(self.datasets)} both name prompts; give "
                "one of them"
            )
        source = self.prompt_source
        if self.dataset_streaming and self.datasets is not None:
            source.refuse_unknown_sizes()  # type: ignore[union-attr]

    @property
    def prompt_source(self) -> str | None:
        """What is read: a file, folder or dataset by its name, or a `Mixture`; None where nothing is named."""
        if self.datasets is None:
            return self.dataset_name
        from nonpareil.rollouts.mixture import mixture_of  # with much behind it

        return mixture_of(self.datasets)


def named_prompts(source: str | None) -> dict[str, Any]:
    """The options that name such a source."""
    entries = getattr(source, "entries", None)  # a mixture's
    return {"dataset_name": source if entries is None else None, "datasets": entries}


@dataclass
class SamplingOptions(CheckedOptions):
    """How completions are drawn."""

    HEADING: ClassVar = "Drawing"

    max_completion_length: int = option(256, "Most tokens drawn per completion.", at_least=1)
    temperature: float = option(1.0, "Divides the logits.", above=0, why="best-of-N needs draws that differ")
    top_p: float = option(1.0, "Keep the likeliest tokens up to this mass.", above=0, at_most=1)
    top_k: int = option(0, "Keep this many tokens; 0 keeps all.", at_least=0)
    min_p: float = option(0.0, "Keep tokens at least this share of the likeliest one.", at_least=0, below=1)
    seed: int = option(0, "The same seed draws the same groups.", at_least=0, at_most=SEED)
    max_tokens_per_batch: int = option(
        32768, "Tokens, padding included, of one batch; bounds memory.", at_least=1, of=LOADED_HERE
    )

    def sampling(self) -> SamplingParams:
        """These options as the engines take them."""
        return SamplingParams(
            self.max_completion_length, self.temperature, self.top_p, self.top_k, self.min_p, self.seed
        )


TARGETS = (2, 4, 8, 16)
"""The N of best-of-N that a policy is held against, where there are as many reference completions."""


def targets_of(n: Sequence[int] | None, num_reference_samples: int, name: str) -> tuple[int, ...]:
    """The N that were given, or those of `TARGETS` that so many reference completions show.

    `name` is the option that says how many.

    Raises:
        ConfigError: an N that is above them.
    """
    if n is None:
        return tuple(each for each in TARGETS if each <= num_reference_samples)
    if n and max(n) > num_reference_samples:
        raise ConfigError(
            f"n={list(n)} asks for more than {name}={num_reference_samples}; lower n or draw more"
        )
    return tuple(n)
