"""A function reward: TRL's call, and every failure a counted null on its own sample only."""

import asyncio
import functools
import socketserver
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nonpareil.errors import ConfigError, RewardError
from nonpareil.records import Group, Prompt, ScoreRequest
from nonpareil.rewards import CombinedReward, FunctionReward, load_function
from tests.rewards.conftest import request_of

DATA = request_of(("p1", "a"), ("p1", "bb"), ("p2", "ccc"), answer=["x", "x", "y"], level=[1, 1, 2])


def lengths(completions: list[str], **kwargs: Any) -> list[float]:
    return [float(len(completion)) for completion in completions]


def test_called_by_keyword_with_columns_repeated_per_completion() -> None:
    calls: list[dict[str, Any]] = []

    def reward(**kwargs: Any) -> list[float]:
        calls.append(kwargs)
        return [1.0] * len(kwargs["prompts"])

    groups = [
        Group(p, p, [1], ["a", "b"], [[5], [6]], ["stop"] * 2, [[0.0]] * 2, columns={"answer": p.upper()})
        for p in ("p", "q")
    ]
    FunctionReward(reward).score(ScoreRequest.of(groups))
    assert calls[0].pop("trainer_state") is None
    for logger in ("log_extra", "log_metric"):
        calls[0].pop(logger)("name", [1.0])
    assert calls == [
        {
            "prompts": ["p", "p", "q", "q"],
            "completions": ["a", "b", "a", "b"],
            "completion_ids": [[5], [6], [5], [6]],
            "answer": ["P", "P", "Q", "Q"],
        }
    ]


def test_only_the_named_parameters_without_kwargs() -> None:
    def reward(completions: list[str], answer: list[str], unknown: str = "default") -> list[float]:
        return [float(len(c + a + unknown)) for c, a in zip(completions, answer, strict=True)]

    assert FunctionReward(reward).score(DATA).values == [9, 10, 11]


def test_trl_trainer_arguments_are_there_for_a_function_that_names_them() -> None:
    def reward(completions: list[str], trainer_state: Any, log_extra: Any, log_metric: Any) -> list[float]:
        log_extra("column", completions)
        log_metric("metric", 1.0)
        assert trainer_state is None
        return [0.0] * len(completions)

    assert FunctionReward(reward).score(DATA).values == [0, 0, 0]


def test_trl_trainer_arguments_are_there_beside_further_columns() -> None:
    def reward(completions: list[str], trainer_state: Any, log_metric: Any, **columns: Any) -> list[float]:
        log_metric("metric", 1.0)
        assert trainer_state is None
        assert sorted(columns) == ["answer", "completion_ids", "level", "log_extra", "prompts"]
        return [1.0] * len(completions)

    assert FunctionReward(reward).score(DATA).values == [1, 1, 1]


def test_a_function_that_is_given_nothing_cannot_score() -> None:
    for function in (lambda: [1.0], lambda trainer_state: [1.0], lambda unknown=3: [1.0]):
        reward = FunctionReward(function, name="blind")
        with pytest.raises(ConfigError, match=r"'blind' takes none of prompts, completions"):
            reward.check_prompts([Prompt("1", "p", [1], {})], 8, None)


def test_an_exception_without_a_message_is_its_name() -> None:
    def reward(completions: list[str]) -> list[float]:
        raise KeyboardInterrupt

    assert FunctionReward(reward).score(DATA).failures == ["KeyboardInterrupt"] * 3


def test_a_missing_column_is_an_error_not_a_failure_of_every_sample() -> None:
    def reward(completions: list[str], solution: list[str]) -> list[float]:
        return [0.0]

    with pytest.raises(ConfigError, match=r"'solution'.*\(here: answer, level\)"):
        FunctionReward(reward).score(DATA)


def test_sync_and_async_agree() -> None:
    async def async_lengths(completions: list[str], **kwargs: Any) -> list[float]:
        await asyncio.sleep(0)
        return lengths(completions)

    class Callable:
        async def __call__(self, completions: list[str]) -> list[float]:
            return lengths(completions)

    expected = FunctionReward(lengths).score(DATA)
    assert expected.values == [1, 2, 3]
    for function in (async_lengths, Callable(), functools.partial(async_lengths, extra=1)):
        reward = FunctionReward(function)
        assert reward.is_async
        assert reward.score(DATA) == expected
    assert FunctionReward(lambda **kwargs: async_lengths(**kwargs)).score(DATA) == expected


