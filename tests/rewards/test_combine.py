"""Weighted lists of rewards: names, nulls, and what a spec means."""

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from nonpareil.errors import ConfigError, ModelError, RewardError
from nonpareil.records import Scores
from nonpareil.rewards import CombinedReward, FunctionReward, Reward, RewardModel, load_rewards
from tests.rewards.conftest import make_llama, make_tokenizer, request_of

DATA = request_of(("the film was ", "good"), ("the film was ", "very bad"))


def lengths(completions: list[str], **kwargs: Any) -> list[float]:
    return [float(len(completion)) for completion in completions]


def only_bad(completions: list[str], **kwargs: Any) -> list[float | None]:
    return [1.0 if "bad" in completion else None for completion in completions]


def test_aggregate_is_the_weighted_sum_and_null_where_any_is_null() -> None:
    combined = CombinedReward([FunctionReward(lengths), FunctionReward(only_bad)], weights=[0.5, 0.0])
    assert combined.aggregate({"lengths": [1.0, 4.0], "only_bad": [2.0, None]}) == [0.5, None]
    assert combined.aggregate({"only_bad": [], "lengths": []}) == []


def test_every_reward_keeps_its_own_scores_and_reasons() -> None:
    combined = CombinedReward([FunctionReward(lengths), FunctionReward(only_bad)], weights=[0.5, 10])
    each = combined.score_each(DATA)
    assert list(each) == ["lengths", "only_bad"]
    assert each["lengths"].values == [4, 8]
    assert each["only_bad"].failures == ["returned None", None]
    scores = combined.score(DATA)
    assert scores.values == [None, 14]
    assert scores.failures == ["only_bad: returned None", None]


def test_equal_names_are_numbered() -> None:
    def other() -> None: ...

    named = [FunctionReward(lengths, name=name) for name in ("a", "a", "a_2", "b", "a")]
    combined = CombinedReward(named)
    assert combined.names == ["a", "a_2", "a_2_2", "b", "a_3"]
    assert list(combined.score_each(DATA)) == combined.names
    assert [reward["name"] for reward in combined.describe()["rewards"]] == combined.names


def test_async_rewards_wait_together() -> None:
    started: list[str] = []

    def waiting(name: str) -> FunctionReward:
        async def reward(completions: list[str]) -> list[float]:
            started.append(name)
            while len(started) < 2:  # ends only if the other one starts meanwhile
                await asyncio.sleep(0.001)
            return [1.0] * len(completions)

        return FunctionReward(reward, name=name, timeout=10)

    combined = CombinedReward([waiting("a"), FunctionReward(lengths), waiting("b")])
    each = combined.score_each(DATA)
    assert list(each) == ["a", "lengths", "b"]
    assert each["b"].values == [1, 1]


