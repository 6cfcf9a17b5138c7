"""Call a reward function by TRL's convention and read what it returns. Light, for the worker's sake."""

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

from nonpareil.errors import ConfigError, RewardError
from nonpareil.records import ScoreRequest, Scores


def accepted_arguments(function: Callable[..., Any], name: str, request: ScoreRequest) -> dict[str, Any]:
    """The keywords to call the function with: all of them if it takes **kwargs, else those it names.

    TRL's `trainer_state`, `log_extra` and `log_metric` are given to a function that names them; scoring
    stored groups has no trainer, so the state is None and the loggers do nothing.

    Raises:
        ConfigError: it needs an argument that is no column of the data.
    """
    offered = {
        **request.columns,
        "prompts": request.prompts,
        "completions": request.completions,
        "completion_ids": request.completion_ids,
    }
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some builtins have none
        return offered
    parameters = signature.parameters.values()
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        trainer_only: dict[str, Any] = {"trainer_state": None, "log_extra": _ignore, "log_metric": _ignore}
        named = {parameter.name for parameter in parameters}
        offered = {key: value for key, value in {**trainer_only, **offered}.items() if key in named}
    try:
        signature.bind(**offered)
    except TypeError as error:
        columns = ", ".join(request.columns) or "none"
        raise ConfigError(
            f"reward function {name!r}: {error}; reward functions are called by keyword with prompts, "
            f"completions, completion_ids and the dataset's other columns (here: {columns})"
        ) from error
    return offered


def read_values(returned: Any, expected: int, name: str) -> Scores:
    """What a reward function returned, as floats; null with its reason where it is not a finite number.

    Raises:
        RewardError: it is not a list of `expected` values.
    """
    values = returned.tolist() if hasattr(returned, "tolist") else returned
    if isinstance(values, str | bytes | dict) or not isinstance(values, Iterable):
        raise RewardError(
            f"reward function {name!r} returned {type(returned).__name__}; it must return a list of "
            f"{expected} numbers or None, one a completion"
        )
    values = list(values)
    if len(values) != expected:
        raise RewardError(
            f"reward function {name!r} returned {len(values)} values for {expected} completions; it must "
            "return one value (a number or None) a completion"
        )
    pairs = [_read(value) for value in values]
    return Scores([value for value, _ in pairs], [failure for _, failure in pairs])


def reason_of(error: BaseException) -> str:
    """An exception in one line, as counted in the manifest."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def unwrapped(function: Any) -> Any:
    """The function beneath partials and decorators."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.unwrap(function)


def _read(value: Any) -> tuple[float | None, str | None]:
    if value is None:
        return None, "returned None"
    if hasattr(value, "item"):  # numpy and torch scalars
        with contextlib.suppress(RuntimeError, ValueError):  # more than one element: told below
            value = value.item()
    if not isinstance(value, int | float):
        return None, f"returned a {type(value).__name__}, not a number"
    try:
        number = float(value)
    except OverflowError:
        return None, "returned inf"
    return (number, None) if math.isfinite(number) else (None, f"returned {number}")


def _ignore(*args: Any, **kwargs: Any) -> None:
    """Stands in for the trainer's loggers."""
