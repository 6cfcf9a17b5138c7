"""Which part of a completion is its answer: what stands behind the thoughts, where there are some."""

from nonpareil.rewards.verifiers.base import Row

OPEN, CLOSE = "<think>", "</think>"


def opening_of(row: Row) -> str | None:
    """What the prompt wrote of the answer; of a string prompt that ends in a think tag, from that tag on."""
    if row.opening is not None or not isinstance(row.prompt, str):
        return row.opening
    start = row.prompt.rfind(OPEN)
    return row.prompt[start:] if start >= 0 and not row.prompt[start + len(OPEN) :].strip() else ""


def final_answer(row: Row) -> str:
    """What follows the last `</think>`; the whole completion without thoughts, "" where they have no end."""
    whole = (opening_of(row) or "") + row.completion
    _, closed, answer = whole.rpartition(CLOSE)
    if closed:
        return answer
    return "" if OPEN in whole else row.completion
