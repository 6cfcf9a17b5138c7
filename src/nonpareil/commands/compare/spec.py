"""The comparison's YAML: read, typed and checked key by key, before anything is computed."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar

from nonpareil.commands.evaluate.strengths import ascending
from nonpareil.commands.inputs import require_all
from nonpareil.errors import ConfigError
from nonpareil.options.held_out import check_held_out, eval_split
from nonpareil.options.rewards import RewardOptions, no_judge
from nonpareil.options.shared import HELD_OUT_SPLITS, TRAINING_SPLITS, ModelOptions, PromptOptions, targets_of
from nonpareil.options.unread import absent_rewards, absent_splits, is_one_split
from nonpareil.options.yaml import load_yaml, mapping, refuse_unknown, typed
from nonpareil.setting_types import SEED, check_value
from nonpareil.settings import DTYPES, CheckedOptions, option, refuse_unread, settings_of

PLACEHOLDERS = ("output_dir", "seed", "groups", "model", "pairs", "python")
_SECTIONS = ("budget", "groups", "evaluation", "training", "methods")


@dataclass
class CompareOptions(ModelOptions, PromptOptions, RewardOptions):
    """What all runs have in common: policy, prompts, reward, drawing, evaluation."""

    HEADING: ClassVar = "Comparison"

    judge_model: str | None = option(None, "Refused.", refused=no_judge("compare evaluates every policy"))
    dataset_train_split: str = option(
        "train", "Prompts to train on.", reader=TRAINING_SPLITS, heading="Prompts"
    )
    dataset_test_split: str = option(
        "test", "Held-out prompts to evaluate on.", reader=HELD_OUT_SPLITS, heading="Prompts"
    )
    eval_dataset_name: str | None = option(
        None, "Held-out prompts, where dataset_name has no test split.", names="input", heading="Prompts"
    )
    max_eval_prompts: int | None = option(256, "The first ones only.", at_least=1, heading="Prompts")
    gold_reward: str | None = option(
        None,
        "A second reward that is not trained on: a model or a function.",
        names="reward",
        heading="Rewards",
    )
    max_completion_length: int = option(
        256, "Most tokens drawn per completion.", at_least=1, heading="Drawing"
    )
    temperature: float = option(
        1.0, "Divides the logits.", above=0, why="best-of-N needs draws that differ", heading="Drawing"
    )
    n: list[int] | None = option(
        None,
        "The N whose best-of-N is compared with. Default: those of 2, 4, 8 and 16 up to "
        "evaluation.num_reference_samples.",
        at_least=2,
        why="best-of-1 is the reference itself",
    )
    seeds: list[int] = option([0, 1, 2], "One run per method and seed.", at_least=0, at_most=SEED)
    checkpoints: int = option(3, "Evaluated on the way, spread over the training.", at_least=0)
    title: str = option("Which method, at what cost?", "The report's heading.")
    output_dir: str = option("nonpareil-comparison", "Runs and report.", path=True)


@dataclass
class BudgetOptions(CheckedOptions):
    """What each run may spend; exactly one is given."""

    HEADING: ClassVar = "Comparison"

    completions: int | None = option(None, "Drawn by each run, its share of the pool counted.", at_least=1)
    seconds: float | None = option(None, "Of training, drawing its share of the pool counted.", at_least=1)


@dataclass
class PoolOptions(CheckedOptions):
    """The stored groups that methods with `stored: true` share."""

    HEADING: ClassVar = "Comparison"

    num_generations: int = option(16, "Completions per prompt, m.", at_least=2)
    max_prompts: int | None = option(None, "The first training prompts only.", at_least=1)
    seed: int = option(0, "Of the draws.", at_least=0, at_most=SEED)

    @property
    def completions(self) -> int:
        """In the whole pool."""
        return self.num_generations * (self.max_prompts or 0)


@dataclass
class EvaluationOptions(CheckedOptions):
    """How every policy is measured."""

    HEADING: ClassVar = "Comparison"

    num_generations: int = option(8, "Completions of the policy per prompt.", at_least=2)
    num_reference_samples: int = option(16, "Completions of the reference per prompt, M.", at_least=2)
    checkpoint_prompts: int = option(128, "The first held-out prompts, for checkpoints.", at_least=1)
    checkpoint_num_generations: int = option(4, "Completions of a checkpoint per prompt.", at_least=2)
    kl_dtype: str = option("float32", "What the KL's passes multiply in, as evaluate's.", choices=DTYPES)
    strengths: list[float] | None = option(
        None,
        "Also measure each run's policy with more or less of its training, as evaluate's strengths (1, the policy "
        "itself, is always there); each costs a run as much as a checkpoint. Default: none.",
        above=0,
    )
    at_win_rates: list[float] = option(
        [0.6, 0.7, 0.8],
        "Tabulate the KL at which each method's paths reach these win rates.",
        above=0.5,
        below=1,
        why="the reference's own is .5, and no finite KL is sure to reach 1",
    )
    seed: int = option(0, "Of the draws.", at_least=0, at_most=SEED)


@dataclass(frozen=True)
class MethodEntry:
    """One entry of `methods`."""

    name: str
    method: str
    stored: bool
    settings: dict[str, Any]
    """Distill keys of this entry alone."""
    command: tuple[str, ...] | None
    """A program of the user's own, in place of a method."""

    def uses(self, placeholder: str) -> bool:
        """Whether the command asks for it."""
        return any("{" + placeholder + "}" in word for word in self.command or ())


@dataclass(frozen=True)
class ComparisonSpec:
    """The whole file."""

    options: CompareOptions
    budget: BudgetOptions
    pool: PoolOptions | None
    evaluation: EvaluationOptions
    training: dict[str, Any]
    methods: tuple[MethodEntry, ...]

    @property
    def eval_source(self) -> str:
        """Where held-out prompts come from."""
        return self.options.eval_dataset_name or self.options.prompt_source or ""

    @property
    def eval_split(self) -> str:
        """Of which split they are."""
        return eval_split(self.options)


