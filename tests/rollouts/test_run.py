import fcntl
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from nonpareil.errors import ConfigError, DataError, RewardError
from nonpareil.rollouts import best, export, read_groups
from tests.rollouts.conftest import (
    SAMPLING,
    combined,
    count_of_good,
    length,
    make_engine,
    make_prompts,
    never,
    roll,
)


def shards(folder: Path) -> list[Path]:
    return sorted((folder / "data").glob("*.parquet"))


def state(paths: list[Path]) -> list[tuple[bytes, int]]:
    return [(path.read_bytes(), path.stat().st_mtime_ns) for path in paths]


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
        # The longest have no reward, and one is beyond float32.
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
    assert reasons["1e+300 is not finite in float32"] == 4
    nulls = sum(value is None for group in groups for value in group.rewards_by_name["fragile"])
    assert nulls == failed["fragile"]["count"] == sum(reasons.values()) > 8
    assert groups[0].rewards == [None] * 4
    assert best(groups[0]) is None
    chosen = {group.prompt_id: best(group) for group in groups}
    assert any(place is not None for place in chosen.values())
    for group in groups:
        if (place := chosen[group.prompt_id]) is not None:
            assert group.rewards_by_name["fragile"][place] == -1.0
    report = export(groups, tmp_path / "a.jsonl", "sft")
    assert report.skipped["without a completion that may be chosen"] == sum(
        v is None for v in chosen.values()
    )


def test_a_reward_that_breaks_its_contract_loses_no_draw(tmp_path):
    with pytest.raises(RewardError):
        roll(tmp_path / "out", reward=combined(lambda completions, **columns: [1.0]))
    result = roll(tmp_path / "out", engine=never)
    assert (result.shards_drawn, result.shards_scored) == (0, 4)


# --- Settings that do not fit

CHANGES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "seed": ({"sampling": replace(SAMPLING, seed=4)}, [r"seed: 3 there, 4 now"]),
    "temperature and top_k": (
        {"sampling": replace(SAMPLING, temperature=0.7, top_k=5)},
        [r"sampling.temperature: 1.0 there, 0.7 now", r"sampling.top_k: 0 there, 5 now"],
    ),
    "num_generations": ({"num_generations": 5}, [r"num_generations: 4 there, 5 now"]),
    "model": (
        {"model_info": {"path": "tiny", "fingerprint": "sha256:1"}},
        [r"model.fingerprint: 'sha256:0' there, 'sha256:1' now"],
    ),
    "adapter": (
        {"model_info": {"path": "tiny", "fingerprint": "sha256:0", "adapter": "a"}},
        [r"model.adapter: None there, 'a' now"],
    ),
    "prompts": (
        {"prompts": make_prompts(9)},
        ["prompts.count: 8 there, 9 now", "prompts.sha256", "prompts.columns_sha256"],
    ),
    "columns": (
        {"prompts": [replace(prompt, columns={"answer": 0}) for prompt in make_prompts()]},
        [r"prompts.columns_sha256"],
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_other_settings_are_refused_by_name(rollouts, case):
    changes, messages = CHANGES[case]
    before = state(shards(rollouts.output_dir))
    with pytest.raises(ConfigError) as raised:
        roll(rollouts.output_dir, engine=never, **changes)
    for message in [*messages, "--overwrite"]:
        assert message in str(raised.value)
    assert str(raised.value).count(" there, ") == len(messages)
    assert state(shards(rollouts.output_dir)) == before


def test_another_engine_is_refused_where_it_would_draw(rollouts):
    shards(rollouts.output_dir)[0].unlink()
    other = make_engine()
    other.describe = lambda: {"engine": "other", "dtype": "float32"}  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match=r"engine\.engine: 'transformers' there, 'other' now"):
        roll(rollouts.output_dir, engine=other)


def test_a_model_that_only_moved_is_the_same(rollouts):
    moved = {"path": "elsewhere", "fingerprint": "sha256:0"}
    assert roll(rollouts.output_dir, engine=never, model_info=moved).shards_drawn == 0


