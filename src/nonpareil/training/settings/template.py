"""What a user may say to the policy's chat template: one setting, of commands and of the trainer alike. Light."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from nonpareil.errors import ConfigError
from nonpareil.settings import option


@dataclass
class TemplateSettings:
    """How conversations are rendered; strings go through no template."""

    HEADING: ClassVar = "Prompts"

    chat_template_kwargs: dict[str, Any] | str | None = option(
        None,
        "Further arguments of the policy's chat template, for conversations, as JSON: "
        """'{"enable_thinking": false}'. `tools` among them are those of every prompt.""",
    )


def template_kwargs(
    given: Mapping[str, Any] | str | None, name: str = "chat_template_kwargs"
) -> dict[str, Any]:
    """A chat template's further arguments, from a flag's JSON, a YAML file's mapping or Python's.

    `name` is the setting that they are given by.

    Raises:
        ConfigError: no JSON object, or a value that JSON has no form for (a date that YAML reads as one).
    """
    wanted = f"{name}={given!r} must be a JSON object"
    if given is None:
        return {}
    try:
        value = json.loads(given) if isinstance(given, str) else json.loads(json.dumps(given))
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"""{wanted}, such as '{{"date_string": "26 Nov 2026"}}' (text in quotes): {error}"""
        ) from error
    if not isinstance(value, dict) or (isinstance(given, dict) and value != given):
        raise ConfigError(f"{wanted} with text for its keys")
    return value
