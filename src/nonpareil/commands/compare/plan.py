"""From a comparison's file to its runs: each run's settings, its share of the budget, what its folder must hold."""

import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonpareil.commands.compare.budget import (
    budgeted_steps,
    checkpoint_settings,
    refuse_pool_over_budget,
    refuse_value,
)
from nonpareil.commands.compare.inputs import Inputs, files_of
from nonpareil.commands.compare.spec import ComparisonSpec, MethodEntry
from nonpareil.commands.distill.checks import check_options
from nonpareil.errors import ConfigError
from nonpareil.files import jsonable
from nonpareil.options.distill import DistillOptions
from nonpareil.options.methods import read_method, reads_credits, settings_of_methods, typed_value
from nonpareil.options.rewards import RewardOptions, without_addresses
from nonpareil.options.shared import (
    HUB_DATASETS,
    OWN_PROMPTS,
    STREAMS,
    TRAINING_SPLITS,
    ModelOptions,
    PromptOptions,
)
from nonpareil.options.yaml import refuse_unknown, typed
from nonpareil.settings import Setting, settings_of

if TYPE_CHECKING:
    from nonpareil.methods.base import Method
    from nonpareil.training.config import DistillationConfig

SHARED = (
    *(
        name
        for cls in (ModelOptions, PromptOptions, RewardOptions)
        for name in settings_of(cls)
        if name != "dtype"
    ),
    *("dataset_train_split", "max_completion_length", "temperature"),
)
"""Distill's keys that the comparison's file gives at its top, for all runs."""
UNREAD_WITH_GROUPS = tuple(
    name
    for name, setting in settings_of(DistillOptions).items()
    if setting.limits.reader in (OWN_PROMPTS, TRAINING_SPLITS, HUB_DATASETS, STREAMS)
)
"""Those of them that a run does not read whose prompts are those of stored groups."""


@dataclass(frozen=True)
class RunPlan:
    """One method with one seed."""

    entry: MethodEntry
    seed: int
    folder: Path
    settings: dict[str, Any]
    """Distill's, without output_dir; of a command its words."""
    pool_completions: int
    """Of the shared pool that this run learns from."""
    pool_share: float
    """The same, as a share of the pool."""

    @property
    def label(self) -> str:
        """As messages name it."""
        return f"{self.entry.name}, seed {self.seed}"

    @property
    def model(self) -> Path:
        """Where the trained policy lies."""
        return self.folder / "model"

    @property
    def makes_credits(self) -> bool:
        """Whether it fits a value, and makes credits of the pool, before its training."""
        return self.entry.command is None and self.entry.stored and reads_credits(self.entry.method)

    def identity(self, pool: Mapping[str, Any], inputs: Inputs, seconds: float | None) -> dict[str, Any]:
        """What the folder was made with; a folder of another identity is not this run's."""
        made_with: dict[str, Any] = {
            # A served reward may move to another port.
            "settings": without_addresses(DistillOptions, self.settings),
            "model": inputs.model,
            "prompts": inputs.training,
            "reward": inputs.reward,
            "files": files_of(self.entry),
            "budget_seconds": seconds,
        }
        if self.pool_completions:
            made_with["pool"] = pool
        return json.loads(json.dumps(jsonable(made_with)))


def plan_runs(spec: ComparisonSpec) -> list[RunPlan]:
    """Every run, seed by seed, so that all methods have their first seed before any has its second.

    Raises:
        ConfigError: settings that a method cannot run with, or that the budget does not allow.
    """
    known = _known_settings(spec)
    _refuse_shared(spec.training, "training", known)
    for entry in spec.methods:
        _refuse_shared(entry.settings, f"methods.{entry.name}", known)
    spec = _with_values(spec)
    planned = [
        (entry, *(_command(spec, entry) if entry.command else _distillation(spec, entry)))
        for entry in spec.methods
    ]
    return [
        _run(spec, entry, settings, used, seed)
        for seed in spec.options.seeds
        for entry, settings, used in planned
    ]


def _known_settings(spec: ComparisonSpec) -> dict[str, Setting]:
    """What `training` and `methods` may give: the settings of distill and of all methods that are compared."""
    from nonpareil.training.config import DistillationConfig

    known = settings_of(DistillOptions) | settings_of(DistillationConfig)
    for entry in spec.methods:
        if entry.command is None:
            with _telling(f"methods.{entry.name}"):
                known |= settings_of_methods(entry.method, DistillOptions, DistillationConfig)
    return known


