"""Train a policy by several methods and seeds under one budget, evaluate all alike, and write one report."""

import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonpareil.commands import export, sample
from nonpareil.commands.compare.budget import over_budget
from nonpareil.commands.compare.evaluator import Evaluator, read_json
from nonpareil.commands.compare.folders import (
    check_places,
    clear_command,
    delete_pool,
    delete_run,
    listing,
    stale_folders,
)
from nonpareil.commands.compare.inputs import read_inputs
from nonpareil.commands.compare.plan import RunPlan, command_words, plan_runs
from nonpareil.commands.compare.processes import last_lines, locked, run_logged
from nonpareil.commands.compare.spec import CompareOptions, ComparisonSpec, PoolOptions, read_spec
from nonpareil.commands.distill.folder import is_begun
from nonpareil.commands.distill.spent import spent_before
from nonpareil.console import console
from nonpareil.errors import ConfigError, NonpareilError
from nonpareil.files import jsonable, write_bytes, write_json
from nonpareil.options.distill import DistillOptions
from nonpareil.options.rewards import RewardOptions, without_addresses
from nonpareil.options.shared import ModelOptions, PromptOptions
from nonpareil.options.yaml import dump_yaml
from nonpareil.setting_types import check_value
from nonpareil.settings import settings_of, values_of

if TYPE_CHECKING:
    from nonpareil.commands.compare.results import RunRecord

SETTINGS, DONE, PAIRS = "settings.json", "done.json", "pairs.jsonl"
POOL, DRAWN = "pool.json", "drawn.json"


class RunFailed(NonpareilError):
    """A run that did not finish; the others go on."""


def run(
    config: str | Path, *, output_dir: str | None = None, overwrite: bool = False, only: str | None = None
) -> dict[str, Any]:
    """Run what is missing of the comparison in a YAML file, and write the report from all that is there.

    `only` names one method to run. `overwrite` makes anew what was made with other settings, and keeps the rest.
    Returns the `ComparisonReport` (None where nothing is finished), the page's path, the failures and the runs
    that are over the budget.

    Raises:
        NonpareilError: whatever cannot work, before anything is computed.
        KeyboardInterrupt: after the run at work has saved a checkpoint; the same command goes on from there.
    """
    check_value("config", config, str | Path)
    check_value("output_dir", output_dir, str | Path | None, path=True)
    spec = read_spec(config, output_dir)
    plans = plan_runs(spec)
    names = [entry.name for entry in spec.methods]
    if only is not None and only not in names:
        raise ConfigError(f"only={only!r} is no method that the file compares; there are {', '.join(names)}")
    check_places(spec, plans, Path(config), overwrite=overwrite)
    with locked(Path(spec.options.output_dir)) as lock:
        return _Comparison(spec, plans, lock, overwrite).run(
            [p for p in plans if only in (None, p.entry.name)]
        )


