"""vBoN's rule for TL;DR (arXiv:2407.06057, its code): a summary without an end scores -20."""

from typing import Any

END = 0  # <|endoftext|> of Pythia's tokenizer


def unfinished(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    """-20 where the end token is not the last one drawn, else 0; the reward model's score is added to it."""
    return [0.0 if ids[-1:] == [END] else -20.0 for ids in completion_ids]
