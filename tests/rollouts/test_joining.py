"""Folders that were drawn alike become one; what differs is named, and no group counts twice."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nonpareil.cli.main import main
from nonpareil.errors import ConfigError, DataError
from nonpareil.rollouts import read_groups
from nonpareil.rollouts.joining import join
from nonpareil.rollouts.manifest import read_manifest, write_manifest
from tests.rollouts.conftest import SAMPLING, combined, count_of_good, make_engine, make_prompts, never, roll

ENGINE = make_engine()
OTHER_SEED = replace(SAMPLING, seed=9)


def drawn(folder: Path, **changes: Any) -> Path:
    roll(folder, **{"engine": ENGINE, "num_generations": 2, **changes})
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    at = tmp_path_factory.mktemp("folders")
    return {
        "first": drawn(at / "first", prompts=make_prompts(3)),
        "last": drawn(at / "last", prompts=make_prompts(5)[3:]),
        "most": drawn(at / "most", prompts=make_prompts(4)),
        "reseeded": drawn(at / "reseeded", prompts=make_prompts(3), sampling=OTHER_SEED),
    }


def test_folders_of_different_prompts_follow_one_another(folders, tmp_path):
    report = join([folders["first"], folders["last"]], tmp_path / "out", shard_size=2)
    joined = read_groups(tmp_path / "out")
    assert joined == read_groups(folders["first"]) + read_groups(folders["last"])
    manifest = read_manifest(tmp_path / "out")
    assert (report.copies, manifest) == (0, report.manifest)
    assert (manifest["complete"], manifest["draw"]["seed"], manifest["counts"]["prompts"]) == (True, 3, 5)
    assert manifest["counts"]["failed_rewards"] == {"length": {"count": 0, "reasons": {}}}
    assert [part["prompts"]["count"] for part in manifest["draw"]["joined_from"]] == [3, 2]
    for further in ({"num_generations": 2}, {"num_generations": 4}, {"prompts": make_prompts(8)}):
        with pytest.raises(
            ConfigError, match=r"neither grows nor is scored anew: .* joined from, and join them again"
        ):
            roll(tmp_path / "out", engine=never, **further)
    with pytest.raises(ConfigError, match="holds groups; give another"):
        join([folders["first"], folders["last"]], tmp_path / "out")
    again = join([folders["last"], folders["first"]], tmp_path / "out", overwrite=True)
    assert again.manifest["counts"]["prompts"] == 5


def test_a_group_that_two_folders_have_is_taken_once(folders, tmp_path):
    report = join([folders["first"], folders["most"], folders["last"]], tmp_path / "out")
    assert report.copies == 4  # three of the first, and the last one's first
    assert [g.prompt_id for g in read_groups(tmp_path / "out")] == [p.prompt_id for p in make_prompts(5)]


def test_draws_of_other_seeds_stand_in_one_group(folders, tmp_path):
    join([folders["first"], folders["reseeded"]], tmp_path / "out")
    pairs = zip(read_groups(folders["first"]), read_groups(folders["reseeded"]), strict=True)
    for group, (one, other) in zip(read_groups(tmp_path / "out"), pairs, strict=True):
        assert group.completion_token_ids == one.completion_token_ids + other.completion_token_ids
        assert group.rewards == group.rewards_by_name["length"] == one.rewards + other.rewards
    draw = read_manifest(tmp_path / "out")["draw"]
    assert (draw["seed"], draw["num_generations"]) == ([3, 9], 4)


def test_a_joined_folder_joins_further_and_no_draw_counts_twice(folders, tmp_path):
    join([folders["first"], folders["reseeded"]], tmp_path / "two")
    third = drawn(tmp_path / "third", prompts=make_prompts(3), sampling=replace(SAMPLING, seed=10))
    report = join([tmp_path / "two", third], tmp_path / "three")
    assert (report.manifest["draw"]["seed"], report.manifest["draw"]["num_generations"]) == ([3, 9, 10], 6)
    two, one = read_groups(tmp_path / "two"), read_groups(third)
    assert [g.completions for g in read_groups(tmp_path / "three")] == [
        a.completions + b.completions for a, b in zip(two, one, strict=True)
    ]
    for twice in (folders["first"], folders["reseeded"], tmp_path / "two"):
        with pytest.raises(DataError, match="two of one seed are the same draws"):
            join([tmp_path / "three", twice], tmp_path / "out")


def test_draws_of_prompts_that_were_read_otherwise_are_no_draws_of_one_prompt(folders, tmp_path):
    prompts = make_prompts(3)
    tomorrow = [replace(prompt, token_ids=[1, 6, *prompt.token_ids[1:]]) for prompt in prompts]
    mended = [replace(prompt, columns={"answer": 7}) for prompt in prompts]
    for name, changed, said in (
        ("tomorrow", tomorrow, "the policy read them otherwise"),
        ("mended", mended, "other values in the dataset's further columns"),
    ):
        other = drawn(tmp_path / name, prompts=changed, sampling=OTHER_SEED)
        with pytest.raises(DataError, match=f"hold the same prompts, .*{said}"):
            join([folders["first"], other], tmp_path / "out")


def test_what_would_count_twice_or_is_not_alike_is_refused(folders, tmp_path):
    first, most, reseeded = folders["first"], folders["most"], folders["reseeded"]
    warm = drawn(tmp_path / "warm", prompts=make_prompts(3), sampling=replace(SAMPLING, temperature=2.0))
    other = drawn(tmp_path / "other", prompts=make_prompts(3), reward=combined(count_of_good))
    large = drawn(tmp_path / "large", prompts=make_prompts(5)[3:], num_generations=3)
    later = Path(shutil.copytree(most, tmp_path / "later"))
    write_manifest(later, {**(read_manifest(later) or {}), "format": 3})
    for asked, error, said in (
        ([first], ConfigError, "give two folders at least"),
        ([first, warm], ConfigError, r"draw.sampling.temperature: 1.0 in '.*first', 2.0 in '.*warm'"),
        ([first, other], ConfigError, r"scoring.aggregate.length: 1.0 in '.*first', None in"),
        ([first, later], DataError, "has format 3, and this version of nonpareil reads 2 at most"),
        ([first, large], ConfigError, r"num_generations: 2 in '.*first', 3 in '.*large'; .* grow first"),
        ([first, reseeded, reseeded], DataError, "two of one seed are the same draws"),
        (
            [most, reseeded],
            DataError,
            r"\(seed 3\) and in '.*reseeded' \(seed 9\), and not all prompts are in both",
        ),
        ([first, tmp_path], DataError, "has no manifest.json"),
    ):
        with pytest.raises(error, match=said):
            join(asked, tmp_path / "out")
        assert not (tmp_path / "out" / "manifest.json").exists()


def test_the_command(folders, tmp_path, capsys):
    words = [
        "join",
        "--groups",
        str(folders["first"]),
        str(folders["last"]),
        "--output_dir",
        str(tmp_path / "out"),
    ]
    assert main(words) == 0
    assert "5 groups of 2 in" in capsys.readouterr().err.replace("\n", " ")
    assert main([*words[:-1], str(folders["first"])]) == 2
    assert "is what groups names" in capsys.readouterr().err
