"""What a value's fit and its credits took: spent.json in the folder of each."""

from pathlib import Path
from typing import Any

from nonpareil.files import write_json
from nonpareil.text_files import parse_json, read_text

SPENT = "spent.json"


def read_spent(folder: Path) -> dict[str, Any]:
    """What it took so far, `seconds` and what they went into; nothing where the folder does not say."""
    path = folder / SPENT
    found = parse_json(read_text(path), str(path)) if path.is_file() else None
    return found if isinstance(found, dict) else {}


def add_spent(folder: Path, seconds: float, **counted: int) -> None:
    """Add seconds to those that are there; `counted`: of the whole, in place of what is there."""
    before = read_spent(folder)
    write_json(folder / SPENT, {**before, "seconds": before.get("seconds", 0.0) + seconds, **counted})
