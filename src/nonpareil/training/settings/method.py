"""Which method is trained, and how its anchor moves."""

from dataclasses import dataclass

from nonpareil.errors import ConfigError
from nonpareil.settings import option


@dataclass
class MethodSettings:
    """The method's name, and the anchor's motion; what else it reads are the fields of its own class."""

    method: str = option(
        "jbond",
        "jbond, bond, vbon, bonbon, sft_bon, regression, rloo, or path/to/file.py:Class.",
        names="code",
    )
    anchor_ema_rate: float | None = option(
        None,
        "Share of the policy that the anchor takes on after each step. jbond: 0.02.",
        above=0,
        at_most=1,
        why="1 makes the anchor the last policy",
    )
    anchor_refresh_steps: int | None = option(
        None, "Make the anchor a copy of the policy every so many steps (BOND).", at_least=1
    )


def check_anchor(settings: MethodSettings) -> None:
    """Refuse an anchor that is to move in two ways.

    Raises:
        ConfigError: naming both settings.
    """
    if settings.anchor_ema_rate is not None and settings.anchor_refresh_steps is not None:
        raise ConfigError("anchor_ema_rate and anchor_refresh_steps: an anchor moves one way; give one")
