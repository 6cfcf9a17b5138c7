"""Solutions and their tests, two processes: right ones pass whatever they hand over, wrong ones by no trick."""

from collections.abc import Iterator

import pytest

from nonpareil.user_code.sandbox import Sandbox
from nonpareil.user_code.sandbox import Tests as SomeTests
from nonpareil.user_code.sandbox.completions import head_of, program_of
from nonpareil.user_code.sandbox.confine import missing_cuts
from tests.user_code.cheats import CHEATS
from tests.user_code.right import RIGHT, WITH_NUMPY

judged = pytest.mark.skipif(bool(missing_cuts()), reason=f"cannot be cut off here: {missing_cuts()}")

ASSERTS = ["assert f(1) == 2", "assert abs(f(5) - 6) < 1e-6"]
CHECK = "def check(candidate):\n    assert candidate(1) == 2\n    assert abs(candidate(5) - 6) < 1e-6\n"
PYTEST = "import pytest\n@pytest.mark.skipif(False, reason='')\ndef test_f():\n    assert f(1) == 2"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(timeout=20) as made:
        yield made


@pytest.fixture(scope="module")
def impatient() -> Iterator[Sandbox]:
    with Sandbox(timeout=0.5) as made:
        yield made


@judged
def test_right_solutions_pass(sandbox: Sandbox) -> None:
    pairs = [(source, SomeTests(asserts=asserts)) for source, asserts in RIGHT.values()]
    for name, verdict in zip(RIGHT, sandbox.judge(pairs), strict=True):
        assert verdict.passed, (name, verdict)


@judged
def test_numbers_of_numpy_are_numbers(sandbox: Sandbox) -> None:
    pytest.importorskip("numpy")
    pairs = [(source, SomeTests(asserts=asserts)) for source, asserts in WITH_NUMPY.values()]
    for name, verdict in zip(WITH_NUMPY, sandbox.judge(pairs), strict=True):
        assert verdict.passed, (name, verdict)


@judged
@pytest.mark.parametrize(
    "tests", [SomeTests(asserts=ASSERTS), SomeTests(program=CHECK, entry_point="f", each=True)]
)
def test_no_cheat_passes_and_each_is_told_wrong(impatient: Sandbox, tests: SomeTests) -> None:
    assert impatient.judge([("def f(x): return x + 1", tests)])[0].passed
    for name, verdict in zip(CHEATS, impatient.judge([(one, tests) for one in CHEATS.values()]), strict=True):
        assert (verdict.passed, verdict.held, verdict.failure) == (False, 0, None), (name, verdict)
        assert verdict.reason, name


@judged
def test_tests_that_say_nothing_are_broken_and_no_solution_is_judged_by_them(sandbox: Sandbox) -> None:
    broken = {
        "do not parse": SomeTests(asserts=["assert f(1) =="]),
        "test 2 asserts nothing": SomeTests(asserts=["assert f(1) == 2", "f(1) == 3"]),
        "assert nothing": SomeTests(program="def check(candidate):\n    pass", entry_point="f"),
        "neither check": SomeTests(program="x = 1", entry_point="f"),
        "entry_point is empty": SomeTests(program=CHECK),
        "are in functions, and nothing calls them": SomeTests(
            program=f"{PYTEST}\nif __name__ == '__main__':\n    test_f()", each=True
        ),
        "test 1 defines functions, and nothing calls": SomeTests(asserts=[PYTEST]),
        "setup fails: ModuleNotFoundError": SomeTests(asserts=ASSERTS, setup=["import no_such_module"]),
        "cannot be run here: ModuleNotFoundError": SomeTests(
            program=f"import no_such_module\n{CHECK}", entry_point="f"
        ),
    }
    verdicts = sandbox.judge([("def f(x): return x + 1", tests) for tests in broken.values()])
    for reason, verdict in zip(broken, verdicts, strict=True):
        assert verdict.failure is not None, reason
        assert reason in verdict.failure
        assert not verdict.passed


@judged
def test_each_test_counts(sandbox: Sandbox) -> None:
    wrong = "def f(x): return x + 1 if x < 3 else 0"
    endless = "def f(x):\n    while x > 1: pass\n    return x + 1"
    pairs = [
        (wrong, SomeTests(asserts=["assert f(9) == 10", *ASSERTS], each=True)),
        (wrong, SomeTests(asserts=["assert f(9) == 10", *ASSERTS])),
        (wrong, SomeTests(program=CHECK, entry_point="f", each=True)),
        # `assert True` says nothing, and an assertion that is not reached is none of those that count.
        (
            "def f(x): return x + 1",
            SomeTests(program="assert True\nif f(1) != 2:\n    assert False\nassert f(2) == 3"),
        ),
        ("def f(x): return []", SomeTests(program="for each in f(1):\n    assert each == 1")),
        (endless, SomeTests(asserts=ASSERTS, each=True)),
    ]
    with Sandbox(timeout=0.5) as impatient:
        found = impatient.judge(pairs)
    assert [(verdict.held, verdict.total) for verdict in found[:3]] == [(1, 3), (0, 3), (1, 2)]
    assert found[3].passed
    assert (found[4].held, found[4].reason, found[4].failure) == (0, "no assertion was reached", None)
    assert (found[5].held, found[5].total, found[5].reason) == (1, 2, "timeout")