@pytest.mark.parametrize(
    ("weights", "message"), [([1.0], "has 1 values for 2 rewards"), ([1.0, float("nan")], "finite")]
)
def test_bad_weights(weights: list[float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CombinedReward([FunctionReward(lengths), FunctionReward(only_bad)], weights)


def test_no_rewards_and_missing_scores() -> None:
    with pytest.raises(ConfigError, match="no reward"):
        CombinedReward([])
    with pytest.raises(ConfigError, match="no scores of lengths; there are: other"):
        CombinedReward([FunctionReward(lengths)]).aggregate({"other": [1.0]})


def test_a_model_in_memory_and_its_tokenizer_are_given_as_to_trl(llama_rm: str) -> None:
    """One tokenizer for one reward needs no list, and a model that was loaded knows where its own lies."""
    by_path = load_rewards(llama_rm, dtype="float32", device="cpu").score(DATA)
    loaded = AutoModelForSequenceClassification.from_pretrained(llama_rm, dtype=torch.float32)
    assert load_rewards(loaded).score(DATA) == by_path
    assert load_rewards(make_llama(), tokenizers=make_tokenizer()).score(DATA).values == by_path.values
    loaded.config.name_or_path = f"{llama_rm}-that-is-gone"
    with pytest.raises(
        ModelError, match=r"reward_processing_classes=.*none could be read where the model came from"
    ):
        load_rewards(loaded)


def test_load_rewards_takes_every_kind_of_spec(llama_rm: str, tmp_path: Path) -> None:
    (tmp_path / "grader.py").write_text("def grade(completions, **kwargs): return [2.0] * len(completions)\n")
    combined = load_rewards(
        [
            llama_rm,
            f"{tmp_path}/grader.py:grade",
            lengths,
            FunctionReward(only_bad),
            make_llama(),
            Path(llama_rm),
        ],
        tokenizers=[None, None, None, None, make_tokenizer(), make_tokenizer()],
        weights=[1, 2, 3, 4, 5, 6],
        dtype="float32",
        device="cpu",
    )
    kinds = [type(reward).__name__ for reward in combined.rewards]
    assert kinds == ["RewardModel", *["FunctionReward"] * 3, *["RewardModel"] * 2]
    assert combined.names == ["rm", "grade", "lengths", "only_bad", "LlamaForSequenceClassification", "rm_2"]
    each = combined.score_each(DATA)
    assert each["grade"].values == [2, 2]
    assert each["rm"] == each["rm_2"] == each["LlamaForSequenceClassification"]


def test_one_spec_needs_no_list_and_timeout_reaches_functions() -> None:
    combined = load_rewards("math.sqrt", timeout=3)
    assert combined.names == ["sqrt"]
    assert combined.rewards[0].describe()["timeout"] == 3


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("./no/such/model", ModelError, "no such directory"),
        ("no_such_package_here.fn", ConfigError, "there is no module"),
        ("nowhere.py:fn", ConfigError, "no such file"),
        (3, ConfigError, "must be callable; got a int"),
    ],
)
def test_specs_that_name_nothing(spec: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_rewards([spec])


def test_unknown_options_and_lists_of_other_lengths() -> None:
    with pytest.raises(ConfigError, match="'append_eso'; did you mean 'append_eos'"):
        load_rewards([lengths], append_eso=True)
    with pytest.raises(ConfigError, match="2 reward tokenizers for 1 rewards"):
        load_rewards([lengths], tokenizers=[None, None])


def test_release_reaches_every_reward(llama_rm: str) -> None:
    combined = load_rewards([llama_rm, lengths], device="cpu")
    combined.release()
    model = combined.rewards[0]
    assert isinstance(model, RewardModel)
    assert model._model is None


def test_importing_rewards_does_not_import_torch() -> None:
    """A killable worker starts in a fraction of a second because of it."""
    code = "import sys, nonpareil.rewards; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


class Given(Reward):
    """A reward object whose scores are those it was given."""

    name = "given"

    def __init__(self, *values: Any):
        self.values = list(values)

    def score(self, request: Any) -> Scores:
        return Scores(self.values, [None] * len(self.values))

    def describe(self) -> dict[str, Any]:
        return {"name": self.name}


def test_only_numbers_are_scores_whatever_a_reward_object_gives() -> None:
    rows = request_of(*[("the film was ", "good")] * 5)
    scores = CombinedReward([Given(float("nan"), float("-inf"), 1e151, -1e150, 1)]).score_each(rows)["given"]
    assert scores.values == [None, None, None, -1e150, 1.0]
    assert scores.failures[:2] == ["returned nan", "returned -inf"]
    assert str(scores.failures[2]).startswith("1e+151 is beyond 1e+150 in size")
    with pytest.raises(RewardError, match="'given' returned 2 scores for 5 completions"):
        CombinedReward([Given(1.0, 2.0)]).score_each(rows)


def test_a_sum_that_is_no_number_is_null() -> None:
    combined = CombinedReward([FunctionReward(lengths), FunctionReward(only_bad)], weights=[1e200, -1e200])
    sums = combined.aggregate({"lengths": [1e120, 1e120, 1e-60], "only_bad": [1e120, 0.0, 0.0]})
    assert sums == [None, None, pytest.approx(1e140)]
    scores = CombinedReward([Given(1e120, 1.0)], weights=[1e40]).score(DATA)
    assert scores == Scores([None, 1e40], ["the weighted sum is beyond 1e+150", None])
