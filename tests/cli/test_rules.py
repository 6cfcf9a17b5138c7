"""Rules, a gold reward and N beyond the draws at the command line, on groups of a file, as a user types them."""

import json
from pathlib import Path

import pytest

from nonpareil.records import Group
from nonpareil.rollouts.store import write_shard
from tests.cli.conftest import Command


@pytest.fixture
def nonpareil(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Without a model: nothing here reads one."""
    return Command(tmp_path, capsys)


@pytest.fixture(scope="module")
def groups(tmp_path_factory) -> Path:
    """Four prompts with five answers each: the proxy likes the long ones, the gold reward what is right."""
    texts = ["It is 4", "I say 4.0", "So 5", "Perhaps 7 or 5", "no number at all"]
    gold = [1.0, 1.0, 0.0, 0.0, None]
    rows = [
        Group(
            prompt_id=f"p-{place}",
            prompt=f"What is {place}?",
            prompt_token_ids=[1, place],
            completions=texts,
            completion_token_ids=[[3] * (2 + i) for i in range(5)],
            finish_reasons=["stop"] * 5,
            logprobs=[[-0.5] * (2 + i) for i in range(5)],
            rewards_by_name={"proxy": [0.1, 0.4, 0.5, 0.9 + place / 10, None], "gold": gold},
            rewards=[0.1, 0.4, 0.5, 0.9 + place / 10, None],
        )
        for place in range(4)
    ]
    path = tmp_path_factory.mktemp("groups") / "groups.parquet"
    write_shard(path, rows)
    return path


def test_rules_gold_and_json(nonpareil, groups, tmp_path):
    words = ["--groups", groups, "--output_dir", tmp_path / "curve"]
    rules = ["best_of_n", "majority", "likelihood:weight=0.2", "length:weight=1", "mbr"]
    status, out, err = nonpareil(
        "curve",
        *words,
        "--rules",
        *rules,
        "--similarity",
        "words",
        "--gold_reward",
        "gold",
        "--adaptive_n",
        "true",
        "--json",
    )
    assert status == 0, err
    told = json.loads(out)
    by_rule = {one["rule"]: one for one in told["rules"]["rules"]}
    assert by_rule["best_of_n"]["gold"]["estimate"] == 0
    assert by_rule["majority"]["gold"]["estimate"] == 0.5, "4 and 5 tie, two each"
    assert told["gold"]["stop_at"] == 1
    assert told == json.loads((tmp_path / "curve" / "curve.json").read_text()) | {
        name: told[name] for name in ("curve", "picture")
    }
    assert "What rules of selection are worth" in err
    assert "By gold, stop at N = 1" in err
    assert "stopping early" in err


def test_a_verifier_or_function_scores_as_gold(nonpareil, groups, tmp_path):
    code = tmp_path / "gold.py"
    code.write_text(
        "def right(completions, **rest):\n    return [float('4' in one) for one in completions]\n"
    )
    words = ["--groups", groups, "--output_dir", tmp_path / "curve", "--json"]
    status, out, err = nonpareil("curve", *words, "--gold_reward", f"{code}:right")
    assert status == 0, err
    assert json.loads(out)["gold"]["name"] == "right"
    assert json.loads(out)["gold"]["points"][0]["gold"]["estimate"] == 0.5


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--rules sof", "rules='sof' is no rule; did you mean 'soft'?"),
        ("--rules best_of_n:n=9", "takes 9 completions, and the groups have 5 each"),
        ("--answers whole", "answers='whole' is read by a rule that reads answers only"),
        ("--rules best_of_n --similarity words", "the rules are: best_of_n; remove it"),
        ("--extrapolate 64", "extrapolate=64 needs rewards that are 0 or 1"),
        ("--gold_reward golden", "is no stored reward (there are: proxy, gold)"),
        ("--gold_reward accurac", "gold_reward='accurac' is no stored reward"),
        ("--gold_reward accuracy", "gold_reward='accuracy'"),
    ],
)
def test_what_cannot_be_is_one_line(nonpareil, groups, tmp_path, words, says):
    status, _, err = nonpareil("curve", "--groups", groups, "--output_dir", tmp_path / "c", *words.split())
    assert status != 0
    assert says in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "c" / "curve.json").exists()


def export(nonpareil, groups, path, *words) -> list[dict]:
    status, _, err = nonpareil("export", "--groups", groups, "--output", path, *words)
    assert status == 0, err
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_completion_that_a_rule_chooses(nonpareil, groups, tmp_path):
    plain = export(nonpareil, groups, tmp_path / "a.jsonl", "--format", "sft")
    assert [row["completion"] for row in plain] == ["Perhaps 7 or 5"] * 4
    by_rule = export(nonpareil, groups, tmp_path / "b.jsonl", "--format", "sft", "--rule", "best_of_n")
    assert by_rule == plain
    likely = ["--format", "sft", "--rule", "likelihood:weight=5"]
    rows = export(nonpareil, groups, tmp_path / "c.jsonl", *likely)
    assert [row["completion"] for row in rows] == ["It is 4"] * 4
    assert [row["score"] for row in rows] == [0.1] * 4
    voted = ["--format", "preference", "--rule", "best_of_majority:alpha=0.5"]
    rows = export(nonpareil, groups, tmp_path / "d.jsonl", *voted)
    assert [(row["chosen"], row["rejected"]) for row in rows] == [("Perhaps 7 or 5", "It is 4")] * 4


def test_where_a_rule_decides_nothing_there_is_no_row(nonpareil, groups, tmp_path):
    words = ["--format", "sft", "--rule", "majority", "--answers", "whole"]
    status, _, err = nonpareil("export", "--groups", groups, "--output", tmp_path / "e.jsonl", *words)
    assert status != 0
    assert "4 in which the rule tells no completion from another" in err
    status, _, err = nonpareil(
        *("export", "--groups", groups, "--output", tmp_path / "f.jsonl", "--rule", "best_of_n:n=6")
    )
    assert "takes 6 completions, and group 'p-0' has 5" in err
