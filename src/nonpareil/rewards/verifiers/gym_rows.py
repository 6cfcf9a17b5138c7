"""Problems of reasoning-gym's generators as rows of a dataset, and which generators run what a model writes."""

import ast
import dataclasses
import importlib.metadata
import inspect
import json
import random
import sys
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from nonpareil.errors import ConfigError, DataError
from nonpareil.setting_types import check_value, nearest
from nonpareil.terminal import reason_of

INSTRUCTION = "Give the final answer between <answer> and </answer>."
RUNS_TEXT = frozenset(("eval", "exec", "compile", "parse_expr", "sympify"))
"""Functions that run the Python in a text, sympy's two among them."""
NONSENSE = "no answer"
"""What no problem has for an answer."""
SEED_FACTOR, SEEDS = 1327217885, 2**31
"""Generators draw problem i by seed + i, so that of neighbouring seeds all problems but one would be the same. The
seed is multiplied, modulo `SEEDS`: of a thousand successive ones no two are then nearer than 970,000 problems."""


def reasoning_gym_rows(
    generators: str | Mapping[str, float | Mapping[str, Any]],
    size: int,
    seed: int = 0,
    *,
    instruction: str | None = INSTRUCTION,
    conversational: bool = True,
    **config: Any,
) -> list[dict[str, Any]]:
    """Rows of `prompt`, `answer` and `entry` for the reward `reasoning_gym`.

    Args:
        generators: the name of one, or a mixture with weights and settings:
            {"chain_sum": 2, "leg_counting": {"weight": 1, "max_animals": 4}}.
        size: number of rows.
        seed: the same gives the same rows, with one version of reasoning-gym; another one other rows, to evaluate
            on. A generator that has few problems repeats them all the same, within its rows too.
        instruction: a system turn of conversations, and a line before the question of texts; None gives none.
        conversational: whether prompts are conversations, for a chat model, or texts.
        **config: the generator's own settings, of a single one.

    Raises:
        ConfigError: no such generator or setting, one whose verifier runs what a model writes, a weight that is
            none, or no reasoning-gym.
        DataError: a generator whose problems JSON cannot keep, or that does not tell right from wrong.
    """
    check_value("size", size, int, at_least=1)
    mixture = {generators: config} if isinstance(generators, str) else dict(generators)
    if not isinstance(generators, str) and config:
        raise ConfigError(f"{sorted(config)[0]}: a mixture has its settings with each generator's weight")
    if not mixture:
        raise ConfigError("generators is empty; name one of reasoning-gym's")
    weights, sources = [], []
    for place, (name, given) in enumerate(mixture.items()):
        own = dict(given) if isinstance(given, Mapping) else {"weight": given}
        weights.append(own.pop("weight", 1))
        check_value(f"the weight of {name!r}", weights[-1], int | float, above=0)
        first = (seed * SEED_FACTOR + place) % SEEDS
        made = make_generator(name, {**own, "seed": first, "size": size})
        sources.append((name, own, made, iter(range(size))))
    choose = random.Random(seed)
    rows = []
    for _ in range(size):
        name, own, made, places = choose.choices(sources, weights)[0]
        rows.append(_row(name, own, made, next(places), instruction, conversational))
    return rows


def make_generator(name: str, config: Mapping[str, Any]) -> Any:
    """A generator of reasoning-gym, whose verifier runs no text.

    Raises:
        ConfigError: no such generator or setting, one whose verifier runs text, or no reasoning-gym.
    """
    check_generator(name)
    from reasoning_gym.factory import DATASETS, create_dataset

    known = [field.name for field in dataclasses.fields(DATASETS[name][1])]
    for setting in config:
        if setting not in known:
            raise ConfigError(
                f"reasoning_gym: {name!r} has no setting {setting!r}"
                f"{nearest(setting, known, quoted=True) or '; it has: ' + ', '.join(known)}"
            )
    try:
        return create_dataset(name, **config)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(
            f"reasoning_gym: {name!r} with {dict(config)!r:.200}: {reason_of(error)}"
        ) from error


def check_generator(name: str) -> None:
    """Refuse what is no generator, and one whose verifier runs what a model writes.

    Raises:
        ConfigError: naming it.
    """
    try:
        importlib.metadata.version("reasoning-gym")
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError(
            'reasoning_gym needs reasoning-gym, which is not installed: pip install "nonpareil[gym]"'
        ) from error
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        raise ConfigError(f"reasoning-gym has no generator {name!r}{nearest(name, DATASETS, quoted=True)}")
    cls = DATASETS[name][0]
    if runs := runs_text(cls):
        raise ConfigError(
            f"reasoning_gym: the verifier of {name!r} is unsafe: it runs text as a program ({runs}), what a model "
            "wrote or what stands in a file; choose another generator"
        )


def runs_text(cls: type) -> str | None:
    """The call in `score_answer`, or in what it calls there, by which a class runs a text; None without one."""
    todo: list[tuple[Any, str]] = [(cls, "score_answer")]
    seen = set()
    while todo:
        owner, name = todo.pop()
        function = inspect.unwrap(getattr(owner, name, None) or str)
        module = sys.modules.get(getattr(function, "__module__", ""), None)
        if (owner, name) in seen or module is None or not module.__name__.startswith("reasoning_gym"):
            continue
        seen.add((owner, name))
        for called, owned in _calls(function):
            theirs = getattr(vars(module).get(called), "__module__", "").startswith("reasoning_gym")
            if called in RUNS_TEXT and not (theirs and not owned):
                return f"{called}(...) in {name}"
            todo.append((cls, called) if owned else (module, called))
    return None


def _calls(function: Any) -> Iterator[tuple[str, bool]]:
    """The names that a function calls, and whether as something's attribute."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError):  # a class of Python's own
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id, False
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            of = node.func.value
            if not (isinstance(of, ast.Name) and of.id == "re"):  # re.compile
                yield node.func.attr, True


def _row(
    name: str, config: Mapping[str, Any], made: Any, place: int, instruction: str | None, conversational: bool
) -> dict[str, Any]:
    entry = made[place]
    kept = {"name": name, "config": config, **{key: entry[key] for key in ("question", "answer", "metadata")}}
    try:
        text = json.dumps(kept, ensure_ascii=False)
        same = json.loads(text)
        right, wrong = (made.score_answer(answer, same) for answer in (entry["answer"], NONSENSE))
    except Exception as error:
        raise DataError(
            f"reasoning_gym: {name!r} cannot judge a problem that JSON has kept, or fails on {NONSENSE!r}: "
            f"{reason_of(error)}; choose another generator"
        ) from error
    if right < 1 or wrong >= 1:
        raise DataError(
            f"reasoning_gym: {name!r} gives its own answer {right:g} and {NONSENSE!r} {wrong:g}, once JSON has "
            "kept the problem, so its rewards would be wrong; choose another generator"
        )
    question: Any = entry["question"]
    if conversational:
        before = [{"role": "system", "content": instruction}] if instruction else []
        question = [*before, {"role": "user", "content": question}]
    elif instruction:
        question = f"{instruction}\n{question}"
    return {"prompt": question, "answer": str(entry["answer"]), "entry": text}
