"""Folders that do not fit the run: other settings, other things, another process, damage."""

import fcntl
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nonpareil.errors import ConfigError, DataError
from nonpareil.records import Prompt
from tests.rollouts.conftest import SAMPLING, make_engine, make_prompts, never, roll, shards, state

# --- Other settings

CHANGES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "seed": ({"sampling": replace(SAMPLING, seed=4)}, [r"seed: 3 there, 4 now"]),
    "temperature and top_k": (
        {"sampling": replace(SAMPLING, temperature=0.7, top_k=5)},
        [r"sampling.temperature: 1.0 there, 0.7 now", r"sampling.top_k: 0 there, 5 now"],
    ),
    "num_generations": ({"num_generations": 3}, [r"num_generations: 4 there, 3 now"]),
    "model": (
        {"model_info": {"path": "tiny", "fingerprint": "sha256:1"}},
        [r"model.fingerprint: 'sha256:0' there, 'sha256:1' now"],
    ),
    "adapter": (
        {"model_info": {"path": "tiny", "fingerprint": "sha256:0", "adapter": "a"}},
        [r"model.adapter: None there, 'a' now"],
    ),
    "prompts": (
        {"prompts": make_prompts(7)},
        ["prompts.count: 8 there, 7 now", "prompts.sha256", "prompts.columns_sha256"],
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
    with pytest.raises(ConfigError, match=r"has no manifest.json"):
        roll(rollouts.output_dir, engine=never, overwrite=True)
    assert state(shards(rollouts.output_dir)) == before


BAD_CALLS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "one generation": ({"num_generations": 1}, ConfigError, "num_generations=1 must be at least 2"),
    "shard size": ({"shard_size": 0}, ConfigError, "shard_size=0"),
    "no prompts": ({"prompts": []}, DataError, "there are no prompts"),
    "twice a prompt": ({"prompts": make_prompts(2) + make_prompts(1)}, DataError, "1 of 3 repeat"),
    "both kinds": (
        {"prompts": [*make_prompts(2), Prompt("c-2", [{"role": "user", "content": "x"}], [1])]},
        DataError,
        "string prompts and conversations are mixed",
    ),
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
