"""A Python function as a reward, with TRL's signature; a failure is a null with its reason, no number."""

import hashlib
import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nonpareil.errors import ConfigError
from nonpareil.records import Logged, Prompt, ScoreRequest, Scores
from nonpareil.rewards.base import REMEDY, Reward
from nonpareil.rewards.functions.calling import call, call_async, run_on_kept_loop
from nonpareil.rewards.functions.error_log import ErrorLog
from nonpareil.rewards.functions.made_with import made_with
from nonpareil.rewards.functions.trl_signature import (
    accepted_arguments,
    reads_state,
    refuse_reserved,
    unwrapped,
)
from nonpareil.rewards.functions.worker import Worker
from nonpareil.user_code.contained import CallFailed, contained
from nonpareil.user_code.load import load_function

LONE_FAILURES = 8
"""After so many completions that failed alone, and none that did not, the function is broken, not its input."""


class FunctionReward(Reward):
    """`f(prompts, completions, completion_ids, **columns) -> list[float | None]`, sync or `async def`.

    The function is called by keyword, with every dataset column if it takes **kwargs, else those it names. So it is
    given TRL's `trainer_state` (a training's; None elsewhere), `log_extra(column, values)` and `log_metric(name,
    value)`, which do nothing without a training. One that names `openings` is given what of each answer its prompt
    wrote already, such as "<think>" (None where that is not known), unless the data has a column of that name.
    In a process of its own the state is a copy of its fields.
    It gets lists of its own, and what it changes of the process (working directory, environment, streams, random
    numbers, signals, ...) is given back; what it prints goes to stderr. A call that raises, be it `SystemExit`,
    is a failure: of a sync function it is made again one completion at a time, so that only the failing ones are
    None (8 that all fail alone end that). A call that is `async` or whose connection failed is not: asking a
    server again is not free, so all of its completions are None. The first traceback is kept, see `log_errors_to`.

    Args:
        function: or its path, as `load_function` takes it.
        name: of the reward's column; by default the function's.
        timeout: seconds per call. A sync function then runs in a process of its own, which is killed
            when the time is up, so it must be importable there. An async one is cancelled where it awaits.

    Raises:
        ConfigError: not callable, a timeout that is not positive, or no other process can import it.
    """

    def __init__(
        self, function: Callable[..., Any] | str, *, name: str | None = None, timeout: float | None = None
    ) -> None:
        """See the class."""
        self._function = load_function(function) if isinstance(function, str) else function
        if not callable(self._function):
            raise ConfigError(
                f"a reward function must be callable; got a {type(function).__name__}; {REMEDY}"
            )
        is_number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
        if timeout is not None and not (is_number and timeout > 0 and math.isfinite(timeout)):
            raise ConfigError(
                f"timeout={timeout!r} must be a positive number of seconds, or None for no limit"
            )
        self.name = name or _name_of(self._function)
        self.is_async = _is_async(self._function)
        self.reads_trainer_state = reads_state(self._function)
        self._timeout = timeout
        in_process = timeout is None or self.is_async
        self._worker = None if in_process else Worker(self._function, self.name)
        self._errors = ErrorLog(self.name)
        self._made_with = made_with(self._function)  # now: an object may change as it scores

    def score(self, request: ScoreRequest) -> Scores:
        """What the function returns for each completion; None with its reason where it failed.

        Raises:
            RewardError: it returned another number of values than there are completions.
            ConfigError: it needs an argument that is no column of the data.
        """
        if len(request) == 0:
            return Scores([], [])
        try:
            if self.is_async:
                with contained(costly=True):
                    return run_on_kept_loop(self.score_async(request))
            return self._call(request)
        except CallFailed as failure:
            self._errors.tell(failure)
            return _nulls(request, failure) if failure.costly else self._one_by_one(request, failure)

    async def score_async(self, request: ScoreRequest) -> Scores:
        """As `score`, for an `async def`, awaited together with other rewards."""
        if len(request) == 0:
            return Scores([], [])
        try:
            return await call_async(self._function, request, self.name, self._timeout)
        except CallFailed as failure:
            self._errors.tell(failure)
            return _nulls(request, failure)

    def check_prompts(self, prompts: Sequence[Prompt], max_completion_length: int, tokenizer: Any) -> None:
        """Refuse a function that cannot be called for these prompts, before anything is drawn.

        Raises:
            ConfigError: it needs an argument that is no column of theirs, a column has the name of what every
                function is given, or no other process can import it.
        """
        common = set.intersection(*(set(prompt.columns) for prompt in prompts)) if prompts else set()
        names = [name for name in (prompts[0].columns if prompts else ()) if name in common]
        refuse_reserved((name for prompt in prompts for name in prompt.columns), self.name)
        accepted_arguments(self._function, self.name, ScoreRequest([], [], [], {name: [] for name in names}))
        if self._worker is not None:
            self._worker.start()

    def log_errors_to(self, folder: Path) -> None:
        """Append the first traceback to `reward-errors.log` there."""
        self._errors.keep_in(folder)

    def describe(self) -> dict[str, Any]:
        """Settings that change the scores: a hash of the function's source where there is one, and `made_with`."""
        target = unwrapped(self._function)
        try:
            written = target if inspect.isroutine(target) or inspect.isclass(target) else type(target)
            source = hashlib.sha256(inspect.getsource(written).encode()).hexdigest()[:16]
        except (OSError, TypeError):
            source = None
        return {
            "name": self.name,
            "kind": "function",
            "function": getattr(target, "__qualname__", type(target).__qualname__),
            "source": source,
            "timeout": self._timeout,
            **({"made_with": self._made_with} if self._made_with else {}),
            **({"reads_trainer_state": True} if self.reads_trainer_state else {}),
        }

    def release(self) -> None:
        """End the worker process, if there is one; the next call starts another."""
        if self._worker is not None:
            self._worker.stop()

    def _call(self, request: ScoreRequest) -> Scores:
        if self._worker is not None and self._timeout is not None:
            return self._worker.call(request, self._timeout)
        return call(self._function, request, self.name)

    def _one_by_one(self, request: ScoreRequest, failure: CallFailed) -> Scores:
        """Each completion alone, first some from all over the request; those not asked share its failure."""
        scores = _nulls(request, failure)
        if len(request) == 1:
            return scores
        succeeded = 0
        for asked, row in enumerate(_spread(len(request), LONE_FAILURES)):
            if asked >= LONE_FAILURES and not succeeded:
                break
            try:
                alone = self._call(request.select([row]))
            except CallFailed as own:
                self._errors.tell(own)
                scores.failures[row] = own.reason
                if own.costly:
                    break
            else:
                succeeded += 1
                scores.values[row], scores.failures[row] = alone.values[0], alone.failures[0]
                _add(scores.logged, alone.logged, row, len(request))
        return scores


def _add(logged: Logged, alone: Logged, row: int, rows: int) -> None:
    """To what was logged of all completions what was of one."""
    for column, values in alone.columns.items():
        logged.columns.setdefault(column, [None] * rows)[row] = values[0]
    for name, numbers in alone.metrics.items():
        logged.metrics.setdefault(name, []).extend(numbers)


def _nulls(request: ScoreRequest, failure: CallFailed) -> Scores:
    return Scores([None] * len(request), [failure.reason] * len(request))


def _spread(rows: int, first: int) -> list[int]:
    """All rows; before the others `first` of them, evenly apart."""
    probes = [row * rows // first for row in range(first)] if rows > first else []
    return [*probes, *(row for row in range(rows) if row not in probes)]


def _is_async(function: Any) -> bool:
    if not callable(function):
        return False
    # An object with an `async def __call__` counts too.
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _name_of(function: Any) -> str:
    target = unwrapped(function)
    return getattr(target, "__name__", type(target).__name__).strip("<>")
