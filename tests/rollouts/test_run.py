import json
from dataclasses import replace
from typing import Any

import pyarrow.parquet as pq
import pytest

from nonpareil.engines.base import PROMPT_CACHE
from nonpareil.errors import RewardError
from nonpareil.rollouts import best, export, read_groups
from tests.rollouts.conftest import (
    combined,
    count_of_good,
    length,
    make_engine,
    make_prompts,
    never,
    roll,
    shards,
    state,
)


class Watch:
    """A progress that remembers."""

    def __init__(self) -> None:
        self.phases: dict[str, int] = {}
        self.groups: dict[str, int] = {}
        self.tokens = 0

    def start(self, phase: str, total: int) -> None:
        self.phase = phase
        self.phases[phase] = total

    def update(self, groups: int, tokens: int) -> None:
        self.groups[self.phase] = self.groups.get(self.phase, 0) + groups
        self.tokens += tokens


def test_every_prompt_is_drawn_scored_and_counted(tmp_path):
    watch = Watch()
    result = roll(tmp_path / "out", progress=watch)
    groups = result.groups()
    assert [group.prompt_id for group in groups] == [prompt.prompt_id for prompt in make_prompts()]
    assert [group.columns for group in groups] == [{"answer": i} for i in range(8)]
    for group in groups:
        assert len(group) == 4
        assert group.rewards == group.rewards_by_name["length"] == length(group.completions)
    tokens = sum(len(ids) for group in groups for ids in group.completion_token_ids)
    cut = sum(reason == "length" for group in groups for reason in group.finish_reasons)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == result.manifest
    assert result.manifest["counts"] == {
        "shards": 4,
        "prompts": 8,
        "completions": 32,
        "tokens": tokens,
        "finish_reasons": {"stop": 32 - cut, "length": cut},
        "failed_rewards": {"length": {"count": 0, "reasons": {}}},
    }
    assert (watch.phases, watch.groups) == ({"draw": 8, "score": 8}, {"draw": 8, "score": 8})
    assert watch.tokens == tokens


def test_the_manifest_says_how(rollouts):
    manifest = rollouts.manifest
    assert manifest["complete"] is True
    assert manifest["draw"]["model"] == {"path": "tiny", "fingerprint": "sha256:0"}
    assert manifest["draw"]["engine"]["engine"] == "transformers"
    assert PROMPT_CACHE not in manifest["draw"]["engine"]  # another machine may have another way
    assert manifest["draw"]["sampling"]["max_completion_length"] == 6
    assert (manifest["draw"]["seed"], manifest["draw"]["num_generations"]) == (3, 4)
    assert manifest["rewards"]["weights"] == [1.0]
    assert manifest["rewards"]["rewards"][0]["function"] == "length"
    assert {"nonpareil", "torch", "transformers", "python"} <= manifest["versions"].keys()


def test_shard_size_does_not_change_the_groups(rollouts, tmp_path):
    other = roll(tmp_path / "other", shard_size=3)
    assert len(shards(other.output_dir)) == 3
    for one, same in zip(other.groups(), rollouts.groups(), strict=True):
        # Another batch rounds the log-probs otherwise; nothing else may change.
        assert replace(one, logprobs=[]) == replace(same, logprobs=[])
        for ours, theirs in zip(one.logprobs, same.logprobs, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-5)


def test_a_rerun_draws_and_scores_nothing(rollouts):
    before = state(shards(rollouts.output_dir))
    again = roll(rollouts.output_dir, engine=never, shard_size=64)
    assert (again.shards_drawn, again.shards_scored) == (0, 0)
    assert again.manifest == rollouts.manifest
    assert state(shards(rollouts.output_dir)) == before


def test_only_a_missing_shard_is_drawn(rollouts):
    first, second, third, fourth = shards(rollouts.output_dir)
    groups, before = rollouts.groups(), state([first, second, fourth])
    third.unlink()
    again = roll(rollouts.output_dir)
    assert (again.shards_drawn, again.shards_scored) == (1, 1)
    assert state([first, second, fourth]) == before
    assert again.groups() == groups


def test_what_a_factory_made_is_let_go_before_the_reward_is_made(tmp_path):
    events = []

    def engine() -> Any:
        made = make_engine()
        made.release = lambda: events.append("engine released")  # type: ignore[attr-defined]
        return made

    def reward() -> Any:
        events.append("reward made")
        made = combined()
        made.release = lambda: events.append("reward released")  # type: ignore[method-assign]
        return made

    roll(tmp_path / "out", engine=engine, reward=reward)
    assert events == ["engine released", "reward made", "reward released"]


def test_drawing_alone(tmp_path):
    result = roll(tmp_path / "out", reward=None)
    assert all(group.rewards is None and not group.rewards_by_name for group in result.groups())
    scored = roll(tmp_path / "out", engine=never)
    assert (scored.shards_drawn, scored.shards_scored) == (0, 4)


