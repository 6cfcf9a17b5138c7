"""Groups on disk, from the command line: failed rewards, unfinished runs, dated templates, full disks."""

import json
import resource
import time

import pytest
from transformers import AutoTokenizer

TEMPLATE = (
    "{{ bos_token }}{{ strftime_now('%S') }} {{ mood | default('') }} "
    "{% for m in messages %}{{ m['content'] }} {% endfor %}"
)
CHAT_REWARDS = """
def good(completions, **columns):
    return [0.01 * len(c[0]["content"]) for c in completions]
"""
SWITCHED = """
from pathlib import Path

def down(completions, **columns):
    if not (Path(__file__).parent / "up").exists():
        raise ConnectionError("nobody answers")
    return [float(len(text)) for text in completions]
"""


def test_a_run_whose_every_reward_failed_is_no_success_and_is_asked_again(nonpareil, files):
    (files / "switched.py").write_text(SWITCHED)
    down = f"{files}/switched.py:down"
    for drawn in (True, False):  # a second run finds the nulls and must not take them for scores
        status, out, err = nonpareil("sample", "--json", reward_funcs=down)
        assert (status, out) == (1, "")
        assert "every reward is null" in err
        assert "down: 48 times ConnectionError: nobody answers" in err
        assert ("draw " in err) is drawn
    (files / "up").touch()
    status, out, err = nonpareil("sample", "--json", reward_funcs=down)
    figures = json.loads(out.splitlines()[-1])
    assert (status, figures["shards_drawn"], figures["shards_scored"]) == (0, 0, 3)
    assert figures["failed_rewards"] == {"down": {"count": 0, "reasons": {}}}


@pytest.mark.parametrize("bf16", ["true", "false"])
def test_a_training_says_where_its_groups_are_of_another_dtype(nonpareil, files, bf16):
    groups = files / "groups"
    assert nonpareil("sample", output_dir=groups, dtype="float32")[0] == 0
    settings = {"groups": groups, "dataset_name": None, "evaluate_after": "false", "eval_dataset_name": None}
    status, _, err = nonpareil(
        "distill", method="sft_bon", n=2, bf16=bf16, dry_run="true", **settings, num_generations_eval=None
    )
    assert status == 0, err
    assert ("was drawn in float32, and this training computes in bfloat16" in err) == (bf16 == "true")


def test_evaluate_whose_every_reward_failed_is_no_success(nonpareil, files):
    status, _, err = nonpareil("evaluate", reward_funcs=f"{files}/rewards.py:nothing", output_dir=files / "e")
    assert status == 1
    assert "every reward is null" in err
    assert not (files / "e" / "report.json").exists()


def test_nulls_of_an_earlier_reward_are_not_told_again(nonpareil, files):
    (files / "half.py").write_text(
        "def half(completions, id, **columns):\n    return [None if i % 2 else 1.0 for i in id]\n"
    )
    status, _, err = nonpareil("sample", reward_funcs=f"{files}/half.py:half")
    assert (status, "24 rewards of half are null" in err) == (0, True)
    status, out, err = nonpareil("sample", "--json", reward_funcs=f"{files}/rewards.py:good")
    assert (status, "half" in err) == (0, False)
    assert list(json.loads(out.splitlines()[-1])["failed_rewards"]) == ["good"]


def test_the_curve_of_groups_with_a_failed_reward_each_keeps_every_prompt(nonpareil, files):
    """And is that of whole groups of three: the fourth completion of each prompt has no reward."""
    (files / "oneless.py").write_text(
        "def oneless(completions, **columns):\n"
        "    return [None if i % 4 == 0 else float(i % 4) for i in range(len(completions))]\n"
    )
    assert nonpareil("sample", reward_funcs=f"{files}/oneless.py:oneless")[0] == 0
    status, out, err = nonpareil("curve", "--groups", files / "out", "--json")
    curve = json.loads(out.splitlines()[-1])
    assert (status, curve["num_prompts"], curve["num_prompts_used"], curve["max_n"]) == (0, 12, 12, 4)
    assert [point["reward"]["estimate"] for point in curve["points"]] == pytest.approx([2, 8 / 3, 3])
    assert (curve["recommended_n"], curve["still_rising"]) == (3, True)
    assert "Still rising at N = 3: draw more." in err
    assert "N ends at 3, not 4: too few prompts have 4 rewards that did not fail." in err
    assert "No win rate at N = 3" in err


