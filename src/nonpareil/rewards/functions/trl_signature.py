"""TRL's signature of a reward function: which arguments it is called with, which values it returns. Light."""

import contextlib
import functools
import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any

from nonpareil.errors import ConfigError, RewardError
from nonpareil.records import ScoreRequest, Scores
from nonpareil.terminal import printable

STATE, EXTRA, METRIC = "trainer_state", "log_extra", "log_metric"
"""What TRL's trainer gives to reward functions besides columns."""
OPENINGS = "openings"
"""What of each answer its prompt wrote already (`ScoreRequest.openings`); for a function that names it."""
RESERVED = ("prompts", "completions", "completion_ids", STATE, EXTRA, METRIC)
"""What a function is given by these names is no column of the data."""


def refuse_reserved(columns: Iterable[str], name: str) -> None:
    """Refuse columns that a function could not be given, since another thing has their name.

    Raises:
        ConfigError: naming one, and the function.
    """
    for column in columns:
        if column in RESERVED:
            raise ConfigError(
                f"reward function {name!r}: the dataset has a column {column!r}, and functions are given something "
                "else by that name; rename or remove the column"
            )


def accepted_arguments(
    function: Callable[..., Any], name: str, request: ScoreRequest, loggers: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The keywords to call the function with: all of them if it takes **kwargs, else those it names.

    TRL's `trainer_state`, `log_extra` and `log_metric` are among them. Without a trainer (groups that are stored,
    an evaluation) the state is None, and the loggers do nothing. `loggers` are a training's, by name. One that
    names `openings` is given those of the answers, unless the data has a column of that name.

    Raises:
        ConfigError: it needs an argument that is no column of the data, or takes nothing that is given.
    """
    offered: dict[str, Any] = {
        **request.columns,
        "prompts": request.prompts,
        "completions": request.completions,
        "completion_ids": request.completion_ids,
    }
    signature = signature_of(function)
    if signature is None:
        return offered
    named = set(signature.parameters)
    taken, trainers = (
        offered,
        {STATE: request.trainer_state, **(loggers or {EXTRA: _ignore, METRIC: _ignore})},
    )
    if not takes_any(signature):
        taken, trainers = (
            {key: value for key, value in given.items() if key in named} for given in (offered, trainers)
        )
    if OPENINGS in named:
        trainers = {**trainers, OPENINGS: request.openings or [None] * len(request)}
    offered = {**trainers, **taken}
    try:
        signature.bind(**offered)
    except TypeError as error:
        columns = ", ".join(request.columns) or "none"
        raise ConfigError(
            f"reward function {name!r}: {error}; reward functions are called by keyword with prompts, "
            f"completions, completion_ids and the dataset's other columns (here: {printable(columns)})"
        ) from error
    if not taken:
        raise ConfigError(
            f"reward function {name!r} takes none of prompts, completions, completion_ids and the dataset's other "
            "columns, so it cannot tell completions apart; let it take completions"
        )
    return offered


def takes_any(signature: inspect.Signature) -> bool:
    """Whether it has **kwargs."""
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())


def is_given_state(function: Callable[..., Any]) -> bool:
    """Whether the function is called with `trainer_state`."""
    signature = signature_of(function)
    return signature is not None and (STATE in signature.parameters or takes_any(signature))


def reads_state(function: Callable[..., Any]) -> bool:
    """Whether its scores may follow from `trainer_state`: it names that, or takes it out of its **kwargs."""
    signature = signature_of(function)
    if signature is None:
        return False
    code = getattr(unwrapped(function), "__code__", None)
    return STATE in signature.parameters or (takes_any(signature) and STATE in getattr(code, "co_consts", ()))


def signature_of(function: Callable[..., Any]) -> inspect.Signature | None:
    """None where it has none that can be read."""
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):  # some builtins have none
        return None


def read_values(returned: Any, expected: int, name: str) -> Scores:
    """What a reward function returned, as floats; null with its reason where it is not a finite number.

    Lists, tuples, generators, arrays, tensors and series are read in their order. A value may stand in a list
    of its own, as in a column of shape [n, 1].

    Raises:
        RewardError: it is not a list of `expected` values.
    """
    values = returned.tolist() if hasattr(returned, "tolist") else returned
    # The order of a set is nobody's, and a dictionary's is that of its keys.
    if isinstance(values, str | bytes | Mapping | Set) or not isinstance(values, Iterable):
        raise RewardError(
            f"reward function {name!r} returned {_kind(returned)}; it must return a list of "
            f"{expected} numbers or None, one per completion"
        )
    values = list(itertools.islice(values, expected + 1))  # a generator may have no end
    if len(values) != expected:
        count = len(returned) if hasattr(returned, "__len__") else len(values)
        raise RewardError(
            f"reward function {name!r} returned {count} values for {expected} completions; it must "
            "return one value (a number or None) per completion"
        )
    pairs = [_read(value) for value in values]
    return Scores([value for value, _ in pairs], [failure for _, failure in pairs])


def unwrapped(function: Any) -> Any:
    """The function beneath partials and decorators."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.unwrap(function)


def _read(value: Any) -> tuple[float | None, str | None]:
    if value is None:
        return None, "returned None"
    if hasattr(value, "item"):  # numpy and torch scalars, and arrays of one element
        with contextlib.suppress(RuntimeError, ValueError, TypeError):  # more than one element: told below
            value = value.item()
    while isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if value is None:
        return None, "returned None"
    if isinstance(value, str | bytes) or not hasattr(type(value), "__float__"):
        return None, f"returned a {_kind(value)}, not a number"
    try:
        number = float(value)
    except OverflowError:
        return None, "returned inf"
    except Exception:  # noqa: BLE001  (an array of several elements, or whatever an object's own method raises)
        return None, f"returned a {_kind(value)}, not a number"
    return (number, None) if math.isfinite(number) else (None, f"returned {number}")


def _kind(value: Any) -> str:
    return printable(type(value).__name__)


def _ignore(*args: Any, **kwargs: Any) -> None:
    """Stands in for the trainer's loggers."""
