"""A completion that a verifier cannot judge is null with its reason, and its neighbours are judged."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from nonpareil.errors import ConfigError, DataError
from nonpareil.records import Group, Prompt, ScoreRequest
from nonpareil.rewards.verifiers import Row, Verifier
from tests.rewards.verifiers.misbehaving import Obedient

ROOT = Path(__file__).parents[3]


def request_of(*completions: str, **columns: list) -> ScoreRequest:
    return ScoreRequest(["p"] * len(completions), list(completions), [[7]] * len(completions), columns)


@pytest.fixture(scope="module")
def obedient():
    verifier = Obedient(timeout=1)
    yield verifier
    verifier.release()


def test_what_one_completion_does_costs_no_other_its_reward(obedient, tmp_path):
    obedient.log_errors_to(tmp_path)
    words = ["1", "loop", "2", "die", "3", "compute", "allocate", "unknown", "\x00", "\ud800", "4"]
    scores = obedient.score(request_of(*words))
    assert [value for value in scores.values if value is not None] == [1.0, 2.0, 3.0, 4.0]
    reasons = dict(zip(words, scores.failures, strict=True))
    assert reasons["loop"] == reasons["compute"] == "timed out after 1 s"
    assert reasons["die"] == "its process died (exit code -9)"
    assert reasons["allocate"] == "MemoryError"
    assert reasons["unknown"] == "nobody knows"
    assert reasons["\x00"].startswith("could not convert")
    assert [reasons[word] for word in ("1", "2", "3", "4")] == [None] * 4
    assert "MemoryError" in (tmp_path / "reward-errors.log").read_text()


def test_a_process_that_was_killed_between_two_calls_costs_no_completion_its_reward(obedient):
    assert obedient.score(request_of("1")).values == [1.0]
    obedient._process._process.kill()
    obedient._process._process.wait()
    assert obedient.score(request_of("2")).values == [2.0]


def test_a_script_needs_no_main_guard_and_leaves_no_process(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from nonpareil.records import ScoreRequest\n"
        "from tests.rewards.verifiers.misbehaving import Obedient\n"
        "verifier = Obedient(timeout=20)\n"
        "print(verifier.score(ScoreRequest(['p'], ['5'], [[1]], {})).values)\n"
        "print(verifier._process._process.pid)\n"
    )
    found_at = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=True, env=os.environ | found_at
    )
    values, pid = done.stdout.splitlines()
    assert values == "[5.0]"
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


def test_the_columns_it_reads_are_there(obedient):
    with pytest.raises(ConfigError, match=r"'answer', which the prompts lack \(they have: question, gold\)"):
        obedient.check_prompts([Prompt("a", "p", [1], {"question": "?", "gold": 1})], 8, None)
    with pytest.raises(DataError, match="'answer' is empty in every row"):
        obedient.check_prompts([Prompt("a", "p", [1], {"answer": " "})], 8, None)
    obedient.check_prompts([Prompt("a", "p", [1], {"answer": "1"})], 8, None)


def test_what_cannot_be_made_elsewhere_is_refused():
    @dataclass(eq=False)
    class Local(Obedient):
        name = "local"

    with pytest.raises(ConfigError, match=r"Local must stand in a module"):
        Local().score(request_of("1"))


@dataclass(eq=False)
class Lengths(Verifier):
    name = "lengths"

    def judge(self, row: Row) -> float:
        return 1 / len(row.completion)


def test_a_rule_of_our_own_needs_no_process(tmp_path):
    verifier = Lengths()
    assert verifier.score(request_of("ab", "", "abcd")).values == [0.5, None, 0.25]
    assert verifier.score(request_of("")).failures == ["ZeroDivisionError: float division by zero"] or (
        verifier.score(request_of("")).failures == ["ZeroDivisionError: division by zero"]
    )
    assert verifier.describe() == {
        "name": "lengths",
        "kind": "verifier",
        "revision": 1,
        "settings": {},
        "packages": {},
    }


def test_messages_are_read_as_their_text_and_openings_stay_with_their_rows():
    group = Group(
        "a", [{"role": "user", "content": "p"}], [1], ["x", "yy"], [[1], [1, 2]], ["stop", "length"], []
    )
    group.opening = "<think>"
    request = ScoreRequest.of([group]).select([1, 0]).copy()
    assert (request.openings, request.finish_reasons) == (["<think>"] * 2, ["length", "stop"])
    assert Lengths().score(request).values == [0.5, 1.0]
