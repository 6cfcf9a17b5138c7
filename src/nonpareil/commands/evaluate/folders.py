"""Where an evaluation writes: what may be there, and what of it is deleted."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nonpareil.commands.places import check_output, inputs_of
from nonpareil.folders import delete_listed, writing

if TYPE_CHECKING:
    from nonpareil.commands.policies.local import LocalPolicy
    from nonpareil.options.commands import EvaluateOptions

OWNER = "evaluate"
REPORT_FILES = (
    *("report.html", "report.json", "log_ratios.parquet"),
    *("frontier.png", "curve.png", "rewards.png", "lengths.png"),
)


def group_folders(options: "EvaluateOptions") -> tuple[Path, Path]:
    """Where the policy's and the reference's groups go."""
    own = Path(options.output_dir)
    return own / "policy", Path(options.reference_dir) if options.reference_dir else own / "reference"


def check_places(options: "EvaluateOptions") -> None:
    """Refuse to write over what is read, or to delete around it; a shared reference is never deleted.

    Raises:
        ConfigError: naming output and input.
    """
    inputs, deletes = inputs_of(options), options.overwrite
    policy, reference = group_folders(options)
    for folder in (Path(options.output_dir), policy):
        check_output("output_dir", folder, inputs, deletes=deletes)
    shared = options.reference_dir is not None
    check_output(
        "reference_dir" if shared else "output_dir", reference, inputs, deletes=deletes and not shared
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
        folder.refuse_foreign(REPORT_FILES)
        policy, reference = group_folders(options)
        check_folder(policy, overwrite=options.overwrite)
        check_folder(reference, overwrite=options.overwrite and options.reference_dir is None)
        yield


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
    from nonpareil.rollouts.folder import OWNER as SAMPLE

    if folder.is_symlink():
        return
    for groups in ("policy", "reference"):
        delete_listed(folder / groups, SAMPLE)
    delete_listed(folder, OWNER)
