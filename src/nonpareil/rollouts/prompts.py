"""Prompts: loaded from where a user has them, checked row by row, and turned into what the policy sees."""

import random
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonpareil.errors import ConfigError, DataError
from nonpareil.in_memory import InMemory
from nonpareil.models.chat import check_messages_written, held_clock, template_failure, template_source
from nonpareil.records import Message, Prompt, PromptText, prompt_id_of
from nonpareil.rollouts.checked_rows import PromptRow, check_column, check_columns, checked_prompt
from nonpareil.rollouts.mixing import rows_of
from nonpareil.rollouts.mixture import mixture_of
from nonpareil.rollouts.openings import Openings, as_continued
from nonpareil.rollouts.parts import part_of
from nonpareil.rollouts.rendering import check_template_kwargs, rendering_of
from nonpareil.rollouts.sources import read_rows
from nonpareil.rollouts.tools import (
    COLUMN,
    Tools,
    check_template_reads,
    check_written,
    refuse_tools_of_text,
    tools_of,
)
from nonpareil.setting_types import check_value
from nonpareil.terminal import tell

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer


_ROWS = 'give a list of rows, each with a "prompt", as load_prompts does: [{"prompt": "Once upon"}, ...]'


def load_prompts(
    source: str | Path | Sequence[Any],
    *,
    split: str = "train",
    prompt_column: str = "prompt",
    dataset_config: str | None = None,
    limit: int | None = None,
    seed: int | None = None,
    streaming: bool = False,
    test_split_size: float | None = None,
    held_out: bool = False,
) -> list[PromptRow]:
    """The rows of a dataset, each with a checked `prompt`; further columns ride along.

    Args:
        source: a .parquet, .json, .jsonl, .csv or .txt file (one prompt per line; files have no splits), a
            directory (`save_to_disk`'s, or of data files), or a hub dataset; or a list of several, each by its name
            or as `mixture.DatasetSource`'s fields, of which a mixture is made.
        split: of a dataset; slices such as `train[:100]` where `datasets` reads it.
        prompt_column: the column to call `prompt`, in place of one that has that name.
        dataset_config: of a hub dataset that has several.
        limit: keep the first rows, after shuffling.
        seed: shuffle with this; None keeps the order.
        streaming: of a hub dataset, read the first `limit` rows and no others.
        test_split_size: hold out this share of the different prompts, or this many of them.
        held_out: of those two parts, the rows that are held out, each prompt once; else all others.

    Raises:
        DataError: no such source, split or column; or a prompt that is empty or neither a string nor a
            list of {role, content}, naming its row.
        ConfigError: a limit below 1, a stream without one, or a part that has no prompts.
    """
    if isinstance(source, list | tuple):
        source = mixture_of(source, "source")
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
    check_value("test_split_size", test_split_size, float | None, above=0)
    if streaming:
        _check_stream(limit, seed, test_split_size)
    if isinstance(source, InMemory):
        rows = rows_of(source, prompt_column, limit if streaming else None)
    else:
        rows = read_rows(str(source), split, dataset_config, prompt_column, limit if streaming else None)
    if not rows:
        raise DataError(f"{str(source)!r} has no rows")
    check_column(rows[0], prompt_column, repr(str(source)), "give prompt_column={}")
    order = list(range(len(rows)))
    if test_split_size is not None:
        order = part_of([row.get(prompt_column) for row in rows], test_split_size, held_out=held_out)
    if seed is not None:
        random.Random(seed).shuffle(order)
    chosen = []
    for position in islice(order, limit):
        where = f"{source}, row {position} (the first is 0)"
        prompt = checked_prompt(rows[position].get(prompt_column), where)
        further = {
            name: value for name, value in rows[position].items() if name not in ("prompt", prompt_column)
        }
        check_columns(further, where)
        chosen.append(PromptRow({"prompt": prompt, **further}, position))
    return chosen


def _check_stream(limit: int | None, seed: int | None, test_split_size: float | None) -> None:
    if limit is None:
        raise ConfigError(
            "dataset_streaming=true reads the first prompts of a dataset, and nobody says how many; give "
            "max_prompts (max_train_prompts and max_eval_prompts in a training), or leave it out"
        )
    if seed is not None or test_split_size is not None:
        name = "test_split_size" if seed is None else "seed"
        raise ConfigError(f"{name} with dataset_streaming needs the whole dataset; remove one of them")


