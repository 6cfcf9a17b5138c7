"""Which part of a completion is its answer: what stands behind the thoughts, where there are some."""

from nonpareil.records import PromptText, content_of
from nonpareil.rewards.verifiers.base import Row

OPEN, CLOSE = "<think>", "</think>"


def opening_of(row: Row) -> str | None:
    """What the prompt wrote of the answer; of a string prompt that ends in a think tag, from that tag on."""
    if row.opening is not None or not isinstance(row.prompt, str):
        return row.opening
    start = row.prompt.rfind(OPEN)
    return row.prompt[start:] if start >= 0 and not row.prompt[start + len(OPEN) :].strip() else ""


def final_answer(row: Row) -> str:
    r"""What follows the last `</think>`; the whole answer without thoughts, "" where they have no end.

    The words of the assistant that a prompt ends with are a part of it: `\boxed{`, or the fence of a program.
    """
    whole = (opening_of(row) or "") + row.completion
    _, closed, answer = whole.rpartition(CLOSE)
    if closed:
        return answer
    return "" if OPEN in whole else _begun(row.prompt) + row.completion


def _begun(prompt: PromptText) -> str:
    continues = not isinstance(prompt, str) and prompt and prompt[-1]["role"] == "assistant"
    return content_of(prompt[-1]) if continues else ""  # type: ignore[arg-type]
