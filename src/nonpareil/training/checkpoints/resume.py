"""Which checkpoint a training goes on from, and whether it is one of this very training."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from nonpareil.errors import ConfigError, DataError
from nonpareil.models.distributed import of_first_process
from nonpareil.settings import differing, flat
from nonpareil.terminal import tell
from nonpareil.training.checkpoints.files import (
    LIST,
    checkpoints_in,
    fault_of,
    last_whole_checkpoint,
    read_list,
)
from nonpareil.training.checkpoints.identity import MAY_CHANGE

SCHEDULE = ("max_steps", "num_train_epochs")
_WORDS: dict[str, bool] = {"true": True, "false": False, "none": False, "null": False, "": False}


def resume_setting(value: Any) -> bool | Path:
    """What `resume_from_checkpoint` asks for: False for no, True for the last whole checkpoint, or its path."""
    if value is None or isinstance(value, bool):
        return bool(value)
    return _WORDS.get(str(value).strip().lower(), Path(str(value)).expanduser())


def checkpoint_to_resume(value: Any, output_dir: Path) -> Path | None:
    """The checkpoint that `resume_from_checkpoint` asks for, its files checked; None where it asks for none.

    Raises:
        ConfigError: a path at which no folder is.
        DataError: no whole checkpoint in the output folder, or the one that was named is not whole.
    """
    asked = resume_setting(value)
    if asked is False:
        return None
    return of_first_process(lambda: _last(output_dir) if asked is True else _named(Path(asked)))


def _last(output_dir: Path) -> Path:
    faults: list[str] = []
    found = last_whole_checkpoint(output_dir, lambda folder, fault: faults.append(f"{folder.name}: {fault}"))
    if found is None:
        reasons = f" ({'; '.join(faults)})" if faults else ""
        raise DataError(
            f"resume_from_checkpoint=true, but {output_dir} holds no whole checkpoint; start without it{reasons}"
        )
    for fault in faults:
        tell(f"{output_dir}: {fault}; going back to {found.name}")
    return found


def _named(folder: Path) -> Path:
    given = f"resume_from_checkpoint={str(folder)!r}"
    if not folder.is_dir():
        raise ConfigError(f"{given}: no such folder; give a checkpoint's, or true for the last one")
    fault = fault_of(folder)
    if fault is None:
        return folder
    for inside in (folder, folder.parent):
        whole = [path.name for path in checkpoints_in(inside) if path != folder and fault_of(path) is None]
        if whole:
            raise DataError(
                f"{given} is no whole checkpoint: {fault}; in {inside} these are: {', '.join(whole)}"
            )
    raise DataError(f"{given} is no whole checkpoint: {fault}; resume from another one")


def refuse_another_run(
    checkpoint: Path, now: Mapping[str, Any], steps: int, may_change: Collection[str] = MAY_CHANGE
) -> list[str]:
    """Compare a checkpoint with the training that is to go on from it; `steps` are meant in all.

    Returns what differs and may, in words.

    Raises:
        ConfigError: every setting that differs and may not, with both values; or fewer steps than were done; or
            an earlier version trained it in another way.
        DataError: nothing says what trained it.
    """
    listed = read_list(checkpoint)
    if listed is None:
        raise DataError(f"{checkpoint / LIST} cannot be read; resume from another checkpoint")
    there, here = listed["run"], now
    if there.get("training_version", 1) < here.get("training_version", 1):
        raise ConfigError(
            f"{checkpoint} is of an earlier version of Nonpareil, whose training differs; begin anew, or go on "
            "with that version"
        )
    # A setting that one side lacks came, or went, with a version of transformers.
    unknown = set(there["settings"]) ^ set(here["settings"])
    unknown |= {"end_token_ids"} & (set(there) ^ set(here))  # of a version that did not keep them
    there, here = (
        {**side["settings"], **flat({name: value for name, value in side.items() if name != "settings"})}
        for side in (there, here)
    )
    lines = {
        name: f"{name}: {then!r} there, {now!r} now"
        for name, (then, now) in differing(there, here).items()
        if name not in unknown
    }
    refused = [line for name, line in lines.items() if name not in may_change]
    if refused:
        raise ConfigError(
            f"{checkpoint} is of a training with other settings:\n  " + "\n  ".join(refused) + "\n"
            "Give it those it was trained with, or another output_dir to train anew."
        )
    if listed["step"] > steps:
        raise ConfigError(
            f"{checkpoint} is at step {listed['step']}, and {steps} are asked for (max_steps, num_train_epochs); "
            "ask for more, or resume from an earlier one"
        )
    after = {name: f"{line}: taken" for name, line in lines.items()}
    for name in SCHEDULE:
        if name in after:
            after[name] += "; from here the learning rate follows the schedule of this many"
    return list(after.values())
