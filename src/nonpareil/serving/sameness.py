"""Whether stored groups are of the policy and the rewards that are served."""

from collections.abc import Mapping
from typing import Any

from nonpareil.settings import differing, flat


def first_difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """What differs first between what a manifest says and what is served, in words; None where nothing does.

    A path is a label where the fingerprint of what lies there is known.
    """
    theirs, ours = flat(there), flat(here)
    for name, (was, is_now) in differing(theirs, ours).items():
        if not (name.endswith(".path") and theirs.get(f"{name[:-4]}fingerprint") is not None):
            return f"{name} is {was!r} there and {is_now!r} now"
    return None
