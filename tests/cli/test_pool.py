"""`nonpareil distill` by a method that reads credits, without groups: it draws them, and goes on from anywhere."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest

from nonpareil.assets import demo_path
from nonpareil.commands import credits as credits_command
from nonpareil.commands.policies import local
from nonpareil.rollouts.reading import read_groups
from nonpareil.training.trainer import DistillationTrainer
from nonpareil.values import network
from tests.cli.conftest import WORDS

PROMPTS = [f"the film was {one} {other}" for one in WORDS[:6] for other in WORDS[4:9]]
OWN = {"method": "value_distillation", "num_generations_pool": 6, "seed": 3}
FEW = {"likeliest": 4, "from_tail": 2, "credited_completions": 2}
TRAINED_ONLY = {"evaluate_after": "false", "eval_dataset_name": None}
TRAINED_ONLY |= {"num_generations_eval": None, "num_reference_samples_eval": None}
ALONE = {**OWN, **FEW, **TRAINED_ONLY}


@pytest.fixture
def prompts(files):
    (files / "train.jsonl").write_text("".join(json.dumps({"prompt": each}) + "\n" for each in PROMPTS))


def weights(out):
    return (out / "model.safetensors").read_bytes()


def made_in(out):
    """The weights, credits and rows in a folder, and when each was written."""
    files = [*out.rglob("*.safetensors"), *out.rglob("*.parquet")]
    return {path: path.stat().st_mtime_ns for path in files}


def test_the_main_job_from_a_model_prompts_and_a_reward(nonpareil, files, prompts):
    """Its groups are those of `nonpareil sample`."""
    status, out, err = nonpareil("distill", "--json", **OWN, **FEW)
    assert status == 0, err
    assert "evaluation" in json.loads(out.splitlines()[-1])
    said = [err.index(part) for part in ("first draw 180 completions", "fitting a value to", "credits of 60")]
    assert said == sorted(said)
    drawn = {"num_generations": 6, "seed": 3, "output_dir": files / "groups"}
    assert nonpareil("sample", **drawn)[0] == 0
    ours, theirs = read_groups(files / "out" / "groups"), read_groups(files / "groups")
    assert ours == theirs

    spent = json.loads((files / "out" / "spent.json").read_text())
    tokens = sum(len(each.prompt_token_ids) + len(ids) for each in ours for ids in each.completion_token_ids)
    assert (spent["completions_drawn"], spent["tokens_drawn"]) == (180, tokens)
    before = spent["made_before"]
    assert list(before) == ["groups", "value", "credits"]
    assert (before["groups"]["completions"], before["groups"]["tokens"]) == (180, tokens)
    assert before["value"]["tokens"] > 0
    assert before["credits"]["candidates"] % 7 == 0
    assert min(stage["seconds"] for stage in before.values()) > 0


def test_stopped_between_any_two_stages_the_same_command_goes_on(nonpareil, files, prompts, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    stops = [(network, "read_model", "groups"), (credits_command, "load_named", "value")]
    for module, name, last in stops:
        with monkeypatch.context() as patched:
            patched.setattr(module, name, stop)
            status, _, err = nonpareil("distill", **ALONE)
        assert status == 130
        assert "the same command goes on with what is in" in err
        assert (files / "out" / last).is_dir()
    with monkeypatch.context() as patched:
        patched.setattr(DistillationTrainer, "train", stop)
        assert nonpareil("distill", **ALONE)[0] == 130
    kept = made_in(files / "out")
    pool = json.loads((files / "out" / "groups" / "spent.json").read_text())
    assert (pool["completions"], pool["seconds"] > 0) == (180, True)
    assert len(kept) > 2
    status, _, err = nonpareil("distill", **{**ALONE, "num_generations_pool": 5})
    assert status == 2
    assert "num_generations" in err
    status, _, err = nonpareil("distill", **ALONE)
    assert status == 0, err
    assert "groups to draw" not in err
    assert json.loads((files / "out" / "groups" / "spent.json").read_text()) == pool
    assert json.loads((files / "out" / "spent.json").read_text())["made_before"]["groups"] == pool
    assert kept.items() <= made_in(files / "out").items()


@pytest.mark.slow
def test_the_policy_is_the_one_that_is_trained_on_the_same_groups(nonpareil, files, prompts):
    assert nonpareil("distill", **ALONE)[0] == 0
    assert nonpareil("sample", num_generations=6, seed=3, output_dir=files / "groups")[0] == 0
    given = {"groups": files / "groups", "dataset_name": None, "output_dir": files / "given"}
    given |= {**TRAINED_ONLY, **FEW, "method": "value_distillation", "seed": 3}
    status, _, err = nonpareil("distill", **given)
    assert status == 0, err
    assert weights(files / "given") == weights(files / "out")


@pytest.mark.slow
def test_gone_on_with_it_is_the_same_policy_and_overwrite_begins_anew(nonpareil, files, prompts):
    assert nonpareil("distill", **ALONE, save_steps=1)[0] == 0
    kept = made_in(files / "out")
    last = files / "out" / "checkpoint-3"
    shutil.rmtree(last)
    status, _, err = nonpareil("distill", **ALONE, save_steps=1, resume_from_checkpoint="true")
    assert status == 0, err
    assert nonpareil("distill", **ALONE, output_dir=files / "whole")[0] == 0
    assert weights(files / "whole") == weights(files / "out")
    folders = [files / "out" / name for name in ("groups", "value", "credits")]
    stages = {path: time for path, time in kept.items() if {*folders} & {*path.parents}}
    assert len(stages) > 2
    assert stages.items() <= made_in(files / "out").items()
    status, _, err = nonpareil("distill", **ALONE, overwrite="true")
    assert status == 0, err
    assert not stages.items() & made_in(files / "out").items()
    assert weights(files / "whole") == weights(files / "out")


def refused(nonpareil, files, *says, **changes):
    status, out, err = nonpareil("distill", **{**ALONE, **changes})
    assert status in (1, 2), err
    assert out == ""
    assert "Traceback" not in err
    assert not (files / "out").exists()
    for part in says:
        assert part in err


def test_what_would_be_refused_later_is_refused_before_anything_is_drawn(
    nonpareil, files, prompts, monkeypatch
):
    def refuse(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(local, "load_policy", refuse)
    monkeypatch.setattr(network, "read_model", refuse)
    refused(nonpareil, files, "12 training prompts; a value needs 20", max_train_prompts=12)
    refused(nonpareil, files, "more than the policy's 17 tokens", likeliest=30)
    refused(nonpareil, files, "has no value.json", value=files / "policy")
    refused(nonpareil, files, "no reward", reward_funcs=None)
    refused(nonpareil, files, "dataset_name is missing", dataset_name=None)
    refused(nonpareil, files, "is one file, without a test split", evaluate_after="true")
    refused(nonpareil, files, "reward_dtype='float32' is read by a reward model only", reward_dtype="float32")
    refused(nonpareil, files, "num_generations_pool=1", "at least 2", num_generations_pool=1)
    refused(nonpareil, files, "groups is missing", method="sft_bon", credited_completions=None)
    reads_none = dict.fromkeys(FEW)
    refused(nonpareil, files, "num_generations_pool=6", "reads no credits", method="jbond", **reads_none)
    refused(nonpareil, files, "max_completion_length", max_completion_length=40)


def test_the_dry_run_tells_what_every_stage_costs(nonpareil, files, prompts):
    status, out, err = nonpareil("distill", "--json", **ALONE, dry_run="true")
    assert status == 0, err
    plan = json.loads(out.splitlines()[-1])
    assert plan["groups"] == {"prompts": 30, "completions": 180}
    assert plan["credits"] == {"fitted_completions": 180, "completions": 60, "candidates": 60 * 6 * 7}
    assert plan["steps"] == 3
    assert not (files / "out").exists()


def test_the_demo_is_value_distillation_and_jbond_a_flag_away(nonpareil, files):
    runs = {"": "value_distillation", "--method jbond": "jbond"}
    for words, method in runs.items():
        argv = ["distill", "--json", "--dry_run", "true", "--output_dir", files / "out", *words.split()]
        status, out, err = nonpareil(*argv)
        assert status == 0, err
        plan = json.loads(out.splitlines()[-1])
        assert plan["method"] == method
        assert plan["settings"].get("strength") == (1.3 if method == "value_distillation" else None)
        assert ("groups" in plan) == (method == "value_distillation")
        assert plan["prompts"] == (800 if method == "value_distillation" else 12800)
    refusal = nonpareil(*argv, "--target_n", "8")[2]
    assert "the method reads no credits" in refusal
    out = nonpareil(
        "distill", "--json", "--dry_run", "true", "--output_dir", files / "out", "--strength", "2"
    )[1]
    assert json.loads(out.splitlines()[-1])["settings"]["strength"] == 2, "a flag goes before the demo's own"


@pytest.mark.slow
def test_killed_amid_drawing_it_goes_on_with_what_was_drawn(files, tmp_path):
    """A process, a real kill, the demo's models: what was on disk is not drawn anew."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "nonpareil", "distill", "--output_dir", str(out), "--max_train_prompts"]
    command += [
        "192",
        "--num_generations_pool",
        "8",
        "--credited_completions",
        "1",
        "--num_train_epochs",
        "1",
    ]
    command += ["--likeliest", "4", "--from_tail", "2", "--evaluate_after", "false"]
    assert demo_path("policy").is_dir()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (first := list((out / "groups").glob("data/*.parquet"))) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert first
    before = json.loads((out / "groups" / "manifest.json").read_text())["draw"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "192 groups to draw" not in done.stderr
    assert json.loads((out / "groups" / "manifest.json").read_text())["draw"] == before
    assert (out / "model.safetensors").is_file()
    shutil.rmtree(out)
