import json

import pytest

from nonpareil.errors import DataError
from nonpareil.rollouts import best, export, read_groups, read_vbon
from nonpareil.rollouts.reading import read_available
from nonpareil.rollouts.store import read_shard, write_shard


def lines(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def test_one_completion_a_line_groups_by_prompt(tmp_path):
    rows = [("p", "a", 1), ("q", "b", 2.5), ("p", "c", None)]
    path = lines(tmp_path / "v.jsonl", *({"prompt": p, "text": t, "reward": r} for p, t, r in rows))
    first, second = read_vbon(path)
    assert (first.prompt, first.completions, first.rewards) == ("p", ["a", "c"], [1.0, None])
    assert (second.prompt, second.completions, second.rewards) == ("q", ["b"], [2.5])
    assert (len(first), first.completion_token_ids, first.prompt_token_ids) == (2, [[], []], [])


def test_one_group_a_line_keeps_equal_prompts_apart(tmp_path):
    row = {"prompt": "p", "responses": ["a", "b"], "rewards": [0.5, float("nan")]}
    path = lines(tmp_path / "v.jsonl", row, row)
    groups = read_vbon(path)
    assert read_groups(path) == read_available(str(path))[0] == groups
    assert len({group.prompt_id for group in groups}) == 2
    assert [group.rewards for group in groups] == [[0.5, None]] * 2
    assert best(groups[0]) == 0


def test_they_store_and_export_as_any_group(tmp_path):
    row = {"prompt": "p", "responses": ["a", "b"], "rewards": [0.5, 1.5]}
    groups = read_vbon(lines(tmp_path / "v.jsonl", row))
    assert read_shard(write_shard(tmp_path / "v.parquet", groups)) == groups
    assert export(groups, tmp_path / "v.pref.jsonl", "preference").rows == 1


BAD = {
    "not JSON": ("{", "line 1 is not JSON"),
    "no prompt": ({"text": "a", "reward": 1}, "line 1 has no prompt string"),
    "neither kind": ({"prompt": "p", "text": "a"}, r"neither text and reward .*\(it has: prompt, text\)"),
    "lengths": ({"prompt": "p", "responses": ["a"], "rewards": []}, "must be lists of one length"),
    "reward": ({"prompt": "p", "text": "a", "reward": "1"}, "the reward '1' is no number"),
    "completion": ({"prompt": "p", "text": 1, "reward": 1}, "a completion is no string"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_lines_are_named(tmp_path, case):
    row, message = BAD[case]
    with pytest.raises(DataError, match=message):
        read_vbon(lines(tmp_path / "v.jsonl", row))


def test_no_file_and_no_lines(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_vbon(tmp_path / "v.jsonl")
    with pytest.raises(DataError, match="has no lines"):
        read_vbon(lines(tmp_path / "v.jsonl", ""))