@contextmanager
def _telling(where: str) -> Iterator[None]:
    """What is refused is said with the place in the file."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _refuse_shared(settings: Mapping[str, Any], where: str, known: Mapping[str, Setting]) -> None:
    """What all runs have in common is given at the top of the file, and some of it is set by the comparison."""
    for key, value in settings.items():
        if key in SHARED:
            raise ConfigError(
                f"{where}.{key}={value!r}: runs that differ in it cannot be compared; set {key} at the top, for all"
            )
        instead = known[key].limits.compare if key in known else None
        if key == "method" and where == "training":
            instead = "remove it"
        if instead is not None:
            raise ConfigError(f"{where}.{key}={value!r} is set by the comparison; {instead}")
    refuse_unknown(settings, known, where)


def _with_values(spec: ComparisonSpec) -> ComparisonSpec:
    """The settings of a training as values of their types, which YAML's may not be yet.

    A method's own stay as they are given: two methods may mean two things by one name, and each reads its own.
    """
    from nonpareil.training.config import DistillationConfig

    of_distill = settings_of(DistillOptions) | settings_of(DistillationConfig)

    def values(settings: Mapping[str, Any], where: str) -> dict[str, Any]:
        read = {k: one.read(settings[k], f"{where}.") for k, one in of_distill.items() if k in settings}
        return {**settings, **read}

    methods = tuple(replace(e, settings=values(e.settings, f"methods.{e.name}")) for e in spec.methods)
    return replace(spec, training=values(spec.training, "training"), methods=methods)


def _run(spec: ComparisonSpec, entry: MethodEntry, settings: dict[str, Any], used: int, seed: int) -> RunPlan:
    return RunPlan(
        entry=entry,
        seed=seed,
        folder=Path(spec.options.output_dir) / "runs" / entry.name / f"seed-{seed}",
        settings=settings if entry.command else {**settings, "seed": seed},
        pool_completions=used,
        pool_share=used / spec.pool.completions if spec.pool and used else 0.0,
    )


def _command(spec: ComparisonSpec, entry: MethodEntry) -> tuple[dict[str, Any], int]:
    """A command's words as its settings, and how many completions of the pool it learns from."""
    program = (entry.command or ("",))[0]
    if program != "{python}" and shutil.which(program) is None:
        raise ConfigError(
            f"methods.{entry.name}.command: there is no program {program!r}; {{python}} is this Python"
        )
    used = spec.pool.completions if spec.pool and entry.stored else 0
    refuse_pool_over_budget(spec, entry, used)
    return {"command": list(entry.command or ())}, used


def _distillation(spec: ComparisonSpec, entry: MethodEntry) -> tuple[dict[str, Any], int]:
    """Distill's settings but for the seed, and how many completions of the pool it learns from."""
    settings = {name: getattr(spec.options, name) for name in SHARED}
    settings |= {"disable_tqdm": True, "report_to": "none", **spec.training, **entry.settings}
    with _telling(f"methods.{entry.name}"):
        own = settings_of_methods(entry.method)
        given = {k: v for k, v in settings.items() if k in own and v is not None}
        settings |= {k: typed_value(own[k], v) for k, v in given.items()}
    settings["method"] = entry.method
    # First without checkpoints: where they lie depends on the steps, and those on budget and method.
    unsaved = {name: value for name, value in settings.items() if not name.startswith("save_")}
    options, config, method = _as_distill_reads(spec, entry, {**unsaved, "save_strategy": "no"})
    used = _stored_completions(spec, entry, method, options.max_train_prompts)
    refuse_pool_over_budget(spec, entry, used)
    refuse_value(spec, entry, options.max_train_prompts)
    steps = budgeted_steps(spec, entry, config, method, used)
    settings |= {"max_steps": -1 if steps is None else steps}
    settings |= checkpoint_settings(spec, entry, method, steps)
    _as_distill_reads(spec, entry, settings)  # once more: checkpoints may not part steps on the same draws
    unread = UNREAD_WITH_GROUPS if entry.stored else ()
    return {k: v for k, v in settings.items() if v is not None and k not in unread}, used


def _stored_completions(
    spec: ComparisonSpec, entry: MethodEntry, method: "Method", max_prompts: int | None
) -> int:
    """Of the pool, those that the method learns from; refused where the pool has too few."""
    if not entry.stored or spec.pool is None:
        return 0
    where, pool = f"methods.{entry.name}", spec.pool
    pool_prompts = pool.max_prompts or 0
    if (max_prompts or 0) > pool_prompts:
        raise ConfigError(
            f"{where}: max_train_prompts={max_prompts}, but groups.max_prompts={pool_prompts}; lower one or raise "
            "the other"
        )
    if (least := method.smallest_group) > pool.num_generations:
        raise ConfigError(
            f"{where}: needs {least} stored completions per prompt; raise "
            f"groups.num_generations={pool.num_generations}, or lower n"
        )
    return (max_prompts or pool_prompts) * pool.num_generations


def _as_distill_reads(
    spec: ComparisonSpec, entry: MethodEntry, settings: Mapping[str, Any]
) -> "tuple[DistillOptions, DistillationConfig, Method]":
    """The settings as `nonpareil distill` will read them, refused here as there."""
    from nonpareil.training.config import DistillationConfig
    from nonpareil.training.method import method_of

    where = f"methods.{entry.name}"
    of_config, of_methods = settings_of(DistillationConfig), settings_of_methods(entry.method)
    given = {name: value for name, value in settings.items() if value is not None}
    for_config = {name: value for name, value in given.items() if name in of_config}
    for_method = {name: value for name, value in given.items() if name in of_methods}
    elsewhere = {*of_config, *of_methods} - {*settings_of(DistillOptions)}
    others = {name: value for name, value in given.items() if name not in elsewhere}
    if entry.stored:
        others = {k: v for k, v in others.items() if k not in UNREAD_WITH_GROUPS} | {"groups": "groups"}
    config = typed(DistillationConfig, {"output_dir": spec.options.output_dir, **for_config}, where)
    options = typed(DistillOptions, {**others, "evaluate_after": False}, where)
    with _telling(where):
        config.method = read_method(entry.method, for_method, stored=entry.stored)
        check_options(options, config)
        # A method that reads credits makes its own, of the pool.
        credited = entry.stored and reads_credits(config.method)
        return options, config, method_of(config, stored=entry.stored, credited=credited)


def command_words(plan: RunPlan, root: Path, model: str) -> list[str]:
    """A command's words, its placeholders filled in."""
    values = {
        "output_dir": plan.model,
        "seed": plan.seed,
        "groups": root / "groups",
        "pairs": root / "pairs.jsonl",
        "model": model,
        "python": sys.executable,
    }
    words: Sequence[str] = plan.entry.command or ()
    filled = []
    for word in words:
        for name, value in values.items():
            word = word.replace("{" + name + "}", str(value))
        filled.append(word)
    return filled
