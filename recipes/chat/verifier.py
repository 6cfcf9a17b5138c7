"""Rewards of the verifiable task: reasoning-gym's own verifiers (PyPI reasoning-gym), all or nothing.

    nonpareil sample --reward_funcs recipes/chat/verifier.py:solved ...

Each prompt brings two columns: `generator`, the name of a reasoning-gym generator, and `entry`, what it made, as
JSON. The answer is taken out of the completion by `stated_answer`. reasoning-gym gives part of the credit to
texts that merely hold the answer, or try; here only full credit counts, so that a reward of .01 for a wrong
answer never wins among wrong answers.
"""

import json
import re
from functools import cache
from typing import Any

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:[eE][+-]?\d+)?")
VERDICT = re.compile(r"\b(yes|no|true|false)\b", re.IGNORECASE)
MARKS = " \t\"'`*.:;!$"
UNSAFE = frozenset(
    {
        *("binary_matrix", "n_queens", "spiral_matrix", "string_insertion"),
        *(
            "countdown",
            "intermediate_integration",
            "polynomial_multiplication",
            "puzzle24",
            "simple_integration",
        ),
    }
)
"""Generators whose verifier runs the answer as Python (eval, sympy's parse_expr): never given a model's words."""


@cache
def verifier(generator: str) -> Any:
    """A dataset of the generator, for its `score_answer` alone."""
    import reasoning_gym

    if generator in UNSAFE:
        raise ValueError(f"{generator}: its verifier would run a model's answer as Python")
    return reasoning_gym.create_dataset(generator, seed=0, size=1)


def stated_answer(text: str, like: str) -> str:
    """What a completion gives as its answer, where the right one looks `like` this.

    A number: the last number. Yes, no, true or false: the first of these words. Else the last line with words,
    after its last colon, without marks and markup around it.
    """
    if NUMBER.fullmatch(like.strip()):
        found = NUMBER.findall(text)
        return found[-1].replace(",", "") if found else ""
    if VERDICT.fullmatch(like.strip()):
        found = VERDICT.findall(text)
        return found[0].capitalize() if found else ""
    lines = [line.strip(MARKS) for line in text.split("\n")]
    last = next((line for line in reversed(lines) if line), "")
    if ":" in last and ":" not in like:
        last = last.rsplit(":", 1)[1]
    return last.strip(MARKS)


def solved(
    completions: list[Any], generator: list[str], entry: list[str], **columns: Any
) -> list[float | None]:
    """1 where the stated answer has the verifier's full credit, else 0; where the verifier itself fails, a null."""
    rewards: list[float | None] = []
    for completion, name, made in zip(completions, generator, entry, strict=True):
        text = completion if isinstance(completion, str) else completion[-1]["content"]
        made = json.loads(made)
        answer = stated_answer(text, str(made["answer"]))
        rewards.append(float(verifier(name).score_answer(answer, made) >= 1))
    return rewards