def test_settings_of_a_run_that_drew_nothing_bind_nobody(tmp_path):
    with pytest.raises(DataError, match="window"):
        roll(tmp_path / "out", sampling=replace(SAMPLING, max_completion_length=1000))
    assert roll(tmp_path / "out").shards_drawn == 4


def test_overwrite_draws_anew_and_leaves_other_files(rollouts):
    folder = rollouts.output_dir
    (folder / "notes.txt").write_text("mine")
    result = roll(folder, num_generations=2, shard_size=4, overwrite=True)
    assert len(shards(folder)) == result.shards_drawn == 2
    assert {len(group) for group in result.groups()} == {2}
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match=r"holds no rollouts but other things \(for example 'thesis.tex'\)"):
        roll(tmp_path, engine=never)
    assert roll(tmp_path, overwrite=True).shards_drawn == 4
    assert (tmp_path / "thesis.tex").read_text() == "x"


def test_shards_without_a_manifest_are_not_ours_to_overwrite(rollouts):
    (rollouts.output_dir / "manifest.json").unlink()
    before = state(shards(rollouts.output_dir))
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match=r"holds no rollouts|has no manifest.json"):
            roll(rollouts.output_dir, engine=never, overwrite=overwrite)
    assert state(shards(rollouts.output_dir)) == before


BAD_CALLS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "one generation": ({"num_generations": 1}, ConfigError, "num_generations=1 must be at least 2"),
    "shard size": ({"shard_size": 0}, ConfigError, "shard_size=0"),
    "no prompts": ({"prompts": []}, DataError, "there are no prompts"),
    "twice a prompt": ({"prompts": make_prompts(2) + make_prompts(1)}, DataError, "1 prompts repeat"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_calls_leave_no_folder(tmp_path, case):
    changes, error, message = BAD_CALLS[case]
    with pytest.raises(error, match=message):
        roll(tmp_path / "out", engine=never, **changes)
    assert not (tmp_path / "out").exists()


def test_an_output_dir_that_is_a_file(tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(ConfigError, match="is a file; give a directory"):
        roll(tmp_path / "out", engine=never)


def test_a_second_process_is_refused(rollouts):
    lock = os.open(rollouts.output_dir / ".lock", os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="is being written to by another process"):
            roll(rollouts.output_dir, engine=never)
    finally:
        os.close(lock)
    assert roll(rollouts.output_dir, engine=never).shards_drawn == 0


# --- Broken folders


def swap(first: Path, second: Path) -> None:
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def cut(first: Path, second: Path) -> None:
    first.write_bytes(first.read_bytes()[:100])


@pytest.mark.parametrize(("damage", "message"), [(cut, "is corrupt"), (swap, "holds other prompts")])
def test_a_broken_shard_is_named_and_deleting_it_mends_the_run(
    rollouts, damage: Callable[[Path, Path], None], message: str
):
    groups, paths = rollouts.groups(), shards(rollouts.output_dir)
    damage(paths[1], paths[2])
    with pytest.raises(DataError, match=rf"shard-00001.parquet {message}.*delete it and rerun"):
        roll(rollouts.output_dir, engine=never)
    paths[1].unlink()
    if damage is swap:
        paths[2].unlink()
    assert roll(rollouts.output_dir).groups() == groups


@pytest.mark.parametrize(("content", "message"), [("{", "is corrupt"), ("[]", "is no manifest of rollouts")])
def test_a_broken_manifest_is_named(rollouts, content, message):
    (rollouts.output_dir / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=message):
        roll(rollouts.output_dir, engine=never)


def test_metadata_travels_with_each_shard(rollouts):
    for path in shards(rollouts.output_dir):
        notes = json.loads(pq.read_schema(path).metadata[b"nonpareil"])
        assert notes["aggregate"] == {"length": 1.0}
        assert notes["rewards"]["length"]["kind"] == "function"
    assert read_groups(rollouts.output_dir / "data") == rollouts.groups()
