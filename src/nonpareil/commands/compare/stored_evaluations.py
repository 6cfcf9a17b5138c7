"""What an evaluation of a comparison left in its folder, read back; one by an earlier version is refused."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nonpareil.errors import DataError
from nonpareil.evaluation.evaluation import Evaluation
from nonpareil.evaluation.log_ratios import LogRatios, read_log_ratios


def read_evaluation(label: str, content: Mapping[str, Any]) -> Evaluation:
    """A run's evaluation from its report.json; `label` names the run.

    Raises:
        DataError: an evaluation by an earlier version, which lacks what is compared here.
    """
    lacks = None
    if "frontier" not in content["comparison"]:
        lacks = "knew no ties"
    elif "by_prompt" not in content:
        lacks = "kept no metrics of each prompt"
    try:
        if lacks is None:
            return Evaluation.from_dict(content)
    except DataError as error:
        lacks = f"did not write what is compared ({error})"
    raise _earlier_version(label, lacks)


def log_ratios_of(label: str, folder: Path) -> LogRatios:
    """The log-ratios of a run, policy against reference on the reference's completions, that its evaluation kept.

    Raises:
        DataError: they are not in its folder, or in another form: an evaluation by an earlier version.
    """
    try:
        return read_log_ratios(folder)
    except DataError as error:
        raise _earlier_version(label, f"did not write what is compared ({error})") from error


def _earlier_version(label: str, lacks: str) -> DataError:
    return DataError(
        f"{label} was evaluated by an earlier version, which {lacks}: evaluate anew (--overwrite)"
    )
