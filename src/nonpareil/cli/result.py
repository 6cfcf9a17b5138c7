"""What a command hands back to `main`."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CommandResult:
    """The exit status, and the JSON object of the last line (None unless `--json`)."""

    json: dict[str, Any] | None
    status: int = 0