def tokenize_prompts(
    rows: Iterable[Mapping[str, Any]],
    tokenizer: "Tokenizer | None",
    chat_template_kwargs: Mapping[str, Any] | None = None,
    *,
    now: datetime | None = None,
    hashed: bool = True,
) -> list[Prompt]:
    """The prompts as the policy sees them, up to where its completion begins.

    A string gets the tokenizer's beginning tokens and never its end token. A conversation goes through
    the chat template, with the prompt for an answer after it, unless the assistant spoke last: then its
    words are continued. Either begins with one BOS at most. A prompt's id is of its content and its
    position in the dataset (`PromptRow.position`, else its place among the rows). Without a tokenizer, for a
    server that reads text, token ids are empty.

    A conversation's column `tools`, as TRL has it, is given to the template: a list of JSON schemas, or JSON text
    of one. Tools for all prompts alike are one of the template's arguments, `tools`.

    Args:
        rows: with a `prompt` each; further columns ride along, `tools` too.
        tokenizer: the policy's.
        chat_template_kwargs: further arguments of its chat template.
        now: what a template that writes the date takes for now, the same for all prompts; by default now.
        hashed: False leaves out `Prompt.rendering`, which hashes the whole tokenizer.

    Raises:
        ConfigError: no tokenizer, an argument or tools that the chat template does not mention, or no template to
            read them.
        DataError: rows that are no mappings, no chat template for a conversation, one that the template cannot
            render, tools that are none or that it does not write, a column name or value with half a character, or
            as `checked_prompt`.
    """
    if isinstance(rows, str | Mapping):
        raise DataError(f"rows is a {type(rows).__name__}; {_ROWS}")
    if tokenizer is not None and not callable(tokenizer):
        raise ConfigError(f"tokenizer is a {type(tokenizer).__name__}; give the policy's tokenizer itself")
    rows, kwargs = list(rows), dict(chat_template_kwargs or {})
    for place, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise DataError(f"rows[{place}] is a {type(row).__name__}; {_ROWS}")
    if rows:
        check_column(rows[0], "prompt", "rows", "rename {} to 'prompt'")
    prompts = [checked_prompt(row.get("prompt"), _where(row, place)) for place, row in enumerate(rows)]
    chats = any(not isinstance(prompt, str) for prompt in prompts)
    check_template_kwargs(kwargs, tokenizer, chats=chats)
    tools = _tools(rows, prompts, tokenizer, kwargs)
    renders, rendering = chats and tokenizer is not None, None
    if chats and hashed and tokenizer is not None:
        rendering = rendering_of(tokenizer, kwargs, tools=any(tools))
    tokenized: list[Prompt] = []
    with held_clock(now or datetime.now()) if renders else nullcontext():
        openings = Openings(tokenizer, kwargs) if renders else None
        for place, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
            position, where = getattr(row, "position", place), _where(row, place)
            ids = (
                []
                if tokenizer is None
                else _ids_of(prompt, tokenizer, kwargs, tools[place], f"row {position}")
            )
            columns = {name: value for name, value in row.items() if name != "prompt"}
            if not isinstance(row, PromptRow):  # whose columns were checked as they were read
                check_columns(columns, where)
            how = None if isinstance(prompt, str) else rendering
            prompt_id = prompt_id_of(prompt, position, tools[place])
            opening = None if openings is None or isinstance(prompt, str) else openings.of(prompt)
            written = as_continued(prompt, opening)
            tokenized.append(Prompt(prompt_id, written, ids, columns, how, opening))
    _tell_prefilled(
        sum(not isinstance(p, str) and p[-1]["role"] == "assistant" for p in prompts), len(prompts)
    )
    return tokenized


def _where(row: Mapping[str, Any], place: int) -> str:
    return f"row {getattr(row, 'position', place)} (the first is 0)"


@cache
def _tell_prefilled(count: int, of: int) -> None:
    """Once, however often the same prompts are read: datasets of answered conversations look the same."""
    if count:
        tell(
            f"{count} of {of} prompts end with the assistant's own words, and completions go on from them; where "
            "those are whole answers, take them out"
        )


def _tools(
    rows: Sequence[Mapping[str, Any]],
    prompts: Sequence[PromptText],
    tokenizer: "Tokenizer | None",
    kwargs: Mapping[str, Any],
) -> list[Tools | None]:
    """Of every row, what the chat template is to be given of its column `tools`.

    Raises:
        ConfigError: no template that reads them, or tools by two ways.
        DataError: tools that are none, or arguments of the template in a column.
    """
    found: list[Tools | None] = []
    for place, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        if isinstance(prompt, str):
            refuse_tools_of_text(row, _where(row, place))
        elif row.get("chat_template_kwargs"):
            raise DataError(
                f"{_where(row, place)}: the column 'chat_template_kwargs' is not read; give the setting of that "
                "name, for all prompts alike, or remove the column"
            )
        found.append(None if isinstance(prompt, str) else tools_of(row, _where(row, place)))
    if any(found):
        check_template_reads(None if tokenizer is None else template_source(tokenizer))
        if COLUMN in kwargs:
            raise ConfigError(
                "chat_template_kwargs has tools, and so have rows of the dataset (column 'tools'); give one of them"
            )
    elif COLUMN in kwargs:
        tools_of(kwargs, "chat_template_kwargs")
    return found


def _ids_of(
    prompt: PromptText, tokenizer: "Tokenizer", options: Mapping[str, Any], tools: Tools | None, where: str
) -> list[int]:
    if isinstance(prompt, str):
        ids = _tokenize_text(prompt, tokenizer)
    else:
        given = {**options, COLUMN: tools} if tools else options
        ids = _tokenize_chat(prompt, tokenizer, given, where)
        check_messages_written(
            prompt,
            lambda told: str(tokenizer.apply_chat_template(list(told), tokenize=False, **given)),
            f"{where}: the policy's chat template",
        )
        if tools:
            check_written(ids, _tokenize_chat(prompt, tokenizer, options, where), where)
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
    messages: list[Message], tokenizer: "Tokenizer", options: Mapping[str, Any], where: str
) -> list[int]:
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            f"{where} is a conversation, but the policy's tokenizer has no chat template; set "
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
        raise DataError(f"{where}: {template_failure('the chat template', messages, error)}") from error
    return _input_ids(encoded)


def _input_ids(encoded: Any) -> list[int]:
    return list(encoded["input_ids"])