def test_async_inside_a_running_loop_as_in_a_notebook() -> None:
    async def one(completions: list[str]) -> list[float]:
        return [1.0] * len(completions)

    async def cell() -> list[float | None]:
        return FunctionReward(one).score(DATA).values

    assert asyncio.run(cell()) == [1, 1, 1]


class Echo(socketserver.StreamRequestHandler):
    """Says each line again, on a connection that stays open."""

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line)


def test_what_an_async_function_has_once_for_all_calls_serves_every_call() -> None:
    """A semaphore and a connection, as a judge's script has them: both belong to the loop that used them first."""

    def judge() -> Any:
        gate = asyncio.Semaphore(1)
        connection: list[Any] = []

        async def reward(completions: list[str]) -> list[float]:
            if not connection:
                connection.extend(await asyncio.open_connection(*server.server_address[:2]))
            reader, writer = connection

            async def one(text: str) -> float:
                async with gate:
                    writer.write(f"{text}\n".encode())
                    return float(len((await reader.readline()).strip()))

            return await asyncio.gather(*map(one, completions))

        return reward

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        both = judge()
        reward = FunctionReward(both)
        beside = CombinedReward([reward, FunctionReward(both, name="again")])
        assert [reward.score(DATA).values for _ in range(3)] == [[1, 2, 3]] * 3
        assert beside.score_each(DATA)["again"].values == [1, 2, 3]

        in_notebook = FunctionReward(judge())

        async def cell() -> list[float | None]:
            return in_notebook.score(DATA).values

        assert [asyncio.run(cell()) for _ in range(2)] == [[1, 2, 3]] * 2
        server.shutdown()


def test_tasks_that_an_async_function_leaves_behind_end_with_the_call() -> None:
    left: list[Any] = []

    async def reward(completions: list[str]) -> list[float]:
        left.append(asyncio.create_task(asyncio.sleep(3600)))
        return lengths(completions)

    assert FunctionReward(reward).score(DATA).values == [1, 2, 3]
    assert left[0].cancelled()


@pytest.mark.parametrize(
    "returned",
    [
        np.array([1, 2, 3], dtype=np.float32),
        torch.tensor([1.0, 2.0, 3.0]),
        [np.float32(1), torch.tensor(2.0), True + 2],
        (value for value in (1, 2, 3)),
    ],
    ids=["numpy", "torch", "scalars", "generator"],
)
def test_numbers_of_any_make_become_floats(returned: Any) -> None:
    values = FunctionReward(lambda **kwargs: returned).score(DATA).values
    assert values == [1.0, 2.0, 3.0]
    assert {type(value) for value in values} == {float}


@pytest.mark.parametrize("returned", [[1.0], [1.0] * 4, 1.0, None, "abc", {"a": 1, "b": 2, "c": 3}])
def test_anything_but_one_value_a_completion_is_an_error(returned: Any) -> None:
    def grader(**kwargs: Any) -> Any:
        return returned

    with pytest.raises(RewardError, match=r"'grader' returned .* 3 "):
        FunctionReward(grader).score(DATA)


def test_none_nan_and_infinity_are_nulls_with_reasons() -> None:
    values = [None, float("nan"), float("-inf"), np.float32("nan"), "1.0", torch.ones(2), 10**400, 0.5]
    data = request_of(*[("p", "c")] * len(values))
    scores = FunctionReward(lambda **kwargs: values).score(data)
    assert scores.values == [None] * 7 + [0.5]
    assert scores.failures == [
        "returned None",
        "returned nan",
        "returned -inf",
        "returned nan",
        "returned a str, not a number",
        "returned a Tensor, not a number",
        "returned inf",
        None,
    ]


def fragile(completions: list[str], **kwargs: Any) -> list[float]:
    return [1 / (len(completion) - 2) for completion in completions]


def test_an_exception_costs_only_its_own_sample() -> None:
    scores = FunctionReward(fragile).score(DATA)
    assert scores.values == [-1, None, 1]
    assert scores.failures == [None, "ZeroDivisionError: division by zero", None]


