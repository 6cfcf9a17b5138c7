"""A pairwise judge: what its scores are exactly, what a call costs, and what never becomes a score."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from nonpareil.errors import ConfigError, RewardError
from nonpareil.records import Group, ScoreRequest
from nonpareil.rewards import CombinedReward, FunctionReward, JudgeReward
from nonpareil.rewards.judge.cache import AnswerCache
from nonpareil.rewards.judge.questions import TEMPLATE, read_verdict
from nonpareil.rewards.judge.schedule import calls_for, schedule
from tests.rewards.servers import Server, answers_of, chat, longer, prefers_the_first, serve

PLAIN = "{prompt}|{a}|{b}"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nonpareil.remote.FIRST_WAIT", 0.001)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def group(prompt: Any, *completions: str, number: int = 0) -> Group:
    size = len(completions)
    return Group(f"p-{number}", prompt, [1], list(completions), [[1]] * size, ["stop"] * size, [[0.0]] * size)


def request_of(*groups: Group) -> ScoreRequest:
    return ScoreRequest.of(groups)


def judge(server: Server, **settings: Any) -> JudgeReward:
    return JudgeReward("org/judge", f"{server.url}/v1", **{"template": PLAIN, "max_retries": 2, **settings})


# --- Scores


def test_a_transitive_judge_ranks_a_group_by_its_wins() -> None:
    with serve(longer) as server:
        scores = judge(server).score(request_of(group("p", "aaa", "a", "aaaa", "aa")))
    assert scores.values == [2 / 3, 0.0, 1.0, 1 / 3]
    assert scores.failures == [None] * 4


def test_position_bias_gives_ties_only() -> None:
    with serve(prefers_the_first) as server:
        reward = judge(server)
        assert reward.score(request_of(group("p", "a", "bb", "ccc"))).values == [0.5, 0.5, 0.5]
    assert reward.counts["disagreements"] == reward.counts["pairs"] == 3
    # Every pair was shown in both orders.
    shown = Counter(answers_of(request) for request in server.requests)
    assert shown == Counter((x, y) for x in ("a", "bb", "ccc") for y in ("a", "bb", "ccc") if x != y)


def test_a_win_in_one_order_and_a_tie_in_the_other_is_a_tie() -> None:
    with serve(lambda request: chat("A" if answers_of(request) == ("x", "y") else "tie")) as server:
        assert judge(server).score(request_of(group("p", "x", "y"))).values == [0.5, 0.5]


def test_equal_completions_tie_without_a_call() -> None:
    with serve(longer) as server:
        reward = judge(server)
        assert reward.score(request_of(group("p", "aa", "aa"))).values == [0.5, 0.5]
        assert server.requests == []
        # Against the third, both are asked about once: 2 calls, not 4.
        assert reward.score(request_of(group("p", "aa", "aa", "a"))).values == [0.75, 0.75, 0.0]
        assert len(server.requests) == 2


def test_groups_of_equal_prompts_stay_apart() -> None:
    with serve(longer) as server:
        request = request_of(group("p", "a", "aa"), group("p", "aaa", "aaaa", number=1))
        assert judge(server).score(request).values == [0.0, 1.0, 0.0, 1.0]
        assert len(server.requests) == 4  # 2 pairs, not the 6 of one group of four


def test_a_score_depends_on_its_own_group_only() -> None:
    ours = group("p", *("a" * n for n in (3, 9, 1, 7, 5, 2)))
    others = [group(f"q{i}", "b", "bb", "bbb", "c", "cc", "ccc", number=i + 1) for i in range(3)]
    with serve(longer) as server:
        alone = judge(server, max_calls=12).score(request_of(ours)).values
        among = judge(server, max_calls=12).score(request_of(others[0], ours, *others[1:])).values
    assert among[6:12] == alone


def test_conversations_and_braces_reach_the_judge_as_they_are() -> None:
    turns = [{"role": "system", "content": "be {a}"}, {"role": "user", "content": "hi"}]
    with serve(longer) as server:
        reward = judge(server)
        reward.score(request_of(group(turns, "{b} {prompt}", "{0}")))
    said = {request["messages"][0]["content"] for request in server.requests}
    assert said == {
        "system: be {a}\n\nuser: hi|{b} {prompt}|{0}",
        "system: be {a}\n\nuser: hi|{0}|{b} {prompt}",
    }
    assert {(r["model"], r["temperature"]) for r in server.requests} == {("org/judge", 0)}
    assert set(server.paths) == {"/v1/chat/completions"}


# --- What cannot be scored


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("A", 1.0),
        (" b\n", 0.0),
        ("Tie.", 0.5),
        ("**B**", 0.0),
        ("[[A]]\r\nsince it is right", 1.0),
        ("A\nBecause", 1.0),
        ("b:", 0.0),
        ("b: shorter", None),
        ("[[A]] since it is right", None),
        ("A: 3/10, B: 9/10", None),
        ("(A) is worse than (B).", None),
        ("**A** and **B** are equal", None),
        ("A's answer is worse", None),
        ("A.B.", None),
        ("TIE", 0.5),
        ("A good answer would", None),
        ("A tie", None),
        ("A/B", None),
        ("A, B", None),
        ("Both", None),
        ("Answer A", None),
        ("", None),
        ("tied", None),
        ("<think>A", None),
    ],
)
def test_a_verdict_is_one_word_marked_off(answer: str, verdict: float | None) -> None:
    assert read_verdict(answer) == verdict


def test_an_unparseable_verdict_is_no_number() -> None:
    def of_b(request: dict[str, Any]) -> dict[str, Any]:
        return chat("Both are fine") if "b" in "".join(answers_of(request)) else longer(request)

    with serve(of_b) as server:
        reward = judge(server)
        scores = reward.score(request_of(group("p", "a", "aa", "b")))
        # The other two keep the share of the pairs that have a verdict.
        assert scores.values == [0.0, 1.0, None]
        assert scores.failures == [None, None, "the judge's verdict could not be read"]
        assert reward.counts["unparseable"] == reward.counts["pairs without verdict"] == 2
        calls = len(server.requests)
        assert reward.score(request_of(group("p", "a", "aa", "b"))).values == [0.0, 1.0, None]
        assert len(server.requests) == calls  # what was answered was paid for, parseable or not


def test_a_judge_that_never_gives_a_verdict_ends_the_run() -> None:
    with serve(lambda request: chat("<think> Well,")) as server:
        assert judge(server).score(request_of(group("p", "a", "b", "c"))).values == [None] * 3
        with pytest.raises(RewardError, match=r"none of 20 answers begins with a verdict.*'<think> Well,'"):
            judge(server).score(request_of(group("p", *"abcde")))


@pytest.mark.parametrize("body", [chat("A", choices=2), chat(None), {"choices": []}, ["A"], {"error": "x"}])
def test_an_answer_without_one_choice_is_no_verdict(body: Any) -> None:
    with serve(lambda request: body if "b" in answers_of(request) else longer(request)) as server:
        scores = judge(server).score(request_of(group("p", "a", "aa", "b")))
    assert scores.values == [0.0, 1.0, None]
    assert "holds no one choice" in (scores.failures[2] or "")


def test_a_server_that_never_answers_one_choice_ends_the_run() -> None:
    with serve(lambda request: chat("A", choices=2)) as server:
        with pytest.raises(RewardError, match=r"20 times: the judge answered .*holds no one choice"):
            judge(server).score(request_of(group("p", *"abcde")))
        assert len(server.requests) == 20


@pytest.mark.parametrize("status", [400, 422, 429, 500])
def test_a_call_that_fails_costs_its_pair_only(status: int) -> None:
    def fails_on_b(request: dict[str, Any]) -> Any:
        return (status, {"error": {"message": "too much"}}) if "b" in answers_of(request) else longer(request)

    with serve(fails_on_b) as server:
        reward = judge(server)
        scores = reward.score(request_of(group("p", "a", "aa", "b")))
        assert scores.values == [0.0, 1.0, None]
        assert str(status) in (scores.failures[2] or "")
        assert "too much" in (scores.failures[2] or "")
        assert "127.0.0.1" not in (scores.failures[2] or "")  # reasons are stored; addresses are not
        tries = Counter(answers_of(request) for request in server.requests)
        assert tries["a", "b"] == (3 if status in (429, 500) else 1)
        # Whether the server is gone is seen by asking once more for what it has answered.
        assert tries["a", "aa"] + tries["aa", "a"] == (3 if status in (429, 500) else 2)
    # It was not kept: when the judge is well again, only these calls are made.
    with serve(longer) as well:
        again = judge(well, cache=None)
        again.judge.cache = reward.judge.cache
        assert again.score(request_of(group("p", "a", "aa", "b"))).values == [0.25, 1.0, 0.25]
        assert len(well.requests) == 4


def test_a_judge_that_is_down_ends_the_run() -> None:
    with serve(longer) as server:
        reward = judge(server, max_retries=0)
    started = time.monotonic()
    many = [group(f"p{i}", *("a" * n for n in range(1, 9)), number=i) for i in range(20)]
    with pytest.raises(RewardError, match="16 of 1120 requests failed, the last 16 in a row"):
        reward.score(request_of(*many))
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_ends_the_run_at_once(status: int) -> None:
    with serve(lambda request: (status, {"error": "no"})) as server:
        with pytest.raises(RewardError, match=str(status)):
            judge(server).score(request_of(group("p", *"abcdefgh")))
        assert len(server.requests) <= 8


def test_parts_of_groups_and_unknown_groups_are_refused() -> None:
    with serve(longer) as server:
        reward = judge(server)
        whole = request_of(group("p", "a", "aa", "aaa"))
        with pytest.raises(RewardError, match="2 of a group's 3 completions"):
            reward.score(whole.select([0, 2]))
        with pytest.raises(RewardError, match="does not say which are one"):
            reward.score(ScoreRequest(["p"] * 2, ["a", "b"], [[1]] * 2, {}))
        with pytest.raises(ConfigError, match="this group has 1"):
            reward.score(request_of(group("p", "a")))
        assert reward.score(whole.select([2, 0, 1])).values == [1.0, 0.0, 0.5]
        assert len(server.requests) == 6


def test_select_keeps_the_groups_borders() -> None:
    request = request_of(group("p", "a", "aa"), group("p", "b", "bb", "bbb", number=1))
    assert request.group_places == [(0, 2), (0, 2), (1, 3), (1, 3), (1, 3)]
    assert request.select([4, 0]).group_places == [(1, 3), (0, 2)]


# --- The budget


def test_every_schedule_is_connected_and_even() -> None:
    checked = 0
    for size in range(2, 13):
        for budget in (*range(2, size * size + 2), None):
            least = 2 if size == 2 else 2 * size
            if budget is not None and budget < least:
                with pytest.raises(ConfigError, match=rf"judge_max_calls={budget} is too few"):
                    schedule(size, budget, "key")
                continue
            made = schedule(size, budget, f"key {budget}")
            times = Counter(place for pair in made.pairs for place in pair)
            assert [times[place] for place in range(size)] == [made.opponents] * size
            assert len(set(made.pairs)) == len(made.pairs) == calls_for(size, budget) // 2
            assert budget is None or 2 * len(made.pairs) <= budget
            # The most that is even: one more opponent each would cost more, or cannot be.
            more = size * (made.opponents + 1)
            if budget is not None and made.opponents < size - 1:
                assert more > budget or more % 2 or size * (made.opponents + 2) > budget
            reached = {0}
            for _ in range(size):
                reached |= {place for pair in made.pairs if reached & set(pair) for place in pair}
            assert len(reached) == size
            checked += 1
    assert checked > 300


def test_a_schedule_follows_from_its_key() -> None:
    assert schedule(12, 48, "x") == schedule(12, 48, "x")
    assert len({schedule(12, 48, f"{i}").pairs for i in range(20)}) == 20


def test_which_pairs_are_judged_follows_from_seed_and_prompt() -> None:
    asked = []
    for seed, prompt in ((0, "p"), (0, "p"), (1, "p"), (0, "q")):
        with serve(longer) as server:
            judge(server, max_calls=24, seed=seed).score(request_of(group(prompt, *"abcdefghijkl")))
            asked.append({answers_of(request) for request in server.requests})
    assert asked[0] == asked[1]
    assert asked[2] != asked[0] != asked[3]


@pytest.mark.parametrize(("budget", "calls"), [(None, 56), (56, 56), (55, 48), (31, 24), (16, 16)])
def test_the_budget_is_kept_to_the_call(budget: int | None, calls: int) -> None:
    data = request_of(*(group(f"p{i}", *("a" * n for n in range(1, 9)), number=i) for i in range(3)))
    with serve(longer) as server:
        reward = judge(server, max_calls=budget)
        assert reward.check_group_size(8) == calls
        scores = reward.score(data)
    assert len(server.requests) == reward.counts["calls"] == 3 * calls
    assert scores.values.count(None) == 0
    assert all(scores.values[i] == 0.0 and scores.values[i + 7] == 1.0 for i in (0, 8, 16))


def test_a_budget_that_does_not_join_the_group_is_refused_before_any_call() -> None:
    with serve(longer) as server:
        with pytest.raises(ConfigError, match=r"judge_max_calls=15 is too few for 8 completions.*takes 16"):
            judge(server, max_calls=15).score(request_of(group("p", *"abcdefgh")))
        assert server.requests == []
        with pytest.raises(ConfigError, match="judge_max_calls=1 must be at least 2"):
            judge(server, max_calls=1)


def test_retries_of_a_call_are_no_further_calls() -> None:
    seen: Counter[Any] = Counter()

    def flaky(request: dict[str, Any]) -> Any:
        seen[answers_of(request)] += 1
        return (503, {}) if seen[answers_of(request)] == 1 else longer(request)

    with serve(flaky) as server:
        reward = judge(server, max_calls=6)
        assert reward.score(request_of(group("p", "a", "aa", "aaa"))).values == [0.0, 0.5, 1.0]
    assert reward.counts["calls"] == 6
    assert len(server.requests) == 12


# --- The cache


def test_a_second_run_makes_no_call(tmp_path: Path) -> None:
    data = request_of(group("p", "a", "é\u2028", 'q"\n'), group("q", "b", "bb", number=1))
    with serve(longer) as server:
        first = judge(server, cache=tmp_path / "answers" / "judge.jsonl").score(data)
        assert len(server.requests) == 8
    # The server is gone, and nobody asks for it.
    assert judge(server, cache=tmp_path / "answers" / "judge.jsonl").score(data) == first


def test_an_unparseable_verdict_is_asked_for_again(tmp_path: Path) -> None:
    """By the next run: a judge that stammered once would otherwise have no verdict for ever."""
    cache, data = tmp_path / "judge.jsonl", request_of(group("p", "a", "bb"), group("q", "c", "dd", number=1))

    def stammers(request: dict[str, Any]) -> dict[str, Any]:
        return chat("A: 3/10") if "c" in answers_of(request) else longer(request)

    with serve(stammers) as server:
        assert judge(server, cache=cache).score(data).values == [0.0, 1.0, None, None]
    with serve(longer) as server:
        assert judge(server, cache=cache).score(data).values == [0.0, 1.0, 0.0, 1.0]
        assert len(server.requests) == 2
    assert judge(server, cache=cache).score(data).values == [0.0, 1.0, 0.0, 1.0]


def test_another_judge_template_or_order_is_another_question(tmp_path: Path) -> None:
    cache = tmp_path / "judge.jsonl"
    data = request_of(group("p", "a", "bb"))
    with serve(longer) as server:
        for settings in ({}, {"template": "Judge. " + PLAIN}, {}):
            judge(server, cache=cache, **settings).score(data)
        assert len(server.requests) == 4
        JudgeReward("other", f"{server.url}/v1", template=PLAIN, cache=cache).score(data)
        assert len(server.requests) == 6
        judge(server, cache=cache).score(request_of(group("q", "a", "bb")))
        assert len(server.requests) == 8
    assert len({json.loads(line)["key"] for line in cache.read_text().splitlines()}) == 8


def test_arguments_of_the_judges_template_are_sent_and_make_another_judge(tmp_path: Path) -> None:
    cache, kwargs = tmp_path / "judge.jsonl", {"enable_thinking": False}
    data = request_of(group("p", "a", "bb"))
    with serve(longer) as server:
        plain, told = judge(server, cache=cache), judge(server, cache=cache, chat_template_kwargs=kwargs)
        plain.score(data)
        assert told.score(data).values == [0.0, 1.0]
        assert [request.get("chat_template_kwargs") for request in server.requests] == [
            None,
            None,
            kwargs,
            kwargs,
        ]
        judge(server, cache=cache, chat_template_kwargs=dict(kwargs)).score(data)
        assert len(server.requests) == 4
    assert told.describe() == {**plain.describe(), "chat_template_kwargs": kwargs}
    with pytest.raises(ConfigError, match=r"^judge_chat_template_kwargs=\{'x': nan\}: "):
        judge(server, chat_template_kwargs={"x": float("nan")})


def test_a_torn_line_is_asked_again(tmp_path: Path) -> None:
    cache, data = tmp_path / "judge.jsonl", request_of(group("p", "a", "bb"))
    with serve(longer) as server:
        judge(server, cache=cache).score(data)
        whole = cache.read_bytes()
        end = whole.index(b"\n")  # of the first line
        torn = {0: 2, 1: 2, 8: 2, 20: 2, end - 1: 2, end: 1, end + 1: 1, end + 9: 1, len(whole) - 2: 1}
        for length, lost in {**torn, len(whole) - 1: 0}.items():
            cache.write_bytes(whole[:length])
            before = len(server.requests)
            assert judge(server, cache=cache).score(data).values == [0.0, 1.0]
            assert len(server.requests) - before == lost
            assert judge(server, cache=cache).score(data).values == [0.0, 1.0]
            assert len(server.requests) - before == lost


@pytest.mark.parametrize(
    "content", ["a,b\n1,2\n", '{"prompt": "x"}\n', '{"key": "x", "answer": "A"}\nhello\n']
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "data.jsonl").write_text(content)
    with pytest.raises(ConfigError, match="holds something other than a judge's answers"):
        JudgeReward("m", "http://127.0.0.1:9/v1", cache=tmp_path / "data.jsonl")
    assert (tmp_path / "data.jsonl").read_text() == content


@pytest.mark.parametrize("path", ["folder", "file/judge.jsonl"])
def test_a_cache_that_cannot_be_written_is_refused_before_any_call(tmp_path: Path, path: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"judge_cache=.* cannot be written"):
        JudgeReward("m", "http://127.0.0.1:9/v1", cache=tmp_path / path)


KILLED = """
import sys
from nonpareil.records import Group, ScoreRequest
from nonpareil.rewards import JudgeReward
texts = ["a" * n for n in range(1, 13)]
group = Group("p", "p", [1], texts, [[1]] * 12, ["stop"] * 12, [[0.0]] * 12)
reward = JudgeReward("m", sys.argv[1], template="{prompt}|{a}|{b}", cache=sys.argv[2])
print(reward.score(ScoreRequest.of([group])).values)
"""


def test_a_kill_loses_no_answer(tmp_path: Path) -> None:
    cache = tmp_path / "judge.jsonl"
    answered: list[tuple[str, str]] = []

    def slowly(request: dict[str, Any]) -> Any:
        time.sleep(0.02)
        answered.append(answers_of(request))
        return longer(request)

    with serve(slowly) as server:
        words = [sys.executable, "-c", KILLED, f"{server.url}/v1", str(cache)]
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        while not cache.exists() or cache.read_bytes().count(b"\n") < 20:
            time.sleep(0.005)
            assert process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kept = cache.read_bytes().count(b"\n")
        # What the judge answered and is not kept was still on its way: at most the calls that were under way.
        assert len(answered) - kept <= 8
        time.sleep(0.1)
        server.requests.clear()
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        assert len(server.requests) == 132 - kept
    assert json.loads(done.stdout) == [place / 11 for place in range(12)]
    assert 20 <= kept < 132


# --- Settings


def test_what_scores_are_reused_by_holds_no_address_and_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-123")
    one = JudgeReward("org/judge", "http://127.0.0.1:8000/v1", api_key_env="JUDGE_KEY")
    other = JudgeReward("org/judge", "http://10.0.0.1:9000/v1")
    assert one.describe() == other.describe()
    assert not re.search(r"sk-123|127\.0|8000|JUDGE_KEY", json.dumps(one.describe()))
    changes: list[dict[str, Any]] = [{"max_calls": 20}, {"template": PLAIN}, {"seed": 1}]
    described = [JudgeReward("org/judge", "http://h/v1", **change).describe() for change in changes]
    assert all(changed != one.describe() for changed in described)
    assert JudgeReward("other", "http://h/v1").describe() != one.describe()
    assert one.name == "judge-judge"
    assert JudgeReward("openai/gpt 4:x", "http://h/v1").name == "judge-gpt-4-x"


def test_the_key_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-123")
    with serve(longer) as server:
        judge(server, api_key_env="JUDGE_KEY").score(request_of(group("p", "a", "aa")))
    assert set(server.keys) == {"Bearer sk-123"}


def test_a_template_lacks_nothing() -> None:
    with pytest.raises(ConfigError, match=r"judge_template lacks \{b\}"):
        JudgeReward("m", "http://h/v1", template="{prompt} {a}")
    assert all("{" + name + "}" in TEMPLATE for name in ("prompt", "a", "b"))


def test_a_judge_beside_a_function() -> None:
    def short(completions: list[str], **kwargs: Any) -> list[float]:
        return [-len(text) / 10 for text in completions]

    with serve(longer) as server:
        both = CombinedReward([FunctionReward(short), judge(server)])
        assert both.names_within_groups == ["judge-judge"]
        assert both.check_group_size(3) == 6
        scores = both.score(request_of(group("p", "a", "aa", "aaa")))
    assert scores.values == pytest.approx([-0.1, 0.3, 0.7])
    assert CombinedReward([FunctionReward(short)]).names_within_groups == []


def test_two_policies_are_judged_in_one_group() -> None:
    """As the docs do it."""
    docs = (Path(__file__).parents[3] / "docs" / "endpoints-rewards.md").read_text()
    snippet = docs.split("```python")[2].split("```")[0]
    ours, theirs = group("p", "aaaaa", "aa", "b" * 4), group("p", "a", "aaa", number=1)
    with serve(longer) as server:
        names = {"ours": ours, "theirs": theirs, "judge": judge(server), "ScoreRequest": ScoreRequest}
        exec(snippet, names)
    assert names["win_rate"] == pytest.approx(5 / 6)  # all but aa against aaa


@pytest.mark.parametrize(
    "line",
    ['{"key": ["x"], "answer": "A", "judge": "m"}', '{"key": "x", "answer": ["A"]}', '{"key": "x", "answer": 3}',
     '{"key": ' + "[" * 100_000, '{"key": ' + "9" * 5000 + "}", '{"key": "x"}'],
)  # fmt: skip
def test_a_damaged_line_of_the_cache_is_passed_over(line: str, tmp_path: Path) -> None:
    cache = tmp_path / "judge.jsonl"
    kept = AnswerCache(cache)
    kept.keep("good", "A \ud83d", "m")
    kept.close()
    cache.write_text(line + "\n" + cache.read_text())
    read = AnswerCache(cache)
    assert (len(read), read.get("good")) == (1, "A \ud83d")