def read_spec(path: str | Path, output_dir: str | None = None) -> ComparisonSpec:
    """Read a comparison; `output_dir` overrides the file's.

    Raises:
        ConfigError: what cannot be read or cannot work, naming key, value and remedy.
    """
    content = load_yaml(Path(path))
    sections = {name: content.pop(name, None) for name in _SECTIONS}
    refuse_unknown(content, [*settings_of(CompareOptions), *_SECTIONS], "")
    options = typed(CompareOptions, content, "")
    options.output_dir = str(output_dir) if output_dir is not None else options.output_dir
    pool = None if sections["groups"] is None else typed(PoolOptions, sections["groups"], "groups")
    methods = mapping(sections["methods"], "methods")
    spec = ComparisonSpec(
        options=options,
        budget=typed(BudgetOptions, sections["budget"], "budget"),
        pool=pool,
        evaluation=typed(EvaluationOptions, sections["evaluation"], "evaluation"),
        training=mapping(sections["training"], "training"),
        methods=tuple(_entry(name, entry) for name, entry in methods.items()),
    )
    _check(spec)
    options.n = list(
        targets_of(options.n, spec.evaluation.num_reference_samples, "evaluation.num_reference_samples")
    )
    return spec


def _entry(name: Any, entry: Any) -> MethodEntry:
    where = f"methods.{name}"
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", name):
        raise ConfigError(
            f"{where}: the name becomes a folder; use letters, digits, '_', '-', '+' and '.', "
            "a letter or digit first"
        )
    settings = dict(mapping(entry, where))
    method, command = settings.pop("method", None), settings.pop("command", None)
    if method is not None:
        check_value(f"{where}.method", method, str)
    stored = settings.pop("stored", False)
    if not isinstance(stored, bool):
        raise ConfigError(f"{where}.stored={stored!r} must be true or false")
    if command is None:
        return MethodEntry(name, method or name, stored, settings, None)
    if method is not None or settings:
        unread = ["method"] if method is not None else sorted(settings)
        raise ConfigError(f"{where}: {unread[0]} is not read beside command; put it into the command's words")
    made = MethodEntry(name, "command", stored, {}, _command_words(command, where))
    if not made.uses("output_dir"):
        raise ConfigError(
            f"{where}.command: {{output_dir}} is missing, the folder where it must leave its model"
        )
    return replace(made, stored=stored or made.uses("groups") or made.uses("pairs"))


def _command_words(command: Any, where: str) -> tuple[str, ...]:
    """The words of a program of the user's own; refused where they are no list, or a placeholder is unknown."""
    words_only = isinstance(command, list) and not any(
        isinstance(word, list | dict | NoneType) for word in command
    )
    if not words_only or not command:
        raise ConfigError(f"{where}.command={command!r} must be a list of words, as [python, train.py, ...]")
    words = tuple(str(word) for word in command)
    for used in re.findall(r"\{(\w+)\}", " ".join(words)):
        if used not in PLACEHOLDERS:
            known = ", ".join("{" + each + "}" for each in PLACEHOLDERS)
            raise ConfigError(f"{where}.command: unknown placeholder {{{used}}}; there are {known}")
    return words


def _check(spec: ComparisonSpec) -> None:
    options, budget = spec.options, spec.budget
    require_all(options)
    sources = {TRAINING_SPLITS: options.prompt_source or "", HELD_OUT_SPLITS: spec.eval_source}
    check_held_out(options)
    refuse_unread(options, absent_rewards(options, options.gold_reward) | absent_splits(sources))
    if not spec.methods:
        raise ConfigError("methods is missing or empty; name at least one, for example methods: {jbond: {}}")
    if (budget.completions is None) == (budget.seconds is None):
        both = "both are" if budget.completions is not None else "neither is"
        raise ConfigError(f"budget takes either completions or seconds, and {both} given; give one")
    _check_different(options)
    _order_paths(spec.evaluation)
    if spec.pool is None:
        for entry in spec.methods:
            if entry.stored:
                raise ConfigError(
                    f"methods.{entry.name} learns from stored groups, but groups is missing; give "
                    "groups: {num_generations: 16, max_prompts: ...}"
                )
    elif spec.pool.max_prompts is None:
        raise ConfigError("groups.max_prompts is missing; say for how many training prompts to draw the pool")
    same = spec.eval_source == options.prompt_source
    if (
        options.test_split_size is None
        and same
        and (is_one_split(spec.eval_source) or options.dataset_train_split == options.dataset_test_split)
    ):
        raise ConfigError(
            f"held-out prompts would be the training prompts ({spec.eval_source!r}); give eval_dataset_name, or "
            "another dataset_test_split"
        )


def _order_paths(evaluation: EvaluationOptions) -> None:
    """Strengths and win rates in order; refused where one is there twice, or is the final policy's."""
    evaluation.at_win_rates = ascending("evaluation.at_win_rates", evaluation.at_win_rates)
    if evaluation.strengths is not None:
        evaluation.strengths = ascending("evaluation.strengths", evaluation.strengths)
        if 1.0 in evaluation.strengths:
            raise ConfigError(
                f"evaluation.strengths={evaluation.strengths}: 1 is the final policy, which is evaluated anyway; "
                "leave it out"
            )


def _check_different(options: CompareOptions) -> None:
    for name, values in (("n", options.n or []), ("seeds", options.seeds)):
        if len(set(values)) < len(values):
            raise ConfigError(f"{name}={values!r} must be a list of different whole numbers")
