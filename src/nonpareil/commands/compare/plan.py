"""From a comparison's file to its runs: each run's settings, its share of the budget, what its folder must hold."""

import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonpareil.commands.compare.budget import refuse_pool_over_budget, schedule
from nonpareil.commands.compare.inputs import Inputs, files_of
from nonpareil.commands.compare.spec import CompareOptions, ComparisonSpec, MethodEntry
from nonpareil.commands.distill.run import check
from nonpareil.errors import ConfigError
from nonpareil.files import jsonable
from nonpareil.options.commands import DistillOptions
from nonpareil.options.rewards import RewardOptions, without_addresses
from nonpareil.options.shared import ModelOptions, PromptOptions
from nonpareil.options.yaml import refuse_unknown, typed
from nonpareil.settings import read_settings, settings_of

if TYPE_CHECKING:
    from nonpareil.methods.base import Method
    from nonpareil.training.config import DistillationConfig

SHARED = (
    *(
        f.name
        for cls in (ModelOptions, PromptOptions, RewardOptions)
        for f in fields(cls)
        if f.name != "dtype"
    ),
    *("dataset_train_split", "max_completion_length", "temperature"),
)
"""Distill's keys that the comparison's file gives at its top, for all runs."""
UNREAD_WITH_GROUPS = ("dataset_name", "dataset_train_split", "dataset_config", "prompt_column")
"""Those of them that a run does not read whose prompts are those of stored groups."""
_SET_HERE = (
    *("output_dir", "groups", "seed", "overwrite", "resume_from_checkpoint", "dry_run", "max_train_seconds"),
    "save_total_limit",
    *(
        "evaluate_after",
        "eval_dataset_name",
        "dataset_test_split",
        "max_eval_prompts",
        "num_generations_eval",
    ),
    *("unseen_reward", "kl_dtype", "num_reference_samples_eval"),
)
_REMEDY = {
    "seed": "seeds at the top has one for each run",
    "groups": "say stored: true to learn from the shared groups",
    "unseen_reward": "gold_reward at the top is evaluated for all runs",
    "max_train_seconds": "budget.seconds sets it",
    "save_total_limit": "checkpoints at the top says how many are kept to be evaluated",
    "kl_dtype": "evaluation.kl_dtype sets it",
    "num_generations_eval": "evaluation.num_generations sets it",
}


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

    def identity(self, pool: Mapping[str, Any], inputs: Inputs, seconds: float | None) -> dict[str, Any]:
        """What the folder was made with; a folder of another identity is not this run's."""
        made_with: dict[str, Any] = {
            "settings": without_addresses(
                DistillOptions, self.settings
            ),  # a served reward may move to another port
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
    for where, settings in (
        ("training", spec.training),
        *((f"methods.{e.name}", e.settings) for e in spec.methods),
    ):
        _refuse_shared(settings, where)
    spec = _with_values(spec)
    planned = [_command(spec, e) if e.command else _distillation(spec, e) for e in spec.methods]
    return [make(seed) for seed in spec.options.seeds for make in planned]


def changed(made: Mapping[Path, dict[str, Any]], *, overwrite: bool, file: str) -> list[Path]:
    """Hold folders against what they must hold now; `made` has each folder's identity.

    Gives the folders that were made with other settings, which are refused without `overwrite`. A folder without
    the file was never begun.

    Raises:
        ConfigError: naming every setting that differs, in every folder.
    """
    from nonpareil.commands.compare.results import differing

    lines: list[str] = []
    stale: list[Path] = []
    for folder, identity in made.items():
        if not (folder / file).is_file():
            continue
        stored = json.loads((folder / file).read_text(encoding="utf-8"))
        if not (differences := differing(identity, stored)):
            continue
        stale.append(folder)
        lines += [f"  {folder}: {difference}" for difference in differences]
    if lines and not overwrite:
        raise ConfigError(
            "these were made with other settings (there instead of now):\n" + "\n".join(lines) + "\n"
            "Give another output_dir, or --overwrite to make them anew; the rest is kept."
        )
    return stale


def _refuse_shared(settings: Mapping[str, Any], where: str) -> None:
    from nonpareil.training.config import DistillationConfig

    for key, value in settings.items():
        if key in SHARED:
            raise ConfigError(
                f"{where}.{key}={value!r}: runs that differ in it cannot be compared; set {key} at the top, for all"
            )
        if key in _SET_HERE or (key == "method" and where == "training"):
            raise ConfigError(
                f"{where}.{key}={value!r} is set by the comparison; {_REMEDY.get(key, 'remove it')}"
            )
    known = [f.name for cls in (DistillOptions, DistillationConfig) for f in fields(cls) if f.init]
    refuse_unknown(settings, known, where)


def _with_values(spec: ComparisonSpec) -> ComparisonSpec:
    """The settings of training and methods as values of their types, which YAML's may not be yet."""
    from nonpareil.training.config import DistillationConfig

    def values(settings: Mapping[str, Any], where: str) -> dict[str, Any]:
        read: dict[str, Any] = {}
        for name, given in settings.items():
            cls = DistillationConfig if name in settings_of(DistillationConfig) else DistillOptions
            read |= read_settings(cls, {name: given}, f"{where}.")
        return read

    methods = tuple(replace(e, settings=values(e.settings, f"methods.{e.name}")) for e in spec.methods)
    return replace(spec, training=values(spec.training, "training"), methods=methods)


def _command(spec: ComparisonSpec, entry: MethodEntry) -> Callable[[int], RunPlan]:
    program = (entry.command or ("",))[0]
    if program != "{python}" and shutil.which(program) is None:
        raise ConfigError(
            f"methods.{entry.name}.command: there is no program {program!r}; {{python}} is this Python"
        )
    used = spec.pool.completions if spec.pool and entry.stored else 0
    refuse_pool_over_budget(spec, entry, used)
    return _plan(spec, entry, {"command": list(entry.command or ())}, used)


def _distillation(spec: ComparisonSpec, entry: MethodEntry) -> Callable[[int], RunPlan]:
    settings = {name: getattr(spec.options, name) for name in SHARED}
    settings |= {"disable_tqdm": True, "report_to": "none", **spec.training, **entry.settings}
    settings["method"] = entry.method
    where = f"methods.{entry.name}"
    unsaved = {name: value for name, value in settings.items() if not name.startswith("save_")}
    config, prompts = _typed({**unsaved, "save_strategy": "no"}, where, spec.options, entry)
    method = _method(config, entry)
    used = 0
    if entry.stored and spec.pool:
        pool_prompts = spec.pool.max_prompts or 0
        if (prompts or 0) > pool_prompts:
            raise ConfigError(
                f"{where}: max_train_prompts={prompts}, but groups.max_prompts={pool_prompts}; lower one or raise "
                "the other"
            )
        if (least := getattr(method, "smallest_group", 1)) > spec.pool.num_generations:
            raise ConfigError(
                f"{where}: needs {least} stored completions a prompt; raise "
                f"groups.num_generations={spec.pool.num_generations}, or lower n"
            )
        used = (prompts or pool_prompts) * spec.pool.num_generations
    refuse_pool_over_budget(spec, entry, used)
    settings |= schedule(spec, entry, config, method, used)
    config, _ = _typed(settings, where, spec.options, entry)
    _method(config, entry)  # once more: checkpoints may not part steps on the same draws
    if entry.stored:
        settings = {k: v for k, v in settings.items() if k not in UNREAD_WITH_GROUPS}
    kept = {name: value for name, value in settings.items() if value is not None}
    return _plan(spec, entry, kept, used)


def _method(config: "DistillationConfig", entry: MethodEntry) -> "Method":
    from nonpareil.training.method import method_of

    try:
        return method_of(config, stored=entry.stored)
    except ConfigError as error:
        raise ConfigError(f"methods.{entry.name}: {error}") from error


def _plan(
    spec: ComparisonSpec, entry: MethodEntry, settings: dict[str, Any], used: int
) -> Callable[[int], RunPlan]:
    """A run that lacks only its seed."""

    def made(seed: int) -> RunPlan:
        folder = Path(spec.options.output_dir) / "runs" / entry.name / f"seed-{seed}"
        own = settings if entry.command else {**settings, "seed": seed}
        share = used / spec.pool.completions if spec.pool and used else 0.0
        return RunPlan(entry, seed, folder, own, used, share)

    return made


def _typed(
    settings: Mapping[str, Any], where: str, common: CompareOptions, entry: MethodEntry
) -> tuple["DistillationConfig", int | None]:
    """Settings as `nonpareil distill` will read them, and max_train_prompts."""
    from nonpareil.training.config import DistillationConfig

    names = {f.name for f in fields(DistillationConfig)}
    given = {name: value for name, value in settings.items() if value is not None}
    config = typed(
        DistillationConfig,
        {"output_dir": common.output_dir, **{k: v for k, v in given.items() if k in names}},
        where,
    )
    given = {k: v for k, v in given.items() if k not in names}
    if entry.stored:
        given = {k: v for k, v in given.items() if k not in UNREAD_WITH_GROUPS} | {"groups": "groups"}
    options = typed(DistillOptions, {**given, "evaluate_after": False}, where)
    try:
        check(options, config)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    return config, options.max_train_prompts


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