# --- Scoring again


def test_another_reward_draws_nothing_and_keeps_the_old_columns(rollouts):
    before = rollouts.groups()
    result = roll(rollouts.output_dir, engine=never, reward=combined(count_of_good))
    assert (result.shards_drawn, result.shards_scored) == (0, 4)
    for old, new in zip(before, result.groups(), strict=True):
        assert new.completions == old.completions
        assert new.logprobs == old.logprobs
        assert new.rewards_by_name["length"] == old.rewards_by_name["length"]
        assert new.rewards == new.rewards_by_name["count_of_good"]
        assert new.rewards == pytest.approx(count_of_good(old.completions))
    assert set(result.manifest["counts"]["failed_rewards"]) == {"length", "count_of_good"}
    assert result.manifest["rewards"]["name"] == "count_of_good"


def test_an_added_reward_is_scored_alone_and_weights_only_sum_anew(rollouts):
    calls = []

    def counted(completions: list[str], **columns: Any) -> list[float]:
        calls.append(len(completions))
        return count_of_good(completions)

    both = combined(length, counted, weights=[1.0, 2.0])
    both.rewards[0].score = never  # type: ignore[method-assign]
    roll(rollouts.output_dir, engine=never, reward=both)
    assert calls == [8] * 4
    both.weights = [1.0, -1.0]
    result = roll(rollouts.output_dir, engine=never, reward=both)
    assert calls == [8] * 4
    for group in result.groups():
        pairs = zip(group.rewards_by_name["length"], group.rewards_by_name["counted"], strict=True)
        assert group.rewards == pytest.approx([a - b for a, b in pairs])


def test_a_changed_function_of_the_same_name_is_scored_anew(rollouts):
    def other(completions: list[str], **columns: Any) -> list[float]:
        return [7.0 for _ in completions]

    other.__name__ = "length"
    result = roll(rollouts.output_dir, engine=never, reward=combined(other))
    assert result.shards_scored == 4
    assert {value for group in result.groups() for value in group.rewards or []} == {7.0}


def test_a_failed_reward_is_null_counted_and_never_chosen(tmp_path):
    def fragile(completions: list[str], answer: list[int], **columns: Any) -> list[float | None]:
        if any(a == 0 for a in answer):
            raise RuntimeError("no verdict")
        # The longest have no reward, and one is beyond what has a spread.
        return [
            1e300 if a == 1 else None if len(c.split()) > 3 else -1.0
            for c, a in zip(completions, answer, strict=True)
        ]

    result = roll(tmp_path / "out", reward=combined(length, fragile))
    groups = result.groups()
    failed = result.manifest["counts"]["failed_rewards"]
    assert failed["length"]["count"] == 0
    reasons = failed["fragile"]["reasons"]
    assert reasons["RuntimeError: no verdict"] == 4
    assert (
        reasons["1e+300 is beyond 1e+150 in size, and a group of such has no spread; scale the reward"] == 4
    )
    nulls = sum(value is None for group in groups for value in group.rewards_by_name["fragile"])
    assert nulls == failed["fragile"]["count"] == sum(reasons.values()) > 8
    assert groups[0].rewards == [None] * 4
    assert best(groups[0]) is None
    chosen = {group.prompt_id: best(group) for group in groups}
    assert any(place is not None for place in chosen.values())
    for group in groups:
        if (place := chosen[group.prompt_id]) is not None:
            assert group.rewards_by_name["fragile"][place] == -1.0
    report = export(groups, tmp_path / "a.jsonl", "sft", truncated="allow", min_reward=-1.0)
    assert report.skipped["without a reward that is known"] == sum(v is None for v in chosen.values())


def test_a_reward_that_breaks_its_contract_loses_no_draw(tmp_path):
    with pytest.raises(RewardError):
        roll(tmp_path / "out", reward=combined(lambda completions, **columns: [1.0]))
    result = roll(tmp_path / "out", engine=never)
    assert (result.shards_drawn, result.shards_scored) == (0, 4)


def test_metadata_travels_with_each_shard(rollouts):
    for path in shards(rollouts.output_dir):
        notes = json.loads(pq.read_schema(path).metadata[b"nonpareil"])
        assert notes["aggregate"] == {"length": 1.0}
        assert notes["rewards"]["length"]["kind"] == "function"
    assert read_groups(rollouts.output_dir / "data") == rollouts.groups()


def test_groups_are_read_without_columns_that_nobody_needs(rollouts):
    whole, some = rollouts.groups(), rollouts.groups(without=("logprobs",))
    assert all(group.logprobs for group in whole)
    assert [replace(group, logprobs=[]) for group in whole] == some