class _Comparison:
    def __init__(self, spec: ComparisonSpec, plans: Sequence[RunPlan], lock: int, overwrite: bool):
        self.spec, self.options, self.plans, self.lock = spec, spec.options, plans, lock
        self.root = Path(spec.options.output_dir)
        self.console = console(soft_wrap=True)
        inputs = read_inputs(spec, {p.entry.name: p.settings for p in plans if p.makes_credits})
        self.evaluator = Evaluator(spec, inputs)
        self.pool_identity = {**(jsonable(spec.pool) or {}), **self.evaluator.drawing()}
        self.identities = {
            plan.folder: plan.identity(self.pool_identity, inputs, spec.budget.seconds) for plan in plans
        }
        self.overwrite = overwrite
        pool = {self.root / "groups": self.pool_identity}
        stale_runs = stale_folders(self.identities, overwrite=overwrite, file=SETTINGS)
        stale_pool = stale_folders(pool, overwrite=overwrite, file=POOL)
        if self.evaluator.is_stale(plans, overwrite=overwrite):
            self.evaluator.delete()
        for folder in stale_runs:  # only now that all has been checked
            delete_run(folder, DONE, SETTINGS)
        for folder in stale_pool:
            delete_pool(folder, POOL)

    def run(self, todo: Sequence[RunPlan]) -> dict[str, Any]:
        """Everything that is missing, run by run, then the report."""
        self._draw_pool(todo)
        failures = []
        for place, plan in enumerate(todo, 1):
            where = f"[{place}/{len(todo)}] {plan.label}"
            try:
                self._train(plan, where)
                self._say(f"{where}: {self.evaluator.evaluate(plan)}")
            except KeyboardInterrupt:
                self._say(f"{where}: stopped; the same command goes on from here")
                raise
            except (NonpareilError, OSError, ValueError, RuntimeError) as error:
                failures.append({"run": plan.label, "reason": str(error)})
                self._say(f"{where}: failed, {_first_line(error)}", style="red")
        return self._report(failures)

    def _say(self, text: str, style: str = "") -> None:
        self.console.print(text, style=style)

    def _draw_pool(self, todo: Sequence[RunPlan]) -> None:
        """The stored groups that some of the runs learn from, and their pairs where a command asks for them."""
        if self.spec.pool is None or not any(plan.pool_completions for plan in todo):
            return
        folder, pool = self.root / "groups", self.spec.pool
        state = read_json(folder / DRAWN) or {"complete": False, "seconds": 0.0}
        if not state["complete"]:
            self._say(f"Drawing {pool.completions} completions for the stored pool")
            begun = time.monotonic()
            try:
                sample.run(self._pool_options(pool, folder))
                state["complete"] = True
            finally:
                state["seconds"] += time.monotonic() - begun
                if (folder / "manifest.json").is_file():  # else the folder must stay fit to draw into
                    write_json(folder / POOL, self.pool_identity)
                    write_json(folder / DRAWN, state)
            root, pairs = listing(self.root / PAIRS)
            root.delete(pairs)
        if any(plan.entry.uses("pairs") for plan in todo) and not (self.root / PAIRS).is_file():
            export.run(export.ExportOptions(groups=str(folder), output=str(self.root / PAIRS)))

    def _pool_options(self, pool: PoolOptions, folder: Path) -> sample.SampleOptions:
        return sample.SampleOptions(
            **values_of(self.options, ModelOptions, PromptOptions, RewardOptions),
            dataset_split=self.options.dataset_train_split,
            max_prompts=pool.max_prompts,
            num_generations=pool.num_generations,
            max_completion_length=self.options.max_completion_length,
            temperature=self.options.temperature,
            seed=pool.seed,
            output_dir=str(folder),
            # What a killed run left without saying what it is; `stale_folders` has seen to the rest.
            overwrite=self.overwrite and not (folder / POOL).is_file(),
        )

    def _pool_seconds(self, plan: RunPlan) -> float:
        """What drawing the plan's part of the pool took."""
        return plan.pool_share * (read_json(self.root / "groups" / DRAWN) or {"seconds": 0.0})["seconds"]

    def _train(self, plan: RunPlan, where: str) -> None:
        """One run in a process of its own, unless it is done."""
        from nonpareil.models.pretrained import holds_model

        if (plan.folder / DONE).is_file():
            self._say(f"{where}: trained already")
            return
        plan.folder.mkdir(parents=True, exist_ok=True)
        write_json(plan.folder / SETTINGS, self.identities[plan.folder])
        words = self._words(plan)
        log = plan.folder / "log.txt"
        resumed = ", taken up from its last checkpoint" if "--resume_from_checkpoint" in words else ""
        self._say(f"{where}: training{resumed}; log in {log}")
        begun = time.monotonic()
        root, listed = listing(log)
        with (
            root.adding(listed),
            root.adding(listing(plan.model)[1]) if plan.entry.command else nullcontext(),
        ):
            ended = run_logged(words, log, self.lock)
        if ended.status:
            raise RunFailed(
                f"the process ended with status {ended.status} ({_duration(time.monotonic() - begun)}); the end "
                f"of {log}:\n{last_lines(log)}"
            )
        if not holds_model(plan.model):
            raise RunFailed(
                f"it left no model in {plan.model} (no config.json or adapter_config.json); see {log}"
            )
        spent: dict[str, Any] = {"seconds": ended.seconds, "peak_memory_bytes": ended.peak_memory_bytes}
        spent |= read_json(plan.model / "spent.json") or {}
        if before := {} if plan.entry.command else spent_before(plan.model):
            spent["made_before"] = before
        write_json(plan.folder / DONE, spent)
        self._say(f"{where}: trained in {_duration(time.monotonic() - begun)}")

    def _words(self, plan: RunPlan) -> list[str]:
        from nonpareil.training.checkpoints.files import last_whole_checkpoint

        if plan.entry.command:
            if (aside := clear_command(plan.model)) is not None:  # whether it can go on is not ours to know
                self._say(f"{plan.label}: what was in {plan.model} may be yours, and is now in {aside}")
            return command_words(plan, self.root, self.options.model_name_or_path or "")
        settings = {**plan.settings, "output_dir": str(plan.model), "evaluate_after": False}
        if plan.pool_completions:
            settings["groups"] = str(self.root / "groups")
        if (seconds := self.spec.budget.seconds) is not None:
            settings["max_train_seconds"] = seconds - self._pool_seconds(plan)
            if settings["max_train_seconds"] <= 0:
                raise RunFailed(
                    f"drawing its stored pool took {self._pool_seconds(plan):.0f} s, all of "
                    f"budget.seconds={seconds:g}; raise the budget or lower groups.max_prompts"
                )
        # No file of the comparison holds an address: those go along as flags, which prevail.
        kept = without_addresses(DistillOptions, settings)
        file = write_bytes(plan.folder / "run.yaml", dump_yaml(jsonable(kept)).encode())
        words = [sys.executable, "-m", "nonpareil.cli.main", "distill", "--config", str(file)]
        for name, value in settings.items():
            if kept[name] != value:
                words += [f"--{name}", *([value] if isinstance(value, str) else value)]
        if last_whole_checkpoint(plan.model) is not None:
            return [*words, "--resume_from_checkpoint", "true"]
        # A value and credits alone, of a run that was killed before its first checkpoint, serve it again.
        return words if is_begun(plan.model) else [*words, "--overwrite", "true"]

    def _report(self, failures: list[dict[str, str]]) -> dict[str, Any]:
        """From every run of the file that is finished, whether or not this call ran it."""
        from nonpareil.commands.compare.report import write_comparison
        from nonpareil.commands.compare.results import compare_runs

        records: list[RunRecord] = []
        for plan in sorted(self.plans, key=lambda plan: self.spec.methods.index(plan.entry)):
            if (record := self.evaluator.record(plan, self._pool_seconds(plan))) is not None:
                records.append(record)
        over = over_budget(self.spec, records)
        result: dict[str, Any] = {"output_dir": str(self.root), "failures": failures, "over_budget": over}
        if not records:
            return {**result, "report": None, "comparison": None}
        report = compare_runs(
            records,
            self.evaluator.curve(records[0].folder),
            self.evaluator.reference_rewards(),
            self.spec.evaluation.at_win_rates,
        )
        page = write_comparison(
            report,
            self.root,
            title=self.options.title,
            context=self._context(),
            failures=failures,
            over_budget=over,
        )
        return {**result, "report": str(page), "comparison": report}

    def _context(self) -> dict[str, Any]:
        from nonpareil.rollouts.manifest import versions

        shared = settings_of(CompareOptions)
        settings = {
            plan.entry.name: {name: value for name, value in plan.settings.items() if name not in shared}
            for plan in self.plans
        }
        return {
            "policy": self.options.model_name_or_path,
            "prompts": {"training": self.options.prompt_source, "held out": self.spec.eval_source},
            "budget": {k: v for k, v in vars(self.spec.budget).items() if v is not None},
            "pool": jsonable(self.spec.pool) if self.spec.pool else None,
            "seeds": self.options.seeds,
            "evaluation": jsonable({**vars(self.spec.evaluation), **self.evaluator.settings}),
            "methods": settings,
            "versions": versions(),
        }


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
