"""A metric as text: fixed digits, no leading zero, a dash for what cannot be computed."""

import math

from nonpareil.maths.bootstrap import Interval

MISSING = "—"
_ROUNDING = 1e-6


def number(value: float | None, digits: int = 3, at_most: float = math.inf) -> str:
    """A number at fixed digits, no leading zero (`.78`, `-.05`); a dash for what cannot be computed.

    `at_most` is the largest that could be told: a value there is `>= 31`.
    """
    if value is None or math.isnan(value):
        return MISSING
    if value > at_most - _ROUNDING:
        return f">= {at_most:g}"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    text = f"{value:.{digits}f}"
    text = text.removeprefix("-") if float(text) == 0 else text
    if digits and text.lstrip("-").startswith("0."):
        text = text.replace("0.", ".", 1)
    return text


def bracket(interval: Interval | None, digits: int = 3, at_most: float = math.inf) -> str:
    """`[low, high]`, or a dash where there is no interval; `at_most` as in `number`."""
    if interval is None or math.isnan(interval.low):
        return MISSING
    return f"[{number(interval.low, digits, at_most)}, {number(interval.high, digits, at_most)}]"