def test_the_curve_of_an_unfinished_run_says_of_how_much_it_is(nonpareil, files):
    assert nonpareil("sample")[0] == 0
    (files / "out" / "data" / "shard-00001.parquet").unlink()
    status, _, err = nonpareil("curve", "--groups", files / "out")
    assert (status, "2 of 3 shards are there" in err) == (1, True)
    status, _, err = nonpareil("export", "--groups", files / "out", "--output", files / "x.jsonl")
    assert (status, "2 of 3 shards are there" in err, (files / "x.jsonl").exists()) == (1, True, False)

    from nonpareil.rollouts.manifest import read_manifest, write_manifest

    write_manifest(files / "out", {**read_manifest(files / "out"), "complete": False})
    status, out, err = nonpareil("curve", "--groups", files / "out", "--json")
    assert status == 0
    assert "is not finished: 2 of 3 shards are there; 1 are not drawn" in err
    figures = json.loads(out.splitlines()[-1])
    assert (figures["num_prompts"], figures["unfinished"][:6]) == (8, "2 of 3")
    status, _, err = nonpareil("export", "--groups", files / "out", "--output", files / "x.jsonl")
    assert (status, "is not finished" in err) == (1, True)


@pytest.fixture
def chats(files):
    """The same files with conversations and a template that writes the second."""
    policy = AutoTokenizer.from_pretrained(files / "policy")
    policy.chat_template = TEMPLATE
    policy.save_pretrained(files / "policy")
    for name in ("train", "test"):
        rows = [json.loads(line) for line in (files / f"{name}.jsonl").read_text().splitlines()]
        chats = [{"prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]
        (files / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats))
    (files / "rewards.py").write_text(CHAT_REWARDS)
    return files


def test_every_command_takes_a_template_that_writes_the_date(nonpareil, chats):
    mood = '{"mood":"good"}'
    assert nonpareil("sample", chat_template_kwargs=mood, output_dir=chats / "groups")[0] == 0
    (chats / "groups" / "data" / "shard-00001.parquet").unlink()
    time.sleep(1.1)
    status, _, err = nonpareil("sample", chat_template_kwargs=mood, output_dir=chats / "groups")
    assert status == 0, err
    manifest = json.loads((chats / "groups" / "manifest.json").read_text())
    rendering = manifest["draw"]["prompts"]["rendering"]
    assert rendering["chat_template_kwargs"] == {"mood": "good"}
    status, _, err = nonpareil("sample", output_dir=chats / "groups")
    assert (status, "chat_template_kwargs.mood: 'good' there, None now" in err) == (2, True)

    for _ in range(
        2
    ):  # the reference's groups are taken up another second, and the policy reads their prompts
        status, _, err = nonpareil("evaluate", reference_dir=chats / "reference", output_dir=chats / "e")
        assert status == 0, err
        time.sleep(1.1)
    trained = {"method": "bonbon", "n": 4, "groups": chats / "groups", "dataset_name": None, "max_steps": 1}
    other = {"chat_template_kwargs": '{"mood":"bad"}', "evaluate_after": "false"}
    status, _, err = nonpareil("distill", **trained, **other, output_dir=chats / "bad")
    assert (status, "was drawn with chat_template_kwargs={'mood': 'good'}" in err) == (2, True), err
    status, _, err = nonpareil("distill", **trained, output_dir=chats / "run")
    assert status == 0, err


@pytest.mark.parametrize("bad", ["{", "[1]", '"mood"', "3", "mood=good"])
def test_template_arguments_that_are_no_object_are_refused(nonpareil, bad):
    status, _, err = nonpareil("sample", chat_template_kwargs=bad)
    assert (status, "chat_template_kwargs" in err, "must be a JSON object" in err) == (2, True, True)


def test_a_file_too_large_for_the_limit_leaves_nothing_half_written(nonpareil, files):
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, usual[1]))
    try:
        status, _, err = nonpareil("sample")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert (status, "File too large" in err) == (1, True), err
    assert not [path for path in (files / "out").rglob("*") if path.suffix in (".parquet", ".tmp")]
    status, out, _ = nonpareil("sample", "--json", output_dir=files / "out")
    assert (status, json.loads(out.splitlines()[-1])["shards_drawn"]) == (0, 3)
