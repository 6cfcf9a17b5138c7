"""What of a comparison's folder is deleted to be made anew: what our lists have, and nothing behind a link."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonpareil.commands.compare.protocol import other_settings
from nonpareil.commands.distill.folder import MADE_BEFORE
from nonpareil.commands.evaluate.folders import delete_evaluation
from nonpareil.commands.places import check_output, inputs_among, inputs_of
from nonpareil.errors import ConfigError
from nonpareil.folders import delete_listed, held_folder
from nonpareil.markers import OutputFolder

if TYPE_CHECKING:
    from nonpareil.commands.compare.plan import RunPlan
    from nonpareil.commands.compare.spec import ComparisonSpec


def check_places(spec: "ComparisonSpec", plans: "list[RunPlan]", config: Path, *, overwrite: bool) -> None:
    """Refuse to write over what is read, or to delete around it; a run may be begun anew even without `overwrite`.

    Raises:
        ConfigError: naming output and input.
    """
    from nonpareil.options.distill import DistillOptions
    from nonpareil.training.config import DistillationConfig

    inputs = inputs_of(spec.options)
    for settings in (spec.training, *({**entry.settings, "method": entry.method} for entry in spec.methods)):
        inputs += inputs_among(DistillOptions, settings) + inputs_among(DistillationConfig, settings)
    words = [word for entry in spec.methods for word in entry.command or ()]
    inputs += [("config", config), *(("command", Path(word)) for word in words if Path(word).is_file())]
    root = Path(spec.options.output_dir)
    check_output("output_dir", root, inputs, deletes=overwrite)
    for folder in (root / "groups", root / "reference", *(plan.folder for plan in plans)):
        check_output("output_dir", folder, inputs, deletes=overwrite)
    for plan in plans:
        check_output("output_dir", plan.model, inputs, deletes=True)


def stale_folders(made: Mapping[Path, dict[str, Any]], *, overwrite: bool, file: str) -> list[Path]:
    """The folders that were made with other settings than now, which are refused without `overwrite`.

    `made` has the identity that each folder must have now, as its `file` tells it; a folder without the file was
    never begun.

    Raises:
        ConfigError: naming every setting that differs, in every folder.
    """
    lines: list[str] = []
    stale: list[Path] = []
    for folder, identity in made.items():
        if not (folder / file).is_file():
            continue
        there = json.loads((folder / file).read_text(encoding="utf-8"))
        if not (differences := other_settings(identity, there)):
            continue
        stale.append(folder)
        lines += [f"  {folder}: {difference}" for difference in differences]
    if lines and not overwrite:
        raise ConfigError(
            "these were made with other settings (there instead of now):\n" + "\n".join(lines) + "\n"
            "Give another output_dir, or --overwrite to make them anew; the rest is kept."
        )
    return stale


def delete_run(folder: Path, first: str, last: str) -> None:
    """Delete a run: its file `first` (done) before all else and its file `last` (settings) behind it.

    So that a kill in between leaves neither a run that looks done nor one that looks new.
    """
    root = _root(folder)
    root.delete(_within(root, folder / first))
    if not (model := folder / "model").is_symlink():
        for name in MADE_BEFORE:
            delete_listed(model / name, name)
    delete_listed(model, "distill")
    for evaluation in sorted(folder.glob("evaluation/*/")):
        _delete_evaluation(root, evaluation)
    _delete_but(root, folder, last)


def delete_pool(folder: Path, last: str) -> None:
    """Delete stored groups, the file `last` behind all else."""
    delete_listed(folder, "sample")
    _delete_but(_root(folder), folder, last)


def delete_evaluations(root: Path, references: tuple[str, ...], last: str) -> None:
    """Delete the evaluations of all runs and the references' groups, and the file `last` behind all else.

    Also of methods and seeds that the comparison's file no longer has: it may have them again.
    """
    held = _root(root)
    for name in references:
        delete_listed(root / name, "sample")
    for evaluation in sorted(root.glob("runs/*/*/evaluation/*/")):
        _delete_evaluation(held, evaluation)
    held.delete(last)


def clear_command(folder: Path) -> Path | None:
    """Delete what a command left in its folder; what is not listed as its own is kept, in a folder beside it.

    Returns that folder, or None.
    """
    root = _root(folder)
    root.delete(_within(root, folder))
    if not os.path.lexists(folder):
        return None
    aside = next(each for each in _numbered(folder) if not os.path.lexists(each))
    folder.rename(aside)
    return aside


def listing(path: Path) -> tuple[OutputFolder, str]:
    """The comparison's list, and a path as it has it."""
    root = _root(path)
    return root, _within(root, path)


def _delete_evaluation(root: OutputFolder, folder: Path) -> None:
    if root.path in Path(os.path.realpath(folder)).parents:
        root.delete(_within(root, folder))  # its protocol first: without it, it is no finished evaluation
        delete_evaluation(folder)


def _delete_but(root: OutputFolder, folder: Path, last: str) -> None:
    inside = _within(root, folder)
    for name in root.listed(inside):
        if name != f"{inside}/{last}":
            root.delete(name)
    root.delete(inside)


def _root(path: Path) -> OutputFolder:
    folder = held_folder(path / "x")
    assert folder is not None
    return folder


def _within(root: OutputFolder, path: Path) -> str:
    return (Path(os.path.realpath(path.parent)) / path.name).relative_to(root.path).as_posix()


def _numbered(folder: Path) -> Iterator[Path]:
    number = 1
    while True:
        yield folder.with_name(f"{folder.name}-kept-{number}")
        number += 1
