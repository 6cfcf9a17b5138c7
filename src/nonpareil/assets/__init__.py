"""The embedded demo: a language model of film reviews, a sentiment reward model, held-out prompts.

They load as any user's do, by path; `recipes/demo` holds the scripts that made them.
"""

from pathlib import Path
from typing import Literal

from nonpareil.errors import DataError

DemoPart = Literal["policy", "reward", "prompts"]

_NAMES: dict[DemoPart, str] = {"policy": "demo-lm", "reward": "demo-rm", "prompts": "demo-prompts"}


def demo_path(name: DemoPart) -> Path:
    """Where a part of the demo lies: a model directory, or for the prompts a folder of two Parquet files.

    Raises:
        DataError: the part is not known, or this installation lacks it.
    """
    if name not in _NAMES:
        raise DataError(f"the demo has no part {name!r}; it has {', '.join(_NAMES)}")
    path = Path(__file__).parent / _NAMES[name]
    if not path.exists():
        raise DataError(
            f"the demo's {name} is missing from this installation ({path}); "
            "reinstall nonpareil, or make it with the scripts in recipes/demo"
        )
    return path
