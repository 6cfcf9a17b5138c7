"""Whether runs were measured alike, and what differs where they were not."""

from collections.abc import Mapping
from typing import Any

from nonpareil.errors import DataError
from nonpareil.settings import differing, flat


def refuse_mixed(protocols: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse runs that were not measured alike; each run's protocol is held against the first one's.

    Raises:
        DataError: naming the runs and every setting that differs, with both values.
    """
    (first, expected), *others = protocols.items()
    lines = [
        f"  {name}: {difference}"
        for name, protocol in others
        for difference in other_settings(expected, protocol)
    ]
    if lines:
        raise DataError(
            f"these runs were not measured as {first!r} was, so their metrics cannot be compared:\n"
            + "\n".join(lines)
            + "\nEvaluate them anew under one protocol (--overwrite)."
        )


def other_settings(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Every setting that differs, by dotted name, as `key: <found> instead of <expected>`."""
    both = differing(flat(expected), flat(found))
    return [f"{key}: {there!r} instead of {here!r}" for key, (here, there) in both.items()]
