"""How conversations become token ids: the template's own arguments, one clock for all, and what was rendered."""

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nonpareil.errors import ConfigError, DataError
from nonpareil.files import write_bytes
from nonpareil.models.chat import check_template_arguments, template_source
from nonpareil.records import Prompt, Rendering

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

RENDERED = "rendered_prompts.npz"
"""Beside the manifest: every prompt's token ids, since a template that writes the date gives others tomorrow."""


def check_template_kwargs(kwargs: Mapping[str, Any], tokenizer: "Tokenizer | None", *, chats: bool) -> None:
    """Refuse arguments of the chat template that nobody reads; `chats` is whether there are conversations.

    Raises:
        ConfigError: naming the argument.
    """
    if not kwargs:
        return
    if tokenizer is None:
        raise ConfigError(
            f"chat_template_kwargs={dict(kwargs)!r} is not read: the server renders the prompts; remove it, or "
            "give tokenizer_name_or_path"
        )
    if not chats:
        raise ConfigError(
            f"chat_template_kwargs={dict(kwargs)!r} is not read: the prompts are strings, which go through no "
            "chat template; remove it, or give conversations"
        )
    check_template_arguments(kwargs, tokenizer, "chat_template_kwargs", "the policy's chat template")


def rendering_of(tokenizer: "Tokenizer", kwargs: Mapping[str, Any], *, tools: bool = False) -> Rendering:
    """What decides the token ids of a conversation, save the clock; `tools`: whether there is a column of them."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        content: Any = [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())]
    else:
        # Padding and truncation are what the last call with them left behind.
        kept = json.loads(backend.to_str())
        content = {key: value for key, value in kept.items() if key not in ("padding", "truncation")}
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items()}
    return Rendering(_sha256([content, special]), _sha256(template_source(tokenizer)), dict(kwargs), tools)


def write_rendered(folder: Path, prompts: Sequence[Prompt]) -> None:
    """Keep the token ids of conversations; string prompts need no keeping."""
    if all(prompt.rendering is None for prompt in prompts):
        return
    buffer = io.BytesIO()
    lengths = [len(prompt.token_ids) for prompt in prompts]
    flat = [token for prompt in prompts for token in prompt.token_ids]
    np.savez_compressed(buffer, lengths=np.array(lengths, np.int64), token_ids=np.array(flat, np.int64))
    write_bytes(folder / RENDERED, buffer.getvalue())


def read_rendered(folder: Path, prompts: Sequence[Prompt], sha256: str) -> list[Prompt]:
    """The prompts with the token ids that the folder was begun with, whose hash is `sha256`.

    Raises:
        DataError: they are gone or damaged.
    """
    path = folder / RENDERED
    try:
        with np.load(path, allow_pickle=False) as stored:
            parts = np.split(stored["token_ids"], np.cumsum(stored["lengths"])[:-1])
        own = parts[: len(prompts)]  # a folder that was about to grow keeps more
        rendered = [replace(p, token_ids=ids.tolist()) for p, ids in zip(prompts, own, strict=True)]
        whole = token_ids_sha256(rendered) == sha256
    except (OSError, ValueError, KeyError, EOFError, IndexError, zipfile.BadZipFile):
        whole = False
    if not whole:
        raise DataError(
            f"{path}, which keeps the prompts as they were when the run was begun, is missing or damaged, and the "
            "chat template renders them otherwise now (it may write the date). What is drawn stays readable; to "
            "draw the rest, hold the template still (chat_template_kwargs) in another output_dir, or draw anew "
            "(--overwrite)"
        )
    return rendered


def token_ids_sha256(prompts: Sequence[Prompt]) -> str:
    """A hash of what the policy reads, prompt by prompt."""
    return _sha256([[prompt.prompt_id, prompt.token_ids] for prompt in prompts])


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
