"""Prompts: loaded from where a user has them, checked row by row, and turned into what the policy sees."""

import random
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonpareil.errors import ConfigError, DataError
from nonpareil.in_memory import InMemory
from nonpareil.models.chat import held_clock, template_failure
from nonpareil.records import Message, Prompt, PromptText, prompt_id_of
from nonpareil.rollouts.rendering import check_template_kwargs, rendering_of
from nonpareil.rollouts.sources import read_rows
from nonpareil.setting_types import check_value, nearest
from nonpareil.text_files import check_characters

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer


_ROWS = 'give a list of rows, each with a "prompt", as load_prompts does: [{"prompt": "Once upon"}, ...]'


class PromptRow(dict[str, Any]):
    """A row of `prompt` and further columns that knows its position in the dataset, whatever was shuffled."""

    def __init__(self, values: Mapping[str, Any], position: int) -> None:
        """`position` counts the source's rows from 0."""
        super().__init__(values)
        self.position = position


def load_prompts(
    source: str | Path,
    *,
    split: str = "train",
    prompt_column: str = "prompt",
    dataset_config: str | None = None,
    limit: int | None = None,
    seed: int | None = None,
) -> list[PromptRow]:
    """The rows of a dataset, each with a checked `prompt`; further columns ride along.

    Args:
        source: a .parquet, .json, .jsonl, .csv or .txt file (one prompt per line; files have no splits), a
            directory (`save_to_disk`'s, or of data files), or a hub dataset.
        split: of a dataset; slices such as `train[:100]` where `datasets` reads it.
        prompt_column: the column to call `prompt`, in place of one that has that name.
        dataset_config: of a hub dataset that has several.
        limit: keep the first rows, after shuffling.
        seed: shuffle with this; None keeps the order.

    Raises:
        DataError: no such source, split or column; or a prompt that is empty or neither a string nor a
            list of {role, content}, naming its row.
        ConfigError: a limit below 1.
    """
    if not isinstance(source, str | Path):
        raise ConfigError(
            f"source is a {type(source).__name__}; load_prompts reads a file, directory or hub dataset. "
            "Rows in memory go to tokenize_prompts"
        )
    check_value("split", split, str)
    check_value("prompt_column", prompt_column, str)
    check_value("dataset_config", dataset_config, str | None)
    check_value("limit", limit, int | None, at_least=1, why="or None for all prompts")
    check_value("seed", seed, int | None)
    if isinstance(source, InMemory):
        rows = [{prompt_column: row} if isinstance(row, str) else row for row in source.value]
    else:
        rows = read_rows(str(source), split, dataset_config, prompt_column)
    if not rows:
        raise DataError(f"{str(source)!r} has no rows")
    _check_column(rows[0], prompt_column, str(source))
    order = list(range(len(rows)))
    if seed is not None:
        random.Random(seed).shuffle(order)
    chosen = []
    for position in islice(order, limit):
        where = f"{source}, row {position} (the first is 0)"
        prompt = checked_prompt(rows[position].get(prompt_column), where)
        further = {
            name: value for name, value in rows[position].items() if name not in ("prompt", prompt_column)
        }
        _check_columns(further, where)
        chosen.append(PromptRow({"prompt": prompt, **further}, position))
    return chosen


def checked_prompt(prompt: Any, where: str) -> PromptText:
    """The prompt itself, its messages reduced to role and content.

    Raises:
        DataError: empty, neither a string nor a list of {role, content}, or with half a character; `where` says
            which.
    """
    check_characters(prompt, f"{where}: the prompt")
    if isinstance(prompt, str):
        if not prompt.strip():
            raise DataError(f"{where}: the prompt is empty; remove the row")
        return prompt
    if not isinstance(prompt, list):
        raise DataError(
            f"{where}: the prompt is a {type(prompt).__name__} ({prompt!r:.60}); it must be a string or a "
            "list of {role, content} messages"
        )
    messages = [_checked_message(message, where) for message in prompt]
    if not any(message["content"].strip() for message in messages):
        raise DataError(f"{where}: the prompt is empty; remove the row")
    return messages


