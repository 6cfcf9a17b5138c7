"""What a reward function logs in a training, as TRL has it, and the trainer's state in another process. Light."""

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from nonpareil.errors import RewardError
from nonpareil.records import Logged, ScoreRequest
from nonpareil.rewards.functions.trl_signature import EXTRA, METRIC
from nonpareil.terminal import printable

Packed = tuple[dict[str, Any], int, list[Any]]
"""Fields of a state, the number of log lines to keep, and those to add."""


class FunctionLog:
    """The loggers of one call. What is wrong with what was logged is said behind the call, whatever it catches."""

    def __init__(self, name: str, expected: int) -> None:
        """`name`: the reward's; `expected`: how many completions it scores."""
        self._name, self._expected = name, expected
        self._logged = Logged()
        self._problem: str | None = None

    @classmethod
    def of(cls, name: str, request: ScoreRequest) -> "FunctionLog | None":
        """None where no training asks: then nothing is logged."""
        return None if request.trainer_state is None else cls(name, len(request))

    @property
    def loggers(self) -> Mapping[str, Callable[..., None]]:
        """By TRL's names."""
        return {EXTRA: self._log_extra, METRIC: self._log_metric}

    def logged(self) -> Logged:
        """All of the call.

        Raises:
            RewardError: a column without one value per completion, or a metric that is no number.
        """
        if self._problem is not None:
            raise RewardError(f"reward function {self._name!r}: {self._problem}")
        return self._logged

    def _log_extra(self, column: str, values: Sequence[Any]) -> None:
        """TRL's: a column of the table of completions, one value per completion."""
        try:
            listed = [plain(value) for value in (values.tolist() if hasattr(values, "tolist") else values)]
        except TypeError:
            listed = None
        if not isinstance(column, str) or not column:
            self._refuse(f"log_extra({column!r:.60}, ...): the column's name must be text")
        elif listed is None or isinstance(values, str | bytes | Mapping):
            self._refuse(f"log_extra({column!r:.60}, ...) takes a list of values, got a {_kind(values)}")
        elif len(listed) != self._expected:
            self._refuse(
                f"log_extra({column!r:.60}, ...) got {len(listed)} values for {self._expected} completions; give "
                "one per completion"
            )
        elif column in self._logged.columns:
            self._refuse(
                f"log_extra({column!r:.60}, ...) was called twice in one call; give each its own name"
            )
        else:
            self._logged.columns[column] = listed

    def _log_metric(self, name: str, value: Any) -> None:
        """TRL's: a number, averaged into the step's metrics."""
        if not isinstance(name, str) or not name:
            self._refuse(f"log_metric({name!r:.60}, ...): the metric's name must be text")
            return
        try:
            number = float("text" if isinstance(value, str | bytes) else value)
        except Exception:  # noqa: BLE001  (whatever an object's own method raises)
            self._refuse(f"log_metric({name!r:.60}, ...) takes a number, got a {_kind(value)}")
        else:
            self._logged.metrics.setdefault(name, []).append(number)

    def _refuse(self, problem: str) -> None:
        self._problem = self._problem or printable(problem)


def plain(value: Any) -> Any:
    """A value as Parquet, JSON and another process take it; what is none of these is its text."""
    if hasattr(value, "tolist"):  # NumPy's and torch's
        value = value.tolist()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return str(value)


class StateSender:
    """A trainer's state for another process, where each line of its log is sent once, however long that is."""

    def __init__(self) -> None:
        """Nothing sent."""
        self._history: list[Any] | None = None
        self._sent = 0

    def pack(self, state: Any) -> Packed | None:
        """Its plain fields; what callbacks keep of themselves for a resume stays here."""
        if state is None:
            return None
        fields = {k: v for k, v in vars(state).items() if k not in ("log_history", "stateful_callbacks")}
        history: list[Any] = state.log_history
        if history is not self._history or len(history) < self._sent:
            self._history, self._sent = history, 0
        kept, self._sent = self._sent, len(history)
        return {key: plain(value) for key, value in fields.items()}, kept, history[kept:]


class StateReceiver:
    """The other end, which holds the log."""

    def __init__(self) -> None:
        """Nothing received."""
        self._history: list[Any] = []

    def unpack(self, packed: Packed | None) -> SimpleNamespace | None:
        """The state's fields, `log_history` whole, in an object that needs no transformers here."""
        if packed is None:
            return None
        fields, kept, new = packed
        self._history = [*self._history[:kept], *new] if new or kept < len(self._history) else self._history
        return SimpleNamespace(**fields, log_history=self._history)


def _kind(value: Any) -> str:
    return type(value).__name__
