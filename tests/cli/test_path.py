"""The whole path on a tiny model: sample, curve, export, distill, evaluate."""

import json
import shutil

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PNG = b"\x89PNG\r\n"


def last_json(output: str) -> dict:
    return json.loads(output.strip().splitlines()[-1])


def test_sample_curve_export(nonpareil, files, rendered_pictures):
    status, out, _ = nonpareil("sample", "--json", output_dir=files / "groups")
    figures = last_json(out)
    assert status == 0
    assert figures["prompts"] == 12
    assert figures["completions"] == 48
    assert figures["shards_drawn"] == 3

    status, out, _ = nonpareil("sample", "--json", output_dir=files / "groups")
    assert (status, last_json(out)["shards_drawn"]) == (0, 0)  # nothing is drawn twice

    status, out, err = nonpareil("curve", "--groups", files / "groups", "--json")
    curve = last_json(out)
    rewards = [point["reward"]["estimate"] for point in curve["points"]]
    assert status == 0
    assert len(rewards) == 4
    assert rewards == sorted(rewards)
    assert (files / "groups" / "curve" / "curve.png").read_bytes().startswith(PNG)
    assert "best-of-N" in err
    assert "No win rate at N = 4: no further draw is left" in err
    assert err.count("Intervals over 12 prompts are rough") == 1

    for kind, columns in (
        ("preference", {"prompt", "chosen", "rejected", "score_chosen", "score_rejected", "id"}),
        ("sft", {"prompt", "completion", "score", "id"}),
        ("unpaired", {"prompt", "completion", "label", "score", "id"}),
    ):
        target = files / f"{kind}.parquet"
        assert nonpareil("export", "--groups", files / "groups", "--format", kind, "--output", target)[0] == 0
        assert set(pq.read_table(target).column_names) == columns


def test_distill_leaves_a_plain_checkpoint_and_a_report(nonpareil, files, rendered_pictures):
    status, out, err = nonpareil("distill", "--json", output_dir=files / "run")
    figures = last_json(out)
    run = files / "run"
    assert status == 0
    assert figures["steps"] == 3
    assert figures["evaluation"]["num_prompts"] == 12
    assert "win rate against before" in err
    assert " ".join(err.split()).count("Intervals over 12 prompts are rough") == 1
    model = AutoModelForCausalLM.from_pretrained(run)
    before = AutoModelForCausalLM.from_pretrained(files / "policy")
    assert not torch.equal(model.lm_head.weight, before.lm_head.weight)
    assert AutoTokenizer.from_pretrained(run)("the film")["input_ids"] == [1, 5, 6]
    card = (run / "README.md").read_text()
    assert "arXiv:2407.14622" in card
    assert str(files) not in card
    assert (run / "evaluation" / "report.html").stat().st_size > 10_000
    pictures = list((run / "evaluation").glob("*.png"))
    assert len(pictures) == 4
    assert all(picture.read_bytes().startswith(PNG) for picture in pictures)
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps[:3] == [1, 2, 3]


def test_evaluating_a_policy_against_itself(nonpareil, files):
    """The interval holds one half, and no KL was spent."""
    status, out, err = nonpareil("evaluate", "--json", num_generations=8, output_dir=files / "self")
    evaluation = last_json(out)["evaluation"]
    assert status == 0
    assert " ".join(err.split()).count("Intervals over 12 prompts are rough") == 1
    win = evaluation["comparison"]["win_rate"]
    assert win["low"] < 0.5 < win["high"]
    assert evaluation["kl"]["estimate"] == pytest.approx(0, abs=1e-6)
    assert evaluation["kl_efficiency"] is None


def test_an_unseen_reward_of_the_rewards_name_is_refused(nonpareil, files):
    """One column would hold both, and the report would show the trained reward twice."""
    (files / "other").mkdir()
    shutil.copytree(files / "rm", files / "other" / "rm")
    status, _, err = nonpareil(
        "evaluate",
        reward_model_name_or_path=files / "rm",
        unseen_reward=files / "other" / "rm",
        num_generations=4,
        output_dir=files / "same",
    )
    assert status == 2
    assert "unseen_reward=" in err
    assert "its name 'rm' is also the reward's" in err
    assert not (files / "same").exists()


def test_an_unseen_reward_is_reported_beside_the_trained_one(nonpareil, files):
    status, out, _ = nonpareil(
        "evaluate", "--json", unseen_reward=files / "rm", num_generations=4, output_dir=files / "both"
    )
    assert status == 0
    assert last_json(out)["evaluation"]["unseen"]["reward"] == "rm"


def test_yaml_and_flags_agree_and_flags_win(nonpareil, files):
    config = files / "c.yaml"
    config.write_text(
        f"model_name_or_path: {files}/policy\ndataset_name: {files}/train.jsonl\n"
        f"reward_funcs: ['{files}/rewards.py:good']\nmax_completion_length: 6\nnum_generations: 2\n"
        f"output_dir: {files}/from-yaml\ntemperature: 7e-1\n"
    )
    status, out, _ = nonpareil("sample", "--config", config, "--num_generations", 3, "--json")
    assert status == 0
    assert last_json(out)["completions"] == 36
    manifest = json.loads((files / "from-yaml" / "manifest.json").read_text())
    assert manifest["draw"]["sampling"]["temperature"] == 0.7


def test_inspect_prints_the_ids_that_are_read(nonpareil, files):
    status, out, _ = nonpareil(
        "sample", "--inspect", "true", reward_funcs=None, reward_model_name_or_path=files / "rm"
    )
    assert status == 0
    assert "policy reads" in out
    assert "[1, 5, 6, 7, 4" in out  # <s> the film was a: one BOS, for policy and reward model alike


def test_help_of_every_command_shows_an_example(nonpareil):
    for command in ("sample", "curve", "distill", "evaluate", "export"):
        status, out, _ = nonpareil(command, "--help")
        assert status == 0
        assert f"nonpareil {command}" in out.split("example:")[1]