def tokenize_prompts(
    rows: Iterable[Mapping[str, Any]],
    tokenizer: "Tokenizer | None",
    chat_template_kwargs: Mapping[str, Any] | None = None,
    *,
    now: datetime | None = None,
) -> list[Prompt]:
    """The prompts as the policy sees them, up to where its completion begins.

    A string gets the tokenizer's beginning tokens and never its end token. A conversation goes through
    the chat template, with the prompt for an answer after it, unless the assistant spoke last: then its
    words are continued. Either begins with one BOS at most. A prompt's id is of its content and its
    position in the dataset (`PromptRow.position`, else its place among the rows). Without a tokenizer, for a
    server that reads text, token ids are empty.

    Args:
        rows: with a `prompt` each; further columns ride along.
        tokenizer: the policy's.
        chat_template_kwargs: further arguments of its chat template.
        now: what a template that writes the date takes for now, the same for all prompts; by default now.

    Raises:
        ConfigError: no tokenizer, an argument that the chat template does not mention, or no template to read it.
        DataError: rows that are no mappings, no chat template for a conversation, one that the template cannot
            render, a column name or value with half a character, or as `checked_prompt`.
    """
    if isinstance(rows, str | Mapping):
        raise DataError(f"rows is a {type(rows).__name__}; {_ROWS}")
    if tokenizer is not None and not callable(tokenizer):
        raise ConfigError(f"tokenizer is a {type(tokenizer).__name__}; give the policy's tokenizer itself")
    tokenized: list[Prompt] = []
    rows, kwargs = list(rows), dict(chat_template_kwargs or {})
    for place, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise DataError(f"rows[{place}] is a {type(row).__name__}; {_ROWS}")
    chats = any(isinstance(row.get("prompt"), list) for row in rows)
    check_template_kwargs(kwargs, tokenizer, chats=chats)
    rendering = rendering_of(tokenizer, kwargs) if chats and tokenizer is not None else None
    with held_clock(now or datetime.now()) if rendering else nullcontext():
        for place, row in enumerate(rows):
            position = getattr(row, "position", place)
            prompt = checked_prompt(row.get("prompt"), f"row {position} (the first is 0)")
            ids = [] if tokenizer is None else _ids_of(prompt, tokenizer, kwargs, position)
            columns = {name: value for name, value in row.items() if name != "prompt"}
            if not isinstance(row, PromptRow):  # whose columns were checked as they were read
                _check_columns(columns, f"row {position} (the first is 0)")
            how = None if isinstance(prompt, str) else rendering
            tokenized.append(Prompt(prompt_id_of(prompt, position), prompt, ids, columns, how))
    return tokenized


def _ids_of(
    prompt: PromptText, tokenizer: "Tokenizer", options: Mapping[str, Any], position: int
) -> list[int]:
    if isinstance(prompt, str):
        ids = _tokenize_text(prompt, tokenizer)
    else:
        ids = _tokenize_chat(prompt, tokenizer, options, position)
    bos = tokenizer.bos_token_id
    while bos is not None and ids[:2] == [bos, bos]:  # the text, or the template's, already began with it
        ids = ids[1:]
    return ids


def _tokenize_text(text: str, tokenizer: "Tokenizer") -> list[int]:
    ids = _input_ids(tokenizer(text, verbose=False))
    bare = _input_ids(tokenizer(text, add_special_tokens=False, verbose=False))
    # What stands after the text's own tokens was added to end it; a completion goes on from there. An end
    # token written in the text itself stays, and so does a BOS that is the same token (GPT-2, OPT).
    for start in range(len(ids) - len(bare), -1, -1):
        if bare and ids[start : start + len(bare)] == bare:
            return ids[: start + len(bare)]
    return ids


def _tokenize_chat(
    messages: list[Message], tokenizer: "Tokenizer", options: Mapping[str, Any], position: int
) -> list[int]:
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            f"row {position} is a conversation, but the policy's tokenizer has no chat template; set "
            "tokenizer.chat_template, or give string prompts"
        )
    continues = messages[-1]["role"] == "assistant"
    try:
        encoded: Any = tokenizer.apply_chat_template(
            messages,
            tokenize=True,
            return_dict=True,
            add_generation_prompt=not continues,
            continue_final_message=continues,
            **options,
        )
    except Exception as error:  # a template is a program of others, and raises what it likes
        raise DataError(
            f"row {position}: {template_failure('the chat template', messages, error)}"
        ) from error
    return _input_ids(encoded)


def _input_ids(encoded: Any) -> list[int]:
    return list(encoded["input_ids"])


def _checked_message(message: Any, where: str) -> Message:
    if not isinstance(message, Mapping) or not all(
        isinstance(message.get(k), str) for k in ("role", "content")
    ):
        raise DataError(f"{where}: {message!r:.80} is no message of {{role, content}} with two strings")
    # `datasets` fills keys that other messages have with None.
    further = sorted(
        key for key, value in message.items() if key not in ("role", "content") and value is not None
    )
    if further:
        raise DataError(f"{where}: a message has {further[0]!r} beside role and content; remove it")
    return {"role": message["role"], "content": message["content"]}


def _check_columns(columns: Mapping[Any, Any], where: str) -> None:
    """What rides along is written to disk and handed to rewards by name."""
    for name, value in columns.items():
        if not isinstance(name, str):
            raise DataError(f"{where}: a column is called {name!r}, which is no text; rename it")
        check_characters(name, f"{where}: a column's name")
        check_characters(value, f"{where}: column {name!r}")


def _check_column(row: Mapping[str, Any], prompt_column: str, source: str) -> None:
    if prompt_column in row:
        return
    known = list(row)
    hint = nearest(prompt_column, known, quoted=True) + "; name the column of prompts with prompt_column"
    if "messages" in known:
        hint = (
            "; 'messages' holds conversations: give prompt_column='messages' if each ends where the answer "
            "begins, else make a column of the messages before the last answer"
        )
    raise DataError(f"{source!r} has no column {prompt_column!r} (it has: {', '.join(known)}){hint}")
