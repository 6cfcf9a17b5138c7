"""Whether runs were measured alike, and what differs where they were not."""

from collections.abc import Mapping
from typing import Any

from nonpareil.errors import DataError
from nonpareil.options.distill import DistillOptions
from nonpareil.settings import differing, flat, settings_of


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
    """Every setting that differs, by dotted name, as `key: <found> instead of <expected>`.

    One that a side does not have was written by a version that had no such setting, and is at its default there.
    """
    there, here = flat(found), flat(expected)
    return [
        f"{key}: {found_one!r} instead of {asked!r}"
        for key, (asked, found_one) in differing(here, there).items()
        if (key in there and key in here) or not _is_default(key, asked if key in here else found_one)
    ]


def _is_default(key: str, value: Any) -> bool:
    """Whether it is what a setting of models, prompts or rewards is unless given; these are stored in any case."""
    setting = settings_of(DistillOptions).get(key.rsplit(".", 1)[-1])
    return setting is not None and setting.default == value
