"""What a completion says: the text that stands behind the prompt's, whichever engine drew it."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from nonpareil.records import Draws, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from nonpareil.engines.rows import Completion

TEXT = {"special_tokens": "in the text"}
"""Of an engine's description: completions of earlier versions lack special tokens, and often their first space."""
WINDOW = 8
"""Tokens of the prompt that a completion is first decoded behind."""
HALF = "\ufffd"
"""What a tokenizer writes for bytes that are no character, or not yet."""
_BORDERS = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")


def completion_texts(
    tokenizer: "Tokenizer",
    prompt_ids: Sequence[int],
    completions: Sequence[Sequence[int]],
    end_ids: Collection[int],
) -> list[str]:
    """The text of each completion, so that prompt + completion is the text of all the ids together.

    Decoded alone, a completion would lose a first space (SentencePiece) and characters that begin in the prompt.
    It is decoded behind the end of the prompt instead, and that end's text is cut off again.

    Special tokens stay in the text (a think tag, a tool call's), but for the end token that ended it and those
    that mark borders: begin, end, padding, unknown, separator, class, mask. Nothing is tidied: a space before a
    full stop stays. A character that a length limit cut in half is U+FFFD.

    Args:
        tokenizer: the policy's.
        prompt_ids: as the policy read them.
        completions: the ids that were drawn behind them.
        end_ids: tokens that end a completion.
    """
    borders = {getattr(tokenizer, f"{name}_id", None) for name in _BORDERS}

    def read(ids: Sequence[int]) -> str:
        kept = [token for token in ids if token not in borders]
        return str(tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    prompt = [token for token in prompt_ids if token not in borders]
    context = _context(prompt, read)
    before = read(context)

    def text(ids: Sequence[int]) -> str:
        own = ids[:-1] if ids and ids[-1] in end_ids else ids
        whole = read([*context, *own])
        if whole.startswith(before):
            return whole[len(before) :]
        # The prompt ends within a character, which the completion completes.
        stem = before.rstrip(HALF)
        if stem != before and whole.startswith(stem):
            return whole[len(stem) :]
        return _behind_a_letter(tokenizer, own, read)

    return [text(ids) for ids in completions]


def as_draws(
    tokenizer: "Tokenizer",
    end_ids: Collection[int],
    prompt: Prompt,
    drawn: "Sequence[Completion | None]",
    stop: Sequence[str] = (),
) -> Draws:
    """All completions of a prompt, of which none is missing, with their texts; `stop`: what ends those."""
    completions = [one for one in drawn if one is not None]
    ids = [one.token_ids for one in completions]
    texts = completion_texts(tokenizer, prompt.token_ids, ids, end_ids)
    if stop:
        completions, texts = stopped(tokenizer, prompt.token_ids, completions, texts, end_ids, stop)
    return Draws(
        completions=texts,
        completion_token_ids=[one.token_ids for one in completions],
        finish_reasons=[one.finish_reason for one in completions],
        logprobs=[one.logprobs for one in completions],
    )


def first_stop(text: str, stop: Sequence[str]) -> int | None:
    """Where in a text its first stop string begins; None where it has none."""
    found = [place for each in stop if (place := text.find(each)) >= 0]
    return min(found) if found else None


def stopped(
    tokenizer: "Tokenizer",
    prompt_ids: Sequence[int],
    drawn: "Sequence[Completion]",
    texts: Sequence[str],
    end_ids: Collection[int],
    stop: Sequence[str],
) -> "tuple[list[Completion], list[str]]":
    """Completions, with their texts, as they end at their first stop string: the text is what stands before it.

    The ids and log-probs stay up to the token that completed the stop string: they are what was drawn. A row that
    was drawn beyond, since its last tokens alone read otherwise, is cut there.
    """
    found, said = [], []
    for one, text in zip(drawn, texts, strict=True):
        place = first_stop(text, stop)
        if place is None:
            found.append(one)
            said.append(text)
            continue
        count = _tokens_to_stop(tokenizer, prompt_ids, one.token_ids, end_ids, stop)
        ids, logprobs = one.token_ids[:count], one.logprobs[:count]
        found.append(replace(one, token_ids=ids, logprobs=logprobs, finish_reason="stop"))
        said.append(text[:place])
    return found, said


def _tokens_to_stop(
    tokenizer: "Tokenizer",
    prompt_ids: Sequence[int],
    ids: Sequence[int],
    end_ids: Collection[int],
    stop: Sequence[str],
) -> int:
    """How many of the ids a text needs to have a stop string: most often all."""
    count = len(ids)
    while count > 1:
        (text,) = completion_texts(tokenizer, prompt_ids, [ids[: count - 1]], end_ids)
        if first_stop(text, stop) is None:
            break
        count -= 1
    return count


def _context(prompt: Sequence[int], read: Callable[[Sequence[int]], str]) -> Sequence[int]:
    """The last tokens of a prompt, as many as are read alone as they are read within it."""
    whole, size = read(prompt), WINDOW
    while size < len(prompt) and not whole.endswith(read(prompt[-size:])):
        size *= 2  # its first token is a part of a word or of a character
    return prompt[-size:]


def _behind_a_letter(tokenizer: "Tokenizer", ids: Sequence[int], read: Callable[[Sequence[int]], str]) -> str:
    """The text behind a prompt that cannot be read together with it.

    Byte fallback reads a whole run of bytes as broken, the prompt's too, where one of them is.
    """
    letter = tokenizer.encode("a", add_special_tokens=False)
    before, whole = read(letter), read([*letter, *ids])
    return whole[len(before) :] if whole.startswith(before) else read(ids)
