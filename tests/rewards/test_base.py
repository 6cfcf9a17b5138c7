"""The contract of a reward: what a class of one's own must have, and what its defaults do."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

from nonpareil.errors import ConfigError, RewardError
from nonpareil.records import Prompt, ScoreRequest, Scores
from nonpareil.rewards import CombinedReward, FunctionReward, Reward, load_rewards
from tests.rewards.conftest import request_of

DATA = request_of(("the film was ", "good"), ("the film was ", "very bad"))


class Length(Reward):
    """No more than a reward must have."""

    def score(self, request: ScoreRequest) -> Scores:
        return Scores([float(len(text)) for text in request.completions], [None] * len(request))

    def describe(self) -> dict[str, Any]:
        return {"kind": "length"}


class Calls(Length):
    """Counts, waits for a server and compares within groups."""

    name = "calls"
    is_async = True
    compares_within_groups = True

    def __init__(self) -> None:
        self.counts = {"calls": 0}

    async def score_async(self, request: ScoreRequest) -> Scores:
        await asyncio.sleep(0)
        self.counts["calls"] += len(request)
        return self.score(request)

    def check_group_size(self, size: int) -> int:
        return size


def test_score_and_describe_are_enough(tmp_path: Path) -> None:
    combined = load_rewards([Length(), Length()], weights=[1, 2])
    assert combined.names == ["Length", "Length_2"]
    combined.check_prompts([Prompt("p", "the film was ", [1])], 8, None)
    combined.log_errors_to(tmp_path)
    assert combined.check_group_size(4) == 0
    assert combined.names_within_groups == []
    assert combined.score(DATA).values == [12.0, 24.0]
    assert combined.counts == {}
    assert combined.rewards[0].inspect(DATA) is None
    combined.release()
    assert [one["kind"] for one in combined.describe()["rewards"]] == ["length", "length"]
    assert not list(tmp_path.iterdir())


def test_what_a_class_says_of_itself_is_heeded() -> None:
    combined = CombinedReward([Length(), Calls(), FunctionReward(lambda completions: [0.0, 0.0])])
    assert combined.score_each(DATA)["calls"].values == [4.0, 8.0]
    assert combined.counts == {"calls": 2}
    assert combined.names_within_groups == ["calls"]
    assert combined.check_group_size(3) == 3
    outer = CombinedReward([combined])
    assert outer.names_within_groups == [combined.name]
    assert (outer.counts, outer.check_group_size(3)) == ({"calls": 2}, 3)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_class_that_exits_is_an_error_of_its_own(is_async: bool) -> None:
    class Exits(Length):
        name = "exits"

        def score(self, request: ScoreRequest) -> Scores:
            sys.exit(3)

    reward = Exits()
    reward.is_async = is_async
    with pytest.raises(RewardError, match=r"'exits' left by sys\.exit\(3\); a failure is None with a reason"):
        CombinedReward([reward]).score_each(DATA)


class Unrelated:
    """Has the methods, and not the class."""

    name = "unrelated"

    def score(self, request: ScoreRequest) -> Scores:
        raise AssertionError("it is refused before")

    def describe(self) -> dict[str, Any]:
        return {}


def test_an_object_of_another_class_is_refused_with_the_remedy() -> None:
    remedy = (
        r"got a Unrelated; an object that scores must be of a class that inherits nonpareil\.rewards\.Reward"
    )
    with pytest.raises(ConfigError, match=remedy):
        load_rewards([Unrelated()])
    with pytest.raises(
        ConfigError, match=r"a Unrelated is no reward; an object .* nonpareil\.rewards\.Reward"
    ):
        CombinedReward([Unrelated()])  # type: ignore[list-item]


def test_a_class_that_lacks_its_parts_cannot_be_made() -> None:
    class Half(Reward):
        def score(self, request: ScoreRequest) -> Scores:
            return Scores([], [])

    with pytest.raises(TypeError, match=r"abstract method '?describe"):
        Half()  # type: ignore[abstract]


def test_the_class_in_the_docs_scores() -> None:
    docs = (Path(__file__).parents[2] / "docs" / "endpoints-rewards.md").read_text()
    [section] = [part for part in docs.split("\n## ") if part.startswith("A class of your own")]
    names: dict[str, Any] = {}
    exec(section.split("```python")[1].split("```")[0], names)
    combined = load_rewards([names["Concise"](), FunctionReward(lambda completions: [1.0, 1.0], name="one")])
    scores = combined.score(request_of(("the film was ", "good"), ("the film was ", "")))
    assert scores.values == [-3.0, None]
    assert scores.failures == [None, "concise: empty"]
