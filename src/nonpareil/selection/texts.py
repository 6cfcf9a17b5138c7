"""From texts to what rules read: the answer of each completion, and how alike two are."""

import re
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nonpareil.errors import ConfigError, DataError

ANSWERS = ("final", "whole")
"""final: the last \\boxed{}, else what follows the last ####, else the last number; whole: all of the text."""
SIMILARITIES = ("chrf", "words")
"""chrf: sacrebleu's, from 0 to 1 (extra `verifiers`); words: shared words over all words of the two."""
_NUMBER = re.compile(r"-?(?:\d[\d,]*\d|\d)(?:\.\d+)?(?:/\d+)?|-?\.\d+")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_CLOSED = "</think>"


def answer_numbers(texts: Sequence[str], read: str = "final") -> list[int]:
    """A number for each text's answer, equal where the answers are; -1 where none could be read.

    Raises:
        ConfigError: another word for `read`.
    """
    if read not in ANSWERS:
        raise ConfigError(f"answers={read!r} must be one of {', '.join(ANSWERS)}")
    numbers: dict[str, int] = {}
    found = [answer_of(text, read) for text in texts]
    return [-1 if one is None else numbers.setdefault(one, len(numbers)) for one in found]


def answer_of(text: str, read: str = "final") -> str | None:
    """The answer in a completion, numbers as Python writes them (`1,000.0` is `1000`); None where there is none.

    Thoughts up to the last `</think>` are not looked at.
    """
    own = text.rpartition(_CLOSED)[2]
    if read == "whole":
        return " ".join(own.split()) or None
    if (boxed := _boxed(own)) is not None:
        return _normal(boxed)
    if "####" in own:
        return _normal(own.rpartition("####")[2].strip().split("\n")[0])
    numbers = _NUMBER.findall(own)
    return _normal(numbers[-1]) if numbers else None


def _boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{}` that is closed."""
    for start in reversed([match.end() for match in re.finditer(r"\\boxed\s*\{", text)]):
        depth = 1
        for place in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if depth == 0:
                return text[start:place]
    return None


def _normal(answer: str) -> str | None:
    plain = _THOUSANDS.sub("", " ".join(answer.replace("$", "").split())).removesuffix(".")
    try:
        number = Decimal(plain)
    except InvalidOperation:
        return plain or None
    return f"{number.normalize():f}" if number.is_finite() else plain


def pairwise(
    texts: Sequence[str], similarity: str | Callable[[str, str], float] = "chrf"
) -> Float[Tensor, "m m"]:
    """How like each text (row) is to each other (column), float64; equal texts are compared once.

    Raises:
        ConfigError: another word for `similarity`, or sacrebleu is not installed.
        DataError: the function gave no finite number.
    """
    compare = _comparison(similarity)
    different = list(dict.fromkeys(texts))
    rows = [[float(compare(guess, other)) for other in different] for guess in different]
    table = torch.tensor(rows, dtype=torch.float64).view(len(different), len(different))
    if not table.isfinite().all():
        raise DataError(f"similarity={similarity!r} gave no finite number for two completions")
    places = torch.tensor([different.index(text) for text in texts], dtype=torch.long)
    return table[places][:, places]


def check_similarity(similarity: str) -> None:
    """Refuse what cannot be compared by.

    Raises:
        ConfigError: another word, or sacrebleu is not installed.
    """
    _comparison(similarity)


def _comparison(similarity: Any) -> Callable[[str, str], float]:
    if callable(similarity):
        return similarity
    if similarity == "words":
        return _shared_words
    if similarity != "chrf":
        raise ConfigError(f"similarity={similarity!r} must be one of {', '.join(SIMILARITIES)}")
    try:
        from sacrebleu.metrics import CHRF
    except ImportError as error:
        raise ConfigError(
            "similarity='chrf' needs sacrebleu, which is not installed: "
            'pip install "nonpareil[verifiers]", or give similarity=words'
        ) from error
    chrf = CHRF()
    return lambda guess, other: chrf.sentence_score(guess, [other]).score / 100


def _shared_words(guess: str, other: str) -> float:
    words = {*guess.lower().split()}, {*other.lower().split()}
    union = words[0] | words[1]
    return len(words[0] & words[1]) / len(union) if union else 1.0