def test_what_may_cost_money_is_not_asked_again() -> None:
    """An `async def`, and a call whose connection failed: one call, and nulls for all of it."""
    calls = []

    async def paid(completions: list[str]) -> list[float]:
        calls.append(len(completions))
        return fragile(completions)

    def disconnected(completions: list[str]) -> list[float]:
        calls.append(len(completions))
        raise RuntimeError("no answer") from ConnectionResetError("peer")

    assert FunctionReward(paid).score(DATA).failures == ["ZeroDivisionError: division by zero"] * 3
    assert FunctionReward(disconnected).score(DATA).failures == ["RuntimeError: no answer"] * 3
    assert calls == [3, 3]


def test_a_broken_function_is_not_asked_about_every_completion() -> None:
    asked = []

    def broken(completions: list[str]) -> list[float]:
        asked.append(completions)
        raise ValueError("always")

    data = request_of(*[("p", f"c{row}") for row in range(64)])
    assert FunctionReward(broken).score(data).failures == ["ValueError: always"] * 64
    assert [len(completions) for completions in asked] == [64, *[1] * 8]
    assert [completions[0] for completions in asked[1:]] == [f"c{row}" for row in range(0, 64, 8)]


def test_an_async_function_is_cancelled_at_the_timeout() -> None:
    async def slow(completions: list[str]) -> list[float]:
        await asyncio.sleep(60)
        return [1.0] * len(completions)

    async def own_timeout(completions: list[str]) -> list[float]:
        raise TimeoutError("the service did not answer")

    scores = FunctionReward(slow, timeout=0.2).score(DATA)
    assert scores.values == [None] * 3
    assert scores.failures == ["timed out after 0.2 s"] * 3
    # A TimeoutError of the function's own is told apart from ours.
    own = FunctionReward(own_timeout, timeout=5).score(DATA)
    assert own.failures == ["TimeoutError: the service did not answer"] * 3


def test_describe_notices_a_changed_source(tmp_path: Path) -> None:
    hashes = set()
    for body in ("return [1.0]", "return [2.0]"):
        (tmp_path / "grader.py").write_text(f"def grade(**kwargs):\n    {body}  # {body}\n")
        settings = FunctionReward(f"{tmp_path}/grader.py:grade").describe()
        assert (settings["name"], settings["kind"]) == ("grade", "function")
        hashes.add(settings["source"])
    assert len(hashes) == 2
    assert None not in hashes


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_a_timeout_must_be_positive(timeout: float) -> None:
    with pytest.raises(ConfigError, match="positive number of seconds"):
        FunctionReward(lengths, timeout=timeout)


def test_load_by_dotted_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_function("math.sqrt")(4) == 2
    assert load_function("os.path:basename")("a/b") == "b"
    (tmp_path / "mine_for_this_test.py").write_text("def grade(**kwargs): return [3.0]\n")
    monkeypatch.chdir(tmp_path)  # a user's module in the current directory
    monkeypatch.setattr("sys.path", [entry for entry in __import__("sys").path if entry])
    assert load_function("mine_for_this_test.grade")() == [3.0]


def test_load_by_file_with_an_import_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    (tmp_path / "helper_beside.py").write_text("VALUE = 4.0\n")
    (tmp_path / "grader.py").write_text("from helper_beside import VALUE\ndef grade(**kw): return [VALUE]\n")
    assert load_function(f"{tmp_path}/grader.py:grade")() == [4.0]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{dir}/grader.py:grad", "no 'grad' in .*did you mean 'grade'"),
        ("{dir}/grade.py:grade", "no such file: .*did you mean '.*grader.py'"),
        ("{dir}/grader.py:CONSTANT", "is a int, which cannot be called"),
        ("{dir}/broken.py:grade", "importing .*broken.py failed: ZeroDivisionError"),
        ("no_such_package_here.fn", "there is no module 'no_such_package_here'"),
        ("math.sqrtt", "did you mean 'sqrt'"),
        ("not a function", "names no function"),
        ("{dir}/grader.py", "names no function; give .*grader.py:fn"),
        ("{dir}/grader.py:", "names no function; give .*grader.py:fn"),
        ("grader.py", "names no function; give grader.py:fn"),
        (":grade", "names no function; give pkg.mod.fn or path/to/file.py:fn"),
    ],
)
def test_what_cannot_be_loaded_says_why(tmp_path: Path, spec: str, message: str) -> None:
    (tmp_path / "grader.py").write_text("CONSTANT = 3\ndef grade(**kwargs): return [1.0]\n")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    with pytest.raises(ConfigError, match=message):
        load_function(spec.format(dir=tmp_path))


