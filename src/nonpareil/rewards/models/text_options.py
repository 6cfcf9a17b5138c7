"""How a text is written for a reward model: the options of every reward model, wherever it runs. Light."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from nonpareil.errors import ConfigError
from nonpareil.setting_types import check_value

Overlong = Literal["error", "truncate"]


@dataclass(frozen=True)
class TextOptions:
    """What a reward model reads of a prompt and completion.

    Raises:
        ConfigError: a value of another type.
    """

    append_eos: bool = False
    """End every text with the end token, once; for a reward model that was trained so."""
    prepend_bos: bool = False
    """Begin every text with the beginning token, once, where the tokenizer itself does not."""
    max_length: int | None = None
    """Most tokens a text may have, special tokens included; None: what model and tokenizer state."""
    overlong: Overlong = "error"
    """"error", or "truncate": drop the left of the prompt, keeping the beginning token. A text whose completion
    alone does not fit then scores None."""

    chat_template_kwargs: Mapping[str, Any] | None = None
    """Further arguments of its own chat template, for conversations (`enable_thinking`, a date)."""

    def __post_init__(self) -> None:
        if self.overlong not in ("error", "truncate"):
            raise ConfigError(f"overlong={self.overlong!r} is neither 'error' nor 'truncate'")
        check_value("append_eos", self.append_eos, bool)
        check_value("prepend_bos", self.prepend_bos, bool)
        if self.max_length is not None:
            check_value("max_length", self.max_length, int, at_least=1)
        check_value("chat_template_kwargs", self.chat_template_kwargs, dict[str, Any] | None)

    def describe(self) -> dict[str, Any]:
        """All of them, by name: each changes the scores. Arguments of a template where there are some."""
        return {key: value for key, value in asdict(self).items() if key != "chat_template_kwargs" or value}


TEXT_OPTIONS = tuple(field.name for field in fields(TextOptions))
