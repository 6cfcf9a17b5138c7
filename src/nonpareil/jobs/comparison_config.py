"""The comparison's YAML: read, typed and checked key by key, before anything is computed."""

import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from nonpareil.errors import ConfigError
from nonpareil.jobs.options import ModelOptions, PromptOptions, RewardOptions, _help, require_all
from nonpareil.jobs.remote_rewards import refuse_judge
from nonpareil.jobs.yaml_options import load_yaml, mapping, refuse_unknown, typed

PLACEHOLDERS = ("output_dir", "seed", "groups", "model", "pairs", "python")
_SECTIONS = ("budget", "groups", "evaluation", "training", "methods")


@dataclass
class CompareOptions(ModelOptions, PromptOptions, RewardOptions):
    """What all runs have in common: policy, prompts, reward, drawing, evaluation."""

    dataset_train_split: str = field(default="train", metadata=_help("Prompts to train on."))
    dataset_test_split: str = field(default="test", metadata=_help("Held-out prompts to evaluate on."))
    eval_dataset_name: str | None = field(
        default=None, metadata=_help("Held-out prompts, where dataset_name has no test split.")
    )
    max_eval_prompts: int | None = field(default=256, metadata=_help("The first ones only."))
    gold_reward: str | None = field(
        default=None, metadata=_help("A second reward that is not trained on: a model or a function.")
    )
    max_completion_length: int = field(default=256, metadata=_help("Most tokens drawn a completion."))
    temperature: float = field(default=1.0, metadata=_help("Divides the logits."))
    n: list[int] = field(
        default_factory=lambda: [2, 4, 8, 16], metadata=_help("The N whose best-of-N is compared with.")
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata=_help("One run a method and seed."))
    checkpoints: int = field(default=3, metadata=_help("Evaluated on the way, spread over the training."))
    title: str = field(default="Which method, at what cost?", metadata=_help("The report's heading."))
    output_dir: str = field(default="nonpareil-comparison", metadata=_help("Runs and report."))


@dataclass
class BudgetOptions:
    """What each run may spend; exactly one is given."""

    completions: int | None = None
    seconds: float | None = None


@dataclass
class PoolOptions:
    """The stored groups that methods with `stored: true` share."""

    num_generations: int = 16
    max_prompts: int | None = None
    seed: int = 0

    @property
    def completions(self) -> int:
        """In the whole pool."""
        return self.num_generations * (self.max_prompts or 0)


@dataclass
class EvaluationOptions:
    """How every policy is measured."""

    num_generations: int = 8
    num_reference_samples: int = 16
    checkpoint_prompts: int = 128
    checkpoint_num_generations: int = 4
    kl_dtype: str = "float32"
    seed: int = 0


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
        return self.options.eval_dataset_name or self.options.dataset_name or ""


def read_spec(path: str | Path, output_dir: str | None = None) -> ComparisonSpec:
    """Read a comparison; `output_dir` overrides the file's.

    Raises:
        ConfigError: what cannot be read or cannot work, naming key, value and remedy.
    """
    content = load_yaml(Path(path))
    sections = {name: content.pop(name, None) for name in _SECTIONS}
    known = [f.name for f in fields(CompareOptions)]
    refuse_unknown(content, [*known, *_SECTIONS], "")
    options = typed(CompareOptions, content, "")
    options.output_dir = output_dir or options.output_dir
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
    stored = settings.pop("stored", False)
    if not isinstance(stored, bool):
        raise ConfigError(f"{where}.stored={stored!r} must be true or false")
    if command is None:
        return MethodEntry(name, str(method or name), stored, settings, None)
    if method is not None or settings:
        unread = ["method"] if method is not None else sorted(settings)
        raise ConfigError(f"{where}: {unread[0]} is not read beside command; put it into the command's words")
    if not isinstance(command, list) or not command:
        raise ConfigError(f"{where}.command={command!r} must be a list of words, as [python, train.py, ...]")
    words = tuple(str(word) for word in command)
    for used in re.findall(r"\{(\w+)\}", " ".join(words)):
        if used not in PLACEHOLDERS:
            known = ", ".join("{" + each + "}" for each in PLACEHOLDERS)
            raise ConfigError(f"{where}.command: unknown placeholder {{{used}}}; there are {known}")
    made = MethodEntry(name, "command", stored, {}, words)
    if not made.uses("output_dir"):
        raise ConfigError(
            f"{where}.command: {{output_dir}} is missing, the folder where it must leave its model"
        )
    return (
        made if stored else MethodEntry(name, "command", made.uses("groups") or made.uses("pairs"), {}, words)
    )


def _check(spec: ComparisonSpec) -> None:
    options, budget, evaluation = spec.options, spec.budget, spec.evaluation
    require_all(options)
    refuse_judge(options, "compare evaluates every policy")
    if not spec.methods:
        raise ConfigError("methods is missing or empty; name at least one, for example methods: {jbond: {}}")
    if (budget.completions is None) == (budget.seconds is None):
        both = "both are" if budget.completions is not None else "neither is"
        raise ConfigError(f"budget takes either completions or seconds, and {both} given; give one")
    _check_numbers(spec)
    if spec.pool is None:
        for entry in spec.methods:
            if entry.stored:
                raise ConfigError(
                    f"methods.{entry.name} learns from stored groups, but groups is missing; give "
                    "groups: {num_generations: 16, max_prompts: ...}"
                )
    elif spec.pool.max_prompts is None:
        raise ConfigError("groups.max_prompts is missing; say for how many training prompts to draw the pool")
    same = spec.eval_source == options.dataset_name
    if same and (
        Path(spec.eval_source).is_file() or options.dataset_train_split == options.dataset_test_split
    ):
        raise ConfigError(
            f"held-out prompts would be the training prompts ({spec.eval_source!r}); give eval_dataset_name, or "
            "another dataset_test_split"
        )
    if max(options.n) > evaluation.num_reference_samples:
        raise ConfigError(
            f"n={options.n} asks for more than evaluation.num_reference_samples="
            f"{evaluation.num_reference_samples}; lower n or draw more"
        )


def _check_numbers(spec: ComparisonSpec) -> None:
    options, pool, evaluation = spec.options, spec.pool, spec.evaluation
    for name, values, least in (("n", options.n, 2), ("seeds", options.seeds, 0)):
        whole = isinstance(values, list) and values and all(type(v) is int and v >= least for v in values)
        if not whole or len(set(values)) < len(values):
            raise ConfigError(
                f"{name}={values!r} must be a list of different whole numbers of at least {least}, as [{least}, 4]"
            )
    least_values: list[tuple[str, float | None, int]] = [
        ("checkpoints", options.checkpoints, 0),
        ("max_eval_prompts", options.max_eval_prompts, 1),
        ("max_completion_length", options.max_completion_length, 1),
        ("budget.completions", spec.budget.completions, 1),
        ("budget.seconds", spec.budget.seconds, 1),
        ("evaluation.num_generations", evaluation.num_generations, 2),
        ("evaluation.num_reference_samples", evaluation.num_reference_samples, 2),
        ("evaluation.checkpoint_prompts", evaluation.checkpoint_prompts, 1),
        ("evaluation.checkpoint_num_generations", evaluation.checkpoint_num_generations, 2),
        ("groups.num_generations", pool.num_generations if pool else None, 2),
        ("groups.max_prompts", pool.max_prompts if pool else None, 1),
    ]
    for name, value, least in least_values:
        if value is not None and value < least:
            raise ConfigError(f"{name}={value} must be at least {least}")
