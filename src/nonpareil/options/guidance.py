"""A value that guides the draws: which one, towards what, and how many tokens it is asked about."""

from dataclasses import dataclass
from typing import ClassVar

from nonpareil.errors import ConfigError
from nonpareil.settings import CheckedOptions, option


@dataclass
class GuidanceOptions(CheckedOptions):
    """Guided draws, where a value is named."""

    HEADING: ClassVar = "Guidance"

    value: str | None = option(
        None,
        "Draw from the policy guided by this value, towards best-of-n: a folder that `nonpareil value` wrote, or "
        "a function that makes a value, file.py:function.",
        names="input",
        of="engine=transformers",
    )
    n: int | None = option(None, "The N whose best-of-N the value guides towards.", at_least=2, of="value")
    likeliest: int = option(
        32,
        "Next tokens that the value is asked about at every step, the likeliest ones: its cost.",
        at_least=1,
        of="value",
    )


def guiding_n(value: str, n: int | list[int] | None) -> int:
    """The one N that a value guides towards.

    Raises:
        ConfigError: none, or several.
    """
    found = n if isinstance(n, list) else [n]
    if len(found) != 1 or found[0] is None:
        given = "" if n is None else f", and n={n}"
        raise ConfigError(f"value={value!r} guides towards best-of-n of one n{given}: give n, such as --n 4")
    return found[0]
