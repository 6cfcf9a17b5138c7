"""`nonpareil search`: a file of answers by every strategy, and one clear line for what cannot work."""

import json

import pytest

from nonpareil.cli.main import main

FLAGS = {"max_completion_length": 8, "num_generations": 4, "max_prompts": 3}


@pytest.fixture
def search(files, capsys):
    def run(**changes):
        given = {
            "model_name_or_path": files / "policy",
            "dataset_name": files / "train.jsonl",
            "reward_funcs": f"{files}/rewards.py:good",
            "output": files / "answers.jsonl",
            **FLAGS,
            **changes,
        }
        words = [w for k, v in given.items() if v is not None for w in (f"--{k}", *str(v).split(" "))]
        status = main(["search", *words, "--json"])
        output = capsys.readouterr()
        return status, output.out, output.err

    return run


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_strategy_writes_an_answer_a_prompt_with_its_cost(search, files):
    cost = {}
    for strategy, more in (
        ("best_of_n", {}),
        ("speculative_rejection", {"score_at": "2 4"}),
        ("tree", {"children": 2}),
        ("blockwise", {"block_length": 3}),
    ):
        output = files / f"{strategy}.jsonl"
        status, out, err = search(strategy=strategy, output=output, **more)
        assert status == 0, err
        summary, rows = json.loads(out.splitlines()[-1]), rows_of(output)
        assert [row["prompt"] for row in rows] == ["the film was a", "the film was the", "the film was film"]
        assert summary["answers"] == summary["prompts"] == 3
        assert summary["tokens_drawn"] == sum(row["tokens_drawn"] for row in rows)
        assert summary["mean_reward"] == pytest.approx(sum(row["reward"] for row in rows) / 3)
        for row in rows:
            text = row["completion"]
            assert row["reward"] == row["rewards"]["good"] == text.split().count("good") + 0.01 * len(text)
            assert len(row["completion_token_ids"]) <= 8
        assert "3 answers in" in err
        cost[strategy] = summary["tokens_drawn"]
    assert cost["speculative_rejection"] < cost["best_of_n"]


def test_the_answers_of_best_of_n_are_those_of_sample_and_export(search, files):
    assert search(strategy="best_of_n")[0] == 0
    common = ["--max_prompts", "3", "--num_generations", "4", "--max_completion_length", "8"]
    sample = [
        "sample",
        "--model_name_or_path",
        str(files / "policy"),
        "--dataset_name",
        str(files / "train.jsonl"),
    ]
    sample += ["--reward_funcs", f"{files}/rewards.py:good", "--output_dir", str(files / "groups"), *common]
    assert main(sample) == 0
    export = ["export", "--groups", str(files / "groups"), "--format", "sft", "--truncated", "allow"]
    assert main([*export, "--min_reward", "-1", "--output", str(files / "sft.jsonl")]) == 0
    exported = [(row["completion"], row["score"]) for row in rows_of(files / "sft.jsonl")]
    assert exported == [(row["completion"], row["reward"]) for row in rows_of(files / "answers.jsonl")]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"score_at": "8"}, "score_at=8 is not below max_completion_length=8"),
        ({"score_at": "4 2"}, "score_at=[4, 2] must be lengths in tokens that rise"),
        ({"strategy": "tree", "children": 3}, "children=3 does not divide num_generations=4"),
        ({"children": 2}, "children=2 is not read with strategy=speculative_rejection; give strategy=tree"),
        ({"strategy": "best_of_n", "score_at": 2}, "score_at=[2] is not read with strategy=best_of_n"),
        (
            {"max_tokens_per_batch": 40},
            "max_tokens_per_batch=40: the 4 completions of a prompt are drawn together",
        ),
        ({"output": "answers.txt"}, "output='answers.txt' must end in .jsonl or .parquet"),
        ({"reward_funcs": None}, "no reward: give reward_model_name_or_path"),
        ({"num_generations": 1}, "num_generations=1 must be at least 2"),
        ({"temperature": 0}, "temperature=0"),
    ],
)
def test_what_cannot_work_is_one_line(search, files, changes, said):
    status, out, err = search(**changes)
    assert (status, out) == (2, "")
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert not (files / "answers.jsonl").exists()


def test_rewards_that_are_all_null_write_nothing_and_files_are_not_overwritten(search, files):
    status, _, err = search(reward_funcs=f"{files}/rewards.py:nothing")
    assert (status, "has a reward, and nothing was written: " in err) == (1, True), err
    assert not (files / "answers.jsonl").exists()
    (files / "answers.jsonl").write_text("mine\n")
    status, _, err = search()
    assert (status, "exists; give another path, or overwrite" in err) == (2, True), err
    status, _, err = search(overwrite="true")
    assert status == 2, err
    assert (files / "answers.jsonl").read_text() == "mine\n"


DOWN = """
from pathlib import Path

def served(prompts, completions, **columns):
    if not Path(__file__).with_name("down").exists():
        return [float(len(text)) for text in completions]
    return [] if prompts[0].endswith("film") else [None] * len(completions)
"""


def test_prompts_that_a_reward_out_of_order_left_without_an_answer_are_searched_again(search, files):
    (files / "server.py").write_text(DOWN)
    given = {"reward_funcs": f"{files}/server.py:served", "shard_size": 1}
    assert search(**given, output=files / "whole.jsonl")[0] == 0
    (files / "down").touch()
    status, _, err = search(**given)
    assert (status, "served" in err.splitlines()[-1]) == (1, True), err
    assert len(list((files / "answers.jsonl.search" / "data").glob("*.parquet"))) == 2
    (files / "down").unlink()
    status, _, err = search(**given)
    assert (status, "3 groups to search" in err) == (0, True), err
    assert (files / "answers.jsonl").read_bytes() == (files / "whole.jsonl").read_bytes()
    assert not (files / "answers.jsonl.search").exists()
