"""Which method is trained, and how its anchor moves."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from nonpareil.errors import ConfigError
from nonpareil.settings import option

if TYPE_CHECKING:
    from nonpareil.methods.base import Method

    NameOrMethod = str | Method
else:
    NameOrMethod = str  # transformers' HfArgumentParser would call the other with a flag's text


@dataclass
class MethodSettings:
    """The method, by name or as an object, and the anchor's motion; its settings are the fields of its class."""

    HEADING: ClassVar = "Method"

    method: NameOrMethod = option(
        "jbond",
        "One of those that the next heading names, or path/to/file.py:Class. For a chat model with a verifier's "
        "0 or 1 begin with rloo (docs/chat.md).",
        names="code",
        also=(object,),  # DistillationConfig, which knows `Method`, looks at it
    )
    anchor_ema_rate: float | None = option(
        None,
        "Share of the policy that the anchor takes on after each step. Default: 0.02 for jbond, 0 for bond.",
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
