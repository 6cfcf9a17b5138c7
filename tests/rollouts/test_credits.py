"""Credits on disk: read back as they were, and refused by name where they are cut short, changed or foreign."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from nonpareil.credits import Credits, check_credits
from nonpareil.errors import ConfigError, DataError
from nonpareil.rollouts.credits import (
    CreditsSource,
    begin_credits,
    credits_path,
    has_credits,
    read_credits,
    write_credits,
)

SOURCE = CreditsSource("sha256-2:abc", "0123", {"kind": "made up", "seed": 3})


def credits_of(tokens, k=3, seed=0):
    generator = np.random.default_rng(seed)
    weights = generator.random((tokens, k)).astype(np.float32) / k
    advantages, prefix = (generator.normal(size=s).astype(np.float32) for s in ((tokens, k), tokens))
    return Credits(generator.integers(0, 9, (tokens, k)).astype(np.int32), weights, advantages, prefix)


SHARDS = [
    {"a-0": [credits_of(4), None, credits_of(2, seed=1)], "b-1": [None, credits_of(0)]},
    {"c-2": [credits_of(5, seed=2)], "none": []},
]


@pytest.fixture
def folder(tmp_path):
    begin_credits(tmp_path, SOURCE, len(SHARDS))
    for index, shard in enumerate(SHARDS):
        write_credits(tmp_path, index, shard, SOURCE)
    return tmp_path


def assert_equal(ours, theirs):
    for name, value in vars(theirs).items():
        np.testing.assert_array_equal(getattr(ours, name), value)
        assert getattr(ours, name).dtype == value.dtype


def test_what_was_written_is_read(folder):
    read = read_credits(folder)
    assert (read.source, list(read)) == (SOURCE, ["a-0", "c-2"])
    whole = SHARDS[0] | SHARDS[1]
    for prompt_id, found in read.items():
        assert [each is None for each in found] == [each is None for each in whole[prompt_id]][: len(found)]
        for ours, theirs in zip(found, whole[prompt_id], strict=False):
            if theirs is not None:
                assert_equal(ours, theirs)
    assert len(read["a-0"]) == 3


def test_a_crash_costs_what_was_not_written(tmp_path):
    begin_credits(tmp_path, SOURCE, 2)
    write_credits(tmp_path, 1, SHARDS[1], SOURCE)
    assert [has_credits(tmp_path, index, SOURCE) for index in range(2)] == [False, True]
    with pytest.raises(DataError, match=r"not finished: 1 of 2 files are missing \(first credits-00000"):
        read_credits(tmp_path)
    begin_credits(tmp_path, SOURCE, 2)
    write_credits(tmp_path, 0, SHARDS[0], SOURCE)
    assert len(read_credits(tmp_path)) == 2


def test_a_folder_of_other_credits_is_not_gone_on_with(folder):
    other = CreditsSource("sha256-2:abc", "0123", {"kind": "made up", "seed": 4})
    with pytest.raises(ConfigError, match=r"source\.value\.seed: 3 there, 4 now"):
        begin_credits(folder, other, 2)
    assert not has_credits(folder, 0, other)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_file_cut_short_is_refused(folder, keep):
    path = credits_path(folder, 0)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"credits-00000.safetensors is corrupt \(.*only that file is made"):
        read_credits(folder)
    assert not has_credits(folder, 0, SOURCE)


@pytest.mark.parametrize("what", ["a number", "a prompt", "the manifest"])
def test_one_changed_byte_is_refused(folder, what):
    path = folder / "manifest.json" if what == "the manifest" else credits_path(folder, 0)
    content = bytearray(path.read_bytes())
    content[{"a number": len(content) - 2, "a prompt": content.find(b"a-0"), "the manifest": 50}[what]] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{path.name} is (corrupt|no manifest)"):
        read_credits(folder)


def test_files_that_are_not_the_runs_are_refused(folder, tmp_path_factory):
    credits_path(folder, 1).rename(credits_path(folder, 0))
    with pytest.raises(DataError, match="not finished"):
        read_credits(folder)
    credits_path(folder, 1).write_bytes(credits_path(folder, 0).read_bytes())
    with pytest.raises(
        DataError, match=r"credits-00000\.safetensors is of another run or place: it is file 1"
    ):
        read_credits(folder)
    save_file({"x": np.zeros(3)}, credits_path(folder, 0))
    with pytest.raises(DataError, match=r"credits-00000.safetensors holds no credits"):
        read_credits(folder)
    write_credits(folder, 0, SHARDS[0], SOURCE)
    write_credits(folder, 2, SHARDS[0], SOURCE)
    with pytest.raises(DataError, match=r"credits-00002\.safetensors. is none of the 2 files"):
        read_credits(folder)
    credits_path(folder, 2).unlink()
    write_credits(folder, 1, {"a-0": [credits_of(4)]}, SOURCE)
    with pytest.raises(DataError, match="repeat another's prompt_id"):
        read_credits(folder)


def test_what_is_no_folder_of_credits_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"holds no credits: it has no manifest\.json"):
        read_credits(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"draw": {}, "format": 2}))
    with pytest.raises(DataError, match="is no manifest of credits"):
        read_credits(tmp_path)


def test_uneven_credits_are_not_written_and_none_at_all_are(tmp_path):
    begin_credits(tmp_path, SOURCE, 1)
    with pytest.raises(ConfigError, match=r"\[3, 4\] candidates; give all as many for each token"):
        write_credits(tmp_path, 0, {"a": [credits_of(2, k=3), credits_of(2, k=4)]}, SOURCE)
    write_credits(tmp_path, 0, {"a": [None], "b": [credits_of(0)]}, SOURCE)
    assert dict(read_credits(tmp_path)) == {}


def changed(**values):
    base = credits_of(3)
    return Credits(**{**vars(base), **values}), base.token_ids[:, 0].tolist()


NAN = np.array([0, np.nan, 0], np.float32)
BAD = {
    "of another completion": ({"token_ids": np.array([[8, 1, 2]] * 3, np.int32)}, "of another completion"),
    "a token more": ({"prefix_values": np.zeros(4, np.float32)}, "arrays of the shapes"),
    "NaN": ({"prefix_values": NAN}, "prefix_values that are NaN"),
    "float64": ({"weights": np.zeros((3, 3))}, "weights float64"),
    "negative": ({"weights": np.full((3, 3), -0.1, np.float32)}, "weights that are negative"),
    "too much": ({"weights": np.full((3, 3), 0.5, np.float32)}, "more than 1 together"),
}


@pytest.mark.parametrize(("values", "says"), BAD.values(), ids=BAD)
def test_credits_that_are_not_a_completions_are_refused(values, says):
    credits, ids = changed(**values)
    with pytest.raises(DataError, match=f"^here: .*{says}"):
        check_credits(credits, ids, "here")
    check_credits(*changed(), "here")
