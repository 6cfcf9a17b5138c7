"""A distillation's folder: what may be there when it begins, and what of it is deleted."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from nonpareil.commands.evaluate.folders import delete_evaluation, evaluation_folder
from nonpareil.commands.places import check_output, inputs_of
from nonpareil.errors import ConfigError
from nonpareil.folders import held_folder, is_bookkeeping, is_vacant, writing
from nonpareil.markers import MARKER, OutputFolder

if TYPE_CHECKING:
    from nonpareil.options.distill import DistillOptions
    from nonpareil.options.evaluate import EvaluateOptions
    from nonpareil.training.config import DistillationConfig

_MODEL_FILES = (
    *("config.json", "generation_config.json", "sampling.json", "model*.safetensors*", "pytorch_model*.bin*"),
    *("adapter_config.json", "adapter_model.safetensors", "base_model.json", "training_args.bin"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*"),
    *("vocab.json", "vocab.txt", "merges.txt", "sentencepiece*.model", "spiece.model"),
)
WRITTEN = (
    *_MODEL_FILES,
    *(f"merged/{name}" for name in _MODEL_FILES),
    *("README.md", "trainer_state.json", "spent.json"),
    *("metrics.jsonl", "reward-errors.log", "completions/*.parquet"),
)
"""Files that a distillation may write, beside its checkpoints, as globs."""
NOTES = "strength.json"
"""In the folder of a policy at a strength: which it is, and what was measured; written last."""
_PLACES = ("at-win-rate-*", "at-n-*")
MADE_BEFORE = ("groups", "value", "credits")
"""Folders in output_dir that are made before a training, each with its own list; a second try goes on there."""
_CHECKPOINTS = (
    *(f"checkpoint-*/{name}" for name in (*_MODEL_FILES, "trainer_state.json", "*.pt", "*.pth")),
    "checkpoint-*.partial/**/*",
)


@contextmanager
def distillation_folder(
    options: "DistillOptions", config: "DistillationConfig", evaluations: "Sequence[EvaluateOptions]"
) -> Iterator[None]:
    """Hold output_dir against other distillations, in the first process for all; nothing is deleted yet.

    `evaluations` are those that follow the training.

    Raises:
        ConfigError: a folder that is an input, that cannot be written to, that another process holds, that holds an
            earlier run (and neither `overwrite` nor `resume_from_checkpoint`) or what is not ours to replace.
    """
    from nonpareil.models.distributed import process_index, wait_for_all
    from nonpareil.training.checkpoints.output_folder import OWNER
    from nonpareil.training.checkpoints.resume import resume_setting

    resume, output_dir = bool(resume_setting(config.resume_from_checkpoint)), str(config.output_dir)
    if process_index() > 0:
        wait_for_all()
        yield
        return
    check_output(
        "output_dir", output_dir, inputs_of(options, config), deletes=options.overwrite and not resume
    )
    with writing(output_dir, OWNER, other="another distillation") as folder:
        _check(folder, asked_place(options), options.overwrite, resume, config.max_steps)
        for each in evaluations:
            with evaluation_folder(each):
                pass
        wait_for_all()
        yield


def folder_of_run(output_dir: Path) -> OutputFolder:
    """The output folder itself, which this process holds inside `distillation_folder`."""
    folder = held_folder(output_dir / MARKER)
    assert folder is not None, f"{output_dir} is not held"
    return folder


def asked_place(options: "DistillOptions") -> str | None:
    """The folder in output_dir of the policy that wins as often as asked; None where none is asked for."""
    if options.at_n is not None:
        return f"at-n-{options.at_n}"
    if options.at_win_rate is None:
        return None
    short = f"{options.at_win_rate:g}"
    return f"at-win-rate-{short if float(short) == options.at_win_rate else repr(options.at_win_rate)}"


def delete_policy_at(output_dir: Path, place: str) -> None:
    """Delete a policy at a strength and its evaluation; what is not ours there stays."""
    delete_evaluation(output_dir / place / "evaluation")
    folder_of_run(output_dir).delete(place)


def delete_outdated(output_dir: Path, place: str | None) -> None:
    """Delete policies at a strength of another training than the one that lies there now, and any at the place."""
    now = None
    for each in _policies_at(output_dir):
        now = now or kept_fingerprint(output_dir)
        if each == place or _trained_fingerprint(output_dir / each / NOTES) != now:
            delete_policy_at(output_dir, each)


def kept_fingerprint(output_dir: Path) -> str:
    """Of the trained policy, as the notes of one at a strength have it."""
    from nonpareil.models.fingerprint import fingerprint

    return fingerprint(str(output_dir))


def _policies_at(output_dir: Path) -> list[str]:
    """Folders in output_dir that hold a policy of ours at a strength."""
    names = folder_of_run(output_dir).entries()
    return sorted(name for name in names if any(fnmatch(name, place) for place in _PLACES))


def _trained_fingerprint(notes: Path) -> str | None:
    """None where it is not finished."""
    try:
        found = json.loads(notes.read_bytes())["trained_fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None


def start_anew(output_dir: Path) -> None:
    """Delete what an earlier run wrote, its evaluation included; what else is in the folder stays."""
    from nonpareil.training.checkpoints.files import leftovers, remove_empty, sweep

    folder = folder_of_run(output_dir)
    for place in _policies_at(output_dir):
        delete_policy_at(output_dir, place)
    delete_evaluation(output_dir / "evaluation")
    folder.delete()
    sweep(output_dir)
    for partial in leftovers(output_dir):
        remove_empty(partial)


def _check(folder: OutputFolder, place: str | None, overwrite: bool, resume: bool, max_steps: int) -> None:
    folder.refuse_other_command()
    if not folder.marked and not is_begun(folder.path):
        raise ConfigError(
            f"{folder.where} exists and has no {MARKER}, the list of what nonpareil wrote, so nothing there is "
            "deleted or replaced; name another directory, or delete all of it yourself"
        )
    if not resume and not overwrite and _is_worth_keeping(folder):
        raise ConfigError(
            f"{folder.where} exists; give --resume_from_checkpoint true to go on, --overwrite to start anew, or "
            "another output_dir"
        )
    at_place = [f"{place}/{name}" for name in (*_MODEL_FILES, NOTES)] if place else []
    folder.refuse_foreign([*WRITTEN, *at_place, *_reached(folder, max_steps, resume)])


def is_begun(path: Path) -> bool:
    """Whether there is nothing, or a value and credits alone: a run that was killed before its training."""
    begun = [path / name for name in MADE_BEFORE if (path / name / MARKER).is_file()]
    return is_vacant(path) or all(each in begun or is_bookkeeping(each) for each in path.iterdir())


def _is_worth_keeping(folder: OutputFolder) -> bool:
    """Whether there is a checkpoint or a result; a run that was killed before either is simply begun anew."""
    from nonpareil.training.checkpoints.files import STATE_FILE, checkpoint_step

    names = folder.entries()
    return STATE_FILE in names or any(checkpoint_step(name) is not None for name in names)


def _reached(folder: OutputFolder, max_steps: int, resume: bool) -> list[str]:
    """Files of checkpoints that the run could write to, or take up as its own.

    A checkpoint of ours that was cut short or changed is none: a run that goes on says so, and goes back behind it.
    """
    from nonpareil.training.checkpoints.files import PARTIAL, checkpoint_step

    def in_the_way(file: str) -> bool:
        step = checkpoint_step(file.split("/", 1)[0].removesuffix(PARTIAL))
        return step is not None and (resume or max_steps <= 0 or step <= max_steps)

    ours = set(folder.listed()) if resume else set()
    return [each for each in folder.foreign(_CHECKPOINTS) if in_the_way(each) and each not in ours]