def test_a_column_that_has_the_name_of_what_functions_are_given_is_refused() -> None:
    reward = FunctionReward(lambda completions, **columns: [1.0] * len(completions))
    for name in ("completions", "trainer_state"):
        with pytest.raises(ConfigError, match=rf"the dataset has a column '{name}'.*rename or remove"):
            reward.check_prompts([Prompt("p", "the film", [1], {"answer": 1, name: 2})], 4, None)


def test_a_column_that_is_missing_is_refused_before_anything_is_drawn() -> None:
    def needs(completions: list[str], gold: list[str]) -> list[float]:
        return [0.0] * len(completions)

    with_gold, without = Prompt("1", "p", [1], {"gold": "g"}), Prompt("2", "q", [1], {"other": 1})
    FunctionReward(needs).check_prompts([with_gold], 8, None)
    for prompts in ([without], [with_gold, without]):
        with pytest.raises(ConfigError, match=r"'needs': missing a required argument: 'gold'"):
            FunctionReward(needs).check_prompts(prompts, 8, None)
    with pytest.raises(ConfigError, match=r"'len': missing a required argument: 'obj'"):
        FunctionReward("builtins.len").check_prompts([with_gold], 8, None)


@pytest.mark.parametrize("timeout", [None, 60])
def test_the_first_traceback_goes_to_a_log_and_its_last_frame_to_the_screen(
    timeout: float | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "grader.py").write_text(
        "def grade(completions, **k):\n    return [inner(c) for c in completions]\n\n"
        "def inner(text):\n    raise ValueError('bad \\x1b[31m' + text)\n"
    )
    reward = FunctionReward(f"{tmp_path}/grader.py:grade", timeout=timeout)
    reward.log_errors_to(tmp_path / "out")
    reward.score(DATA)
    reward.score(DATA)
    reward.release()
    log = (tmp_path / "out" / "reward-errors.log").read_text()
    assert log.count("Traceback (most recent call last)") == 1
    assert "'grade': ValueError: bad \\x1b[31ma\n" in log
    assert 'grader.py", line 2, in <listcomp>' in log or 'grader.py", line 2, in grade' in log
    assert "\x1b" not in log
    (told,) = caplog.messages
    assert f"{tmp_path}/grader.py:5 in inner" in told
    assert str(tmp_path / "out" / "reward-errors.log") in told
    assert "\x1b" not in told


class Overlong:
    """As TRL makes its rewards with lengths: `get_soft_overlong_punishment(max_completion_len, ...)`."""

    def __init__(self, limit: int, told: bool = False) -> None:
        self.limit, self.told, self.calls = limit, told, 0

    def __call__(self, completions: list[str], **kwargs: Any) -> list[float]:
        self.calls += 1
        return [-float(len(one) > self.limit) for one in completions]

    def method(self, completions: list[str]) -> list[float]:
        return self(completions)


def scaled(by: float, calls: int = 0) -> Any:
    def decorated(function: Any) -> Any:
        @functools.wraps(function)
        def reward(completions: list[str]) -> list[float]:
            nonlocal calls
            calls += 1
            return [by * value for value in function(completions)]

        return reward

    return decorated


def longer(completions: list[str], than: int = 1) -> list[float]:
    return [float(len(one) > than) for one in completions]


@pytest.mark.parametrize(
    "made",
    [
        lambda limit: functools.partial(longer, than=limit),
        lambda limit: scaled(limit)(longer),
        lambda limit: functools.partial(scaled(limit)(longer)),
        lambda limit: Overlong(limit),
        lambda limit: Overlong(limit).method,
    ],
)
def test_scores_of_a_function_that_was_made_otherwise_are_not_its_own(made: Any) -> None:
    first = FunctionReward(made(3))
    assert first.score(DATA).values != FunctionReward(made(0)).score(DATA).values
    assert first.describe() != FunctionReward(made(0)).describe()
    assert first.describe() == FunctionReward(made(3)).describe()  # though it has scored


def test_what_a_plain_function_says_of_itself_is_what_it_was() -> None:
    assert set(FunctionReward(lengths).describe()) == {"name", "kind", "function", "source", "timeout"}
