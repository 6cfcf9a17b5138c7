"""Every policy of a comparison measured alike: the same held-out prompts against the same reference groups."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonpareil.commands.compare.costs import cost_of
from nonpareil.commands.compare.folders import delete_evaluations
from nonpareil.commands.compare.inputs import Inputs
from nonpareil.commands.compare.plan import RunPlan
from nonpareil.commands.compare.protocol import other_settings
from nonpareil.commands.compare.spec import ComparisonSpec
from nonpareil.commands.evaluate import run as evaluate
from nonpareil.commands.evaluate.dtypes import products_dtype
from nonpareil.commands.evaluate.folders import folder_at
from nonpareil.errors import ConfigError, DataError
from nonpareil.files import from_jsonable, jsonable, write_json
from nonpareil.options.evaluate import EvaluateOptions
from nonpareil.options.rewards import RewardOptions, without_addresses
from nonpareil.options.shared import PromptOptions, named_prompts
from nonpareil.settings import settings_of, values_of

if TYPE_CHECKING:
    from torch import Tensor

    from nonpareil.commands.compare.results import RunRecord
    from nonpareil.evaluation.curve import CurvePoint

PROTOCOL, REPORT, SHARED_SETTINGS = "protocol.json", "report.json", "evaluation.json"
REFERENCE, REFERENCE_OF_CHECKPOINTS = "reference", "reference-checkpoints"
FINAL = "final"


class Evaluator:
    """Evaluates finished runs, once each; reads back what lies there."""

    def __init__(self, spec: ComparisonSpec, inputs: Inputs):
        self.spec, self.options = spec, spec.options
        self.root = Path(spec.options.output_dir)
        self.inputs = inputs
        products_dtype(self.options.dtype, spec.evaluation.kl_dtype)  # refused now, and not after training
        content = {
            "reference": inputs.model,
            "prompts": inputs.held_out,
            "reward": inputs.reward,
            "gold": inputs.gold,
        }
        self.settings = _as_read(
            self._measured(), without_addresses(EvaluateOptions, self._shared()), content
        )

    def drawing(self) -> dict[str, Any]:
        """What the stored pool depends on, besides its own settings."""
        options, inputs = self.options, self.inputs
        return _as_read(
            without_addresses(type(options), values_of(options, PromptOptions, RewardOptions)),
            {"split": options.dataset_train_split, "model": inputs.model},
            {"prompts": inputs.training, "reward": inputs.reward},
            {"max_completion_length": options.max_completion_length, "temperature": options.temperature},
        )

    def is_stale(self, plans: Sequence[RunPlan], *, overwrite: bool) -> bool:
        """Whether evaluations are there that cannot be compared with those to come: refused without `overwrite`.

        Raises:
            ConfigError: naming the settings that differ.
            DataError: naming runs by an earlier version, or that were not measured alike.
        """
        file = self.root / SHARED_SETTINGS
        if not file.exists() and not (self.root / REFERENCE).exists():
            return False  # nothing was drawn: the file comes first
        if not (differences := other_settings(self.settings, read_json(file) or {})):
            return self._are_unlike(plans, overwrite=overwrite)
        if not overwrite:
            raise ConfigError(
                "the evaluations were made with other settings (there instead of now):\n"
                + "\n".join(f"  {file}: {difference}" for difference in differences)
                + "\nGive another output_dir, or --overwrite to evaluate anew; the models are kept."
            )
        return True

    def _are_unlike(self, plans: Sequence[RunPlan], *, overwrite: bool) -> bool:
        """Whether those that are there cannot be compared; told now, and not after the other runs' training."""
        from nonpareil.commands.compare.results import refuse_unlike

        try:
            found = [self.record(plan, 0.0) for plan in plans]
            refuse_unlike([record for record in found if record is not None])
        except DataError:
            if overwrite:
                return True
            raise
        return False

    def delete(self) -> None:
        """Delete all evaluations and the reference's groups, as far as they are ours."""
        delete_evaluations(self.root, (REFERENCE, REFERENCE_OF_CHECKPOINTS), SHARED_SETTINGS)

    def evaluate(self, plan: RunPlan) -> str:
        """The final policy on all prompts, then checkpoints and strengths on fewer; the result in words.

        What is there already is not done again.

        Raises:
            NonpareilError: a model that cannot be evaluated.
        """
        points: list[tuple[str, Path, float | None]] = [(FINAL, plan.model, None)]
        points += [(name, model, None) for name, model in self._checkpoints(plan)]
        points += [(folder_at(each), plan.model, each) for each in self.spec.evaluation.strengths or ()]
        for name, model, strength in points:
            folder = plan.folder / "evaluation" / name
            if (folder / PROTOCOL).is_file():
                continue
            write_json(self.root / SHARED_SETTINGS, self.settings)  # before anything is drawn with them
            options = self._options(plan, name, model, folder)
            evaluate.run(options, strength)
            # Last, so that a folder with a protocol is a whole evaluation.
            write_json(folder / PROTOCOL, _protocol(folder, Path(options.reference_dir or "")))
        return f"evaluated. {_report_of(plan.folder / 'evaluation' / FINAL)['headline']}"

    def record(self, plan: RunPlan, pool_seconds: float) -> "RunRecord | None":
        """A finished run's results from disk; None where it is not finished.

        Raises:
            DataError: an evaluation by an earlier version.
        """
        from nonpareil.commands.compare.results import AtStrength, Checkpoint, RunRecord
        from nonpareil.commands.compare.stored_evaluations import log_ratios_of, read_evaluation

        folder = plan.folder / "evaluation"
        done, protocol = read_json(plan.folder / "done.json"), read_json(folder / FINAL / PROTOCOL)
        if done is None or protocol is None:
            return None
        return RunRecord(
            name=plan.entry.name,
            seed=plan.seed,
            evaluation=read_evaluation(plan.label, _report_of(folder / FINAL)["evaluation"]),
            checkpoints=tuple(
                Checkpoint(
                    _step(model),
                    read_evaluation(f"{plan.label}, {name}", _report_of(folder / name)["evaluation"]),
                )
                for name, model in self._checkpoints(plan)
                if (folder / name / PROTOCOL).is_file()
            ),
            spent=cost_of(
                done, plan.pool_completions, pool_seconds, of_command=plan.entry.command is not None
            ),
            protocol=protocol,
            folder=plan.folder.relative_to(self.root).as_posix(),
            stored=plan.pool_completions > 0,
            log_ratios=log_ratios_of(plan.label, folder / FINAL),
            strengths=tuple(
                AtStrength(
                    strength,
                    read_evaluation(f"{plan.label}, {name}", _report_of(folder / name)["evaluation"]),
                )
                for strength in self.spec.evaluation.strengths or ()
                if (folder / (name := folder_at(strength)) / PROTOCOL).is_file()
            ),
        )

    def reference_rewards(self) -> "dict[str, Tensor]":
        """Those of the reference's completions [M] that final policies were held against, by prompt id."""
        import torch

        from nonpareil.evaluation.groups import rewards_of
        from nonpareil.records import GroupNumbers
        from nonpareil.rollouts.numbers import read_numbers

        groups, _ = read_numbers(self.root / REFERENCE)
        if isinstance(groups, GroupNumbers):
            return dict(zip(groups.prompt_ids, torch.from_numpy(groups.rewards), strict=True))
        return {group.prompt_id: rewards_of([group])[0] for group in groups}

    def curve(self, run_folder: str) -> "tuple[CurvePoint, ...]":
        """What best-of-N of the reference is worth, as any final evaluation tells it."""
        from nonpareil.evaluation.curve import CurvePoint

        points = _report_of(self.root / run_folder / "evaluation" / FINAL)["curve"]["points"]
        return from_jsonable(tuple[CurvePoint, ...], points, "curve.points")

    def _checkpoints(self, plan: RunPlan) -> list[tuple[str, Path]]:
        """Those to be evaluated, evenly chosen among the ones that the run left before its end."""
        from nonpareil.models.pretrained import holds_model

        done = read_json(plan.folder / "done.json") or {}
        found = [path for path in plan.model.glob("checkpoint-*") if holds_model(path)]
        found = sorted((path for path in found if path.name.rsplit("-", 1)[1].isdigit()), key=_step)
        state = read_json(found[-1] / "trainer_state.json") or {} if found else {}
        last = done.get("steps") or state.get("max_steps")  # the final model itself
        found = [path for path in found if last is None or _step(path) < last]
        wanted = min(self.options.checkpoints, len(found))
        return [
            (path.name, path) for path in (found[(i + 1) * len(found) // wanted - 1] for i in range(wanted))
        ]

    def _shared(self) -> dict[str, Any]:
        """What every evaluation has in common, as `EvaluateOptions` takes it."""
        options, evaluation = self.options, self._measured()
        return {
            **values_of(options, PromptOptions, RewardOptions),
            **named_prompts(self.spec.eval_source),
            "dataset_split": self.spec.eval_split,
            "max_prompts": options.max_eval_prompts,
            "dtype": options.dtype,
            "n": options.n,
            "unseen_reward": options.gold_reward,
            "max_completion_length": options.max_completion_length,
            "temperature": options.temperature,
            # Of the section `evaluation` what `nonpareil evaluate` has by the same name.
            **{name: value for name, value in evaluation.items() if name in settings_of(EvaluateOptions)},
        }

    def _measured(self) -> dict[str, Any]:
        """How every policy is measured: without which points of its path are, and what is told of the path."""
        settings = vars(self.spec.evaluation)
        return {name: value for name, value in settings.items() if name not in ("strengths", "at_win_rates")}

    def _options(self, plan: RunPlan, name: str, model: Path, folder: Path) -> EvaluateOptions:
        evaluation, reference, fewer = self.spec.evaluation, REFERENCE, {}
        limit = self.options.max_eval_prompts
        if name != FINAL:
            fewer = {"num_generations": evaluation.checkpoint_num_generations}
            if limit is None or evaluation.checkpoint_prompts < limit:
                # The same draws for these prompts: a draw follows from the seed and the prompt's id.
                reference = REFERENCE_OF_CHECKPOINTS
                fewer["max_prompts"] = evaluation.checkpoint_prompts
        return EvaluateOptions(
            **{**self._shared(), **fewer},
            model_name_or_path=str(model),
            reference_model_name_or_path=self.options.model_name_or_path,
            reference_model_revision=self.options.model_revision,
            gguf_file=None,  # what was trained is a plain folder
            reference_gguf_file=self.options.gguf_file,
            output_dir=str(folder),
            reference_dir=str(self.root / reference),
            title=f"{plan.label}{'' if name == FINAL else ', ' + name}",
        )


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _as_read(*settings: Mapping[str, Any]) -> dict[str, Any]:
    """All of them, as a JSON file gives them back."""
    return json.loads(
        json.dumps(jsonable({name: value for each in settings for name, value in each.items()}))
    )


def _report_of(folder: Path) -> dict[str, Any]:
    """What an evaluation wrote."""
    return json.loads((folder / REPORT).read_text(encoding="utf-8"))


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])


def _protocol(folder: Path, reference: Path) -> dict[str, Any]:
    """What was really measured with what, from the manifests and shards of both sides."""
    policy = _drawn(folder / "policy")
    policy["model"] = None  # the one thing that may differ
    return {"policy": policy, "reference": _drawn(reference)}


def _drawn(folder: Path) -> dict[str, Any]:
    from nonpareil.rollouts.manifest import read_manifest
    from nonpareil.rollouts.store import notes_of, read_table, shard_path

    draw = (read_manifest(folder) or {})["draw"]
    notes = notes_of(read_table(shard_path(folder, 0)).schema)
    kept = {name: draw[name] for name in ("sampling", "seed", "num_generations", "prompts")}
    return {
        **kept,
        "model": draw["model"]["fingerprint"],
        "rewards": notes.rewards,
        "weights": notes.aggregate,
    }
