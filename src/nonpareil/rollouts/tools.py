"""The `tools` of a prompt: what a policy may call, which its chat template writes before the conversation."""

import json
from collections.abc import Mapping
from typing import Any

from nonpareil.errors import ConfigError, DataError
from nonpareil.models.chat import mentions
from nonpareil.rollouts.checked_rows import without_nulls

COLUMN = "tools"
"""Of a dataset; TRL's name."""
Tools = list[dict[str, Any]]
"""A JSON schema each, as chat templates of transformers read them."""


def tools_of(row: Mapping[str, Any], where: str) -> Tools | None:
    """The tools of a row of a conversation, from its column `tools`; None where it has none.

    A list of JSON schemas, or JSON text of one. Arrow gives every schema the keys of all others, as nulls: of a
    list those are taken off. Text is taken as it stands.

    Raises:
        DataError: they are something else.
    """
    given = row.get(COLUMN)
    if given is None:
        return None
    tools = given
    if isinstance(given, str):
        if not given.strip():
            return None
        try:
            tools = json.loads(given)
        except ValueError as error:
            raise DataError(f"{where}: {_wanted(given)}: {error}") from error
    else:
        tools = without_nulls(given)
    if tools is None or tools == []:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) and tool for tool in tools):
        raise DataError(f"{where}: {_wanted(given)}")
    try:
        return json.loads(json.dumps(tools))
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: {_wanted(given)}: {error}") from error


def refuse_tools_of_text(row: Mapping[str, Any], where: str) -> None:
    """Refuse tools beside a string prompt, which no template writes them into; another column of that name stays.

    Raises:
        DataError: they are JSON schemas.
    """
    try:
        tools = tools_of(row, where)
    except DataError:
        return  # something else, for a reward to read
    if tools:
        raise DataError(
            f"{where}: the prompt is a string, which goes through no chat template, so its tools would not be "
            "written; give the prompt as [{role, content}] messages, or remove the column 'tools'"
        )


def check_template_reads(source: str | None) -> None:
    """Refuse tools where no template of the policy's here can write them; `source` is that of its template.

    Raises:
        ConfigError: a server renders the prompts (None), or the template never mentions tools.
    """
    if source is None:
        raise ConfigError(
            "the column 'tools' is not read: the server renders the prompts, and is not given it; give "
            "tokenizer_name_or_path, or remove the column"
        )
    if source and not mentions(source, COLUMN):
        raise ConfigError(
            "the column 'tools': the policy's chat template never mentions tools, so the policy would not read "
            "them; give a model whose template does, or remove the column"
        )


def check_written(with_tools: Any, without: Any, where: str) -> None:
    """Refuse a row whose tokens are the same with and without its tools.

    Raises:
        DataError: naming it.
    """
    if with_tools == without:
        raise DataError(
            f"{where}: the policy's chat template writes none of its tools into the prompt; remove them from the "
            "column 'tools', or give a model whose template reads them"
        )


def _wanted(given: Any) -> str:
    return (
        f"tools={given!r:.60} must be a list of JSON schemas ({{type, function}} each), or JSON text of one; "
        "rename the column where it is something else"
    )
