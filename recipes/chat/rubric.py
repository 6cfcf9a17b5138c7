"""Rewards of the graded task: how well a short answer keeps to what was asked, by four short checkers.

    nonpareil sample --reward_funcs recipes/chat/rubric.py:length recipes/chat/rubric.py:keyword \\
        recipes/chat/rubric.py:whole recipes/chat/rubric.py:plain --reward_weights 2 1.5 1 1.5 ...

Each prompt brings what it asked for as columns: `keyword`, a word to use, and `words`, how many words the answer
may have. Every checker gives a number from 0 to 1. Two of them have many values, so that few answers tie.
"""

import re
from typing import Any

WORD = re.compile(r"[A-Za-z][A-Za-z'-]*")
EXCUSES = re.compile(
    r"\b(sorry|apologi[sz]e|as an ai|i cannot|i can't|i'm unable|language model)\b", re.IGNORECASE
)


def texts_of(completions: list[Any]) -> list[str]:
    """Plain texts, also of conversations."""
    return [each if isinstance(each, str) else each[-1]["content"] for each in completions]


def length(completions: list[Any], words: list[int], **columns: Any) -> list[float]:
    """1 for as many words as were allowed, or a fifth fewer; the share that they are apart, below and above."""
    counts = [len(WORD.findall(text)) for text in texts_of(completions)]
    return [
        1.0 if 0.8 * most <= count <= most else min(count / (0.8 * most), most / max(count, 1))
        for count, most in zip(counts, words, strict=True)
    ]


def keyword(completions: list[Any], keyword: list[str], **columns: Any) -> list[float]:
    """1 where the asked word is used, in any case of letters and with any ending of up to two letters."""
    asked = [re.compile(rf"\b{re.escape(word)}[a-z]{{0,2}}\b", re.IGNORECASE) for word in keyword]
    return [float(bool(one.search(text))) for one, text in zip(asked, texts_of(completions), strict=True)]


def whole(completions: list[Any], **columns: Any) -> list[float]:
    """1 for a capital at the start, the end of a sentence at the end, and no excuse; half where one is missing."""
    scores = []
    for text in texts_of(completions):
        stripped = text.strip()
        kept = [stripped[:1].isupper(), stripped.endswith((".", "!", "?")), not EXCUSES.search(text)]
        scores.append({3: 1.0, 2: 0.5}.get(sum(kept), 0.0))
    return scores


def plain(completions: list[Any], **columns: Any) -> list[float]:
    """The share of different words that have at most six letters; 0 for a list, markup or no words."""
    scores = []
    for text in texts_of(completions):
        different = {word.lower() for word in WORD.findall(text)}
        marked = re.search(r"[*#_`]|^\s*(\d+[.)]|-)\s", text, re.MULTILINE)
        scores.append(
            0.0 if marked or not different else sum(len(w) <= 6 for w in different) / len(different)
        )
    return scores


def all_four(completions: list[Any], words: list[int], keyword: list[str], **columns: Any) -> list[float]:
    """The weighted sum, for tools that take one reward."""
    used = globals()["keyword"](completions, keyword)
    parts = zip(length(completions, words), used, whole(completions), plain(completions), strict=True)
    return [2 * a + 1.5 * b + c + 1.5 * d for a, b, c, d in parts]
