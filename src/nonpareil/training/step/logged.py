"""What rewards logged in a step: columns of its completions' table, and metrics beside the trainer's own."""

from collections.abc import Iterable, Mapping, Sequence

from nonpareil.errors import RewardError
from nonpareil.records import Logged, Scores
from nonpareil.terminal import printable

OWN_COLUMNS = ("step", "prompt", "completion", "drawn_by", "advantage")
"""Of the table of completions, besides one for each reward."""
_OWN_METRICS = ("epoch", "grad_norm", "learning_rate", "num_tokens", "loss", "step_time", "total_flos")
"""What a line of the log has besides the step's metrics."""


def merged_log(scores: Mapping[str, Scores]) -> Logged:
    """Of all rewards, by name.

    Raises:
        RewardError: a column that the table has already, by another reward or by itself.
    """
    logged = Logged()
    owner = {
        **dict.fromkeys(OWN_COLUMNS, "the table itself"),
        **{name: f"reward {name!r}" for name in scores},
    }
    for name, each in scores.items():
        for column, values in each.logged.columns.items():
            if column in owner:
                raise RewardError(
                    f"reward {name!r} logs a column {printable(column)!r} (log_extra), which {owner[column]} has; "
                    "give it another name"
                )
            owner[column] = f"reward {name!r}"
            logged.columns[column] = values
        for metric, numbers in each.logged.metrics.items():
            logged.metrics.setdefault(metric, []).extend(numbers)
    return logged


def split_log(logged: Logged, sizes: Sequence[int]) -> list[Logged]:
    """Of each of the groups of these sizes; the metrics, which are of all of them, with the first."""
    parts: list[Logged] = []
    start = 0
    for size in sizes:
        own = {name: values[start : start + size] for name, values in logged.columns.items()}
        parts.append(Logged(own, {} if parts else logged.metrics))
        start += size
    return parts


def logged_metrics(logged: Iterable[Logged], taken: Iterable[str]) -> dict[str, float]:
    """The mean of each metric over all that was logged, of every process; `taken`: the names of the step's own.

    Raises:
        RewardError: a metric with a name of those.
    """
    numbers: dict[str, list[float]] = {}
    for each in logged:
        for name, values in each.metrics.items():
            numbers.setdefault(name, []).extend(values)
    for name in numbers:
        if name in {*taken, *_OWN_METRICS}:
            raise RewardError(
                f"a reward logs a metric {printable(name)!r} (log_metric), which the training has itself; give it "
                "another name"
            )
    return {name: sum(values) / len(values) for name, values in numbers.items()}
