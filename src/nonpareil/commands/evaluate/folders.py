"""Where an evaluation writes: what may be there, and what of it is deleted."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nonpareil.commands.places import check_output, inputs_of
from nonpareil.folders import delete_listed, writing

if TYPE_CHECKING:
    from nonpareil.commands.policies.local import LocalPolicy
    from nonpareil.options.evaluate import EvaluateOptions

OWNER = "evaluate"
REPORT_FILES = (
    *("report.html", "report.json", "log_ratios.parquet"),
    *("frontier.png", "curve.png", "rewards.png", "lengths.png"),
)
PATH_FILES = ("path.html", "path.json", "path.png")
_POLICY, _AT_STRENGTH = "policy", "strength-"


def report_folders(options: "EvaluateOptions") -> list[Path]:
    """Where reports go, and each policy's groups in `policy` there: one folder, or one for each strength."""
    own = Path(options.output_dir)
    return [own] if options.strengths is None else [own / folder_at(each) for each in options.strengths]


def folder_at(strength: float) -> str:
    """The name of a strength's folder; no two strengths have the same."""
    short = f"{strength:g}"
    return f"{_AT_STRENGTH}{short if float(short) == strength else repr(float(strength))}"


def policy_folder(report: Path) -> Path:
    """Where the groups of a report's policy go."""
    return report / _POLICY


def reference_folder(options: "EvaluateOptions") -> Path:
    """Where the reference's groups go."""
    own = Path(options.output_dir)
    return Path(options.reference_dir) if options.reference_dir else own / "reference"


def check_places(options: "EvaluateOptions") -> None:
    """Refuse to write over what is read, or to delete around it; a shared reference is never deleted.

    Raises:
        ConfigError: naming output and input.
    """
    inputs, deletes = inputs_of(options), options.overwrite
    for folder in (Path(options.output_dir), *map(policy_folder, report_folders(options))):
        check_output("output_dir", folder, inputs, deletes=deletes)
    shared = options.reference_dir is not None
    check_output(
        "reference_dir" if shared else "output_dir",
        reference_folder(options),
        inputs,
        deletes=deletes and not shared,
    )


@contextmanager
def evaluation_folder(options: "EvaluateOptions") -> Iterator[None]:
    """Hold output_dir against other processes, once it is known that nothing there is in the way.

    Raises:
        ConfigError: a folder that cannot be written to, that another process holds, or that holds what is not ours
            to replace; before any work.
    """
    from nonpareil.rollouts.folder import check_folder

    with writing(options.output_dir, OWNER) as folder:
        folder.refuse_other_command()
        folder.refuse_foreign(_written(options))
        for report in report_folders(options):
            check_folder(policy_folder(report), overwrite=options.overwrite)
        check_folder(reference_folder(options), overwrite=options.overwrite and options.reference_dir is None)
        yield


def _written(options: "EvaluateOptions") -> list[str]:
    """The reports' files, relative to output_dir."""
    if options.strengths is None:
        return list(REPORT_FILES)
    folders = [folder.name for folder in report_folders(options)]
    return [*PATH_FILES, *(f"{folder}/{name}" for folder in folders for name in REPORT_FILES)]


def check_loadable(*sides: "LocalPolicy") -> None:
    """Load each once more than needed, before groups of an earlier evaluation are deleted for theirs.

    Raises:
        ModelError: one that cannot be loaded, or not be drawn from.
    """
    from nonpareil.models.memory import free_memory

    for side in sides:
        side.engine(1)  # which also asks whether it can be drawn from
        free_memory()


def delete_evaluation(folder: Path) -> None:
    """Delete what an evaluation wrote in its folder, a shared reference not among it; what else is there stays.

    Raises:
        ConfigError: another process works there.
    """
    if folder.is_symlink():
        return
    _delete_groups(policy_folder(folder), folder / "reference")
    delete_strengths(folder)
    delete_listed(folder, OWNER)


def delete_strengths(folder: Path) -> None:
    """Delete the groups of an evaluation's policies of other strengths; reports and the rest stay.

    Raises:
        ConfigError: another process works there.
    """
    if not folder.is_symlink():
        _delete_groups(*folder.glob(f"{_AT_STRENGTH}*/{_POLICY}"))


def _delete_groups(*folders: Path) -> None:
    from nonpareil.rollouts.folder import OWNER as SAMPLE

    for groups in folders:
        if not groups.parent.is_symlink():
            delete_listed(groups, SAMPLE)