@judged
def test_setup_that_a_solution_breaks_is_the_solutions_fault(sandbox: Sandbox) -> None:
    node = "class Node:\n    def __init__(self, v):\n        self.v, self.left = v, None\n"
    tree = "root = Node(1)\nroot.left = Node(2)"
    depth = "def f(r): return 1 + f(r.left) if r else 0"
    tests = SomeTests(asserts=["assert f(root) == 2"], setup=[tree])
    of_theirs = SomeTests(asserts=["assert f(root) == 2"], setup=[node + tree])
    found = sandbox.judge(
        [(node + depth, tests), (depth, of_theirs), (depth, tests), ("Node = 3\n" + depth, tests)]
    )
    assert [verdict.passed for verdict in found] == [True, True, False, False]
    assert [verdict.failure for verdict in found] == [None] * 4


@judged
def test_what_a_prompt_gives_is_there_for_tests_and_solution(sandbox: Sandbox) -> None:
    start = "import math\n\ndef twice(x):\n    return 2 * x\n\ndef f(x):\n    '''Twice the root.'''\n"
    check = "def check(candidate):\n    assert candidate(4) == twice(math.sqrt(4))"
    tests = SomeTests(program=check, entry_point="f", start=start)
    cheat = "twice = lambda x: 0\nimport cmath as math\ndef f(x): return 0"
    answers = [
        "    return twice(math.sqrt(x))",
        "```python\ndef f(x):\n    return twice(math.sqrt(x))\n```",
        cheat,
        "    pass",
    ]
    assert [verdict.passed for verdict in sandbox.judge([(one, tests) for one in answers])] == [
        True,
        True,
        False,
        False,
    ]
    method = SomeTests(program=CHECK, entry_point="Solution().f")
    assert sandbox.judge([("class Solution:\n    def f(self, x): return x + 1", method)])[0].passed


DEFINED = "def f(x):\n    return x"
TEXTS = {
    f"Sure:\n```python\n{DEFINED}\n```\nIt prints\n```\n7\n```\n```python\nassert f(1) == 9\n```": [DEFINED],
    f"```\n{DEFINED}\n```": [DEFINED],
    f"```python\nimport math\n```\nand\n```py\n{DEFINED}\n```": ["import math", DEFINED],
    f"```bash\npip install x\n```\n```Python\n{DEFINED}\n```": [DEFINED],
    f"```python\n>>> f(1)\n1\n```\n```python\n{DEFINED}\n```": [DEFINED],
    "1. Do\n   ```python\n   def f(x):\n       return x\n   ```": [DEFINED],
    f"~~~python\n{DEFINED}\n~~~": [DEFINED],
    f"Here it is: ```python\n{DEFINED}\n```": [DEFINED],
    f"```python\n{DEFINED}\nprint(f(": [DEFINED],
    f"````python\n{DEFINED}\n````": [DEFINED],
    f"```python\ndef f(x): ...\n```\n```python\n{DEFINED}\n```": ["def f(x): ...", DEFINED],
    DEFINED: [DEFINED],
    f"The function:\n\n{DEFINED}\n\nIt returns what it is given.": [DEFINED],
    "```python\nx = 1\n```\n```python\ny = 2\n```": ["x = 1", "y = 2"],
    "I do not know.": [],
    "": [],
    "```javascript\nfunction f(x) { return x }\n```": [],
}


@pytest.mark.parametrize("answer", TEXTS)
def test_the_program_in_an_answer(answer: str) -> None:
    head, *texts = program_of(answer, ["f"], "") or [""]
    assert head == ""
    assert [text.rstrip() for text in texts] == TEXTS[answer]


def test_the_words_of_a_prompt_are_no_code() -> None:
    assert head_of("Add", ["f"]) == head_of("import os; os.remove('x')", ["f"]) == ""
    assert head_of("import os\ndef g(): pass", ["f"]) == ""  # ends in another function
    assert head_of("import os\ndef f(): return 1", ["f"]) == ""  # there is nothing to be written
    assert program_of(" two numbers", ["f"], "Add") == []
    assert head_of("import os\n\ndef f(x):\n    # to be written", ["f"]) == "import os"
    assert program_of("    return 1\n\nNow you see.", ["f"], "def f(x):\n") == ["def f(x):\n    return 1\n"]


def test_of_what_follows_a_solution_only_what_it_lacks_is_run() -> None:
    solution = "import math\ndef f(x):\n    return twice(x) + math.pi"
    helper = "from functools import cache\n@cache\ndef half(x):\n    return x / 2\n"
    helper += "def twice(x):\n    return 4 * half(x)"
    example = "x = f(3)\nprint(x)\ndef f(x):\n    return 0\nmath = None\nopen('x')"

    def program(*blocks: str) -> list[str]:
        return program_of("\n".join(f"```python\n{block}\n```" for block in blocks), ["f"], "")

    assert program(solution, example) == ["", solution]
    *own, lacked = program(solution, example, helper)
    assert (own, lacked) == (["", solution], helper)
    whole: dict[str, object] = {}
    for text in program(solution, helper.replace("import cache", "import cache, wraps") + "\n" + example):
        exec(text, whole)
    assert whole["f"](1) == 2 + whole["math"].pi  # type: ignore[operator, attr-defined]
    assert "x" not in whole
    assert (
        program("def f(x):\n    def g(y): return y\n    return [g(y) for y in x]", "g = 3\ny = 4")[2:] == []
    )
    of_no_sense = "def f(x):\n    nonlocal x"  # which parses
    assert program(of_no_sense, helper)[2:] == []
    assert program("def f(x): return g(x)", "if True:\n    g = f\nfor g in f(1): pass")[2:] == []
