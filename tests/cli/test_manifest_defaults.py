"""`distill --groups` asks for nothing that the manifest of the groups says."""

import json

import pytest
import torch

from nonpareil import DistillationConfig, DistillationTrainer, evaluate
from nonpareil.commands.distill.manifest_defaults import drawn_from_demo, manifest_defaults, why_not_named
from nonpareil.errors import ConfigError
from nonpareil.methods import SFTBoN
from nonpareil.rollouts.manifest import read_manifest, write_manifest

STORED = {
    "dataset_name": None,
    "evaluate_after": "false",
    "eval_dataset_name": None,
    "method": "sft_bon",
    "n": 2,
}
STORED |= {"num_generations_eval": None, "num_reference_samples_eval": None}
UNSAID = {"model_name_or_path": None, "reward_funcs": None, "max_completion_length": None}


@pytest.fixture
def groups(nonpareil, files):
    """Groups drawn at a temperature of their own, with two rewards and weights."""
    status, _, err = nonpareil(
        "sample",
        output_dir=files / "groups",
        temperature=0.7,
        reward_funcs=f"{files}/rewards.py:good",
        reward_model_name_or_path=files / "rm",
        reward_weights="1 2",
        max_prompts=8,
    )
    assert status == 0, err
    return files / "groups"


def test_nothing_is_asked_again(nonpareil, files, groups, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    status, out, err = nonpareil("distill", "--json", groups=groups, **STORED, **UNSAID)
    assert status == 0, err
    for said in (
        "temperature=0.7",
        "max_completion_length=6",
        "reward_weights=[1.0, 2.0]",
        "rewards.py:good",
    ):
        assert said in err
    assert json.loads(out.splitlines()[-1])["steps"] == 3
    arguments = torch.load(files / "out" / "training_args.bin", weights_only=False)
    assert (arguments.temperature, arguments.max_completion_length) == (0.7, 6)
    assert arguments.reward_weights == [1.0, 2.0]


GIVEN = (
    ({"temperature": 1.0}, "was drawn with temperature=0.7, and this run has temperature=1.0; they must be"),
    ({"max_completion_length": 5}, "with max_completion_length=6, and this run has max_completion_length=5"),
    ({"reward_funcs": "{files}/rewards.py:good"}, "was scored with rewards="),
    ({"reward_weights": "1 3"}, "was scored with weights=[1.0, 2.0], and this run has [1.0, 3.0]"),
)


def test_what_is_given_stands_and_is_held_against_the_groups(nonpareil, files, groups):
    for given, message in GIVEN:
        given = {name: str(value).format(files=files) for name, value in given.items()}
        status, _, err = nonpareil("distill", groups=groups, **STORED, **{**UNSAID, **given})
        assert (status, message in err) == (2, True), err


def test_rewards_whose_stored_scores_are_all_that_is_taken_are_neither_loaded_nor_missed(
    nonpareil, files, groups
):
    """The model is gone, the function cannot be imported, and a judge's address is kept nowhere."""
    manifest = read_manifest(groups)
    (files / "rewards.py").write_text("raise RuntimeError")
    (files / "rm").rename(files / "moved")
    for known in ({}, {"reward_options": {"judge_model": "big"}}):
        write_manifest(groups, {**manifest, **known})
        output_dir = files / f"trained{len(known)}"
        status, out, err = nonpareil("distill", groups=groups, **STORED, **UNSAID, output_dir=output_dir)
        assert status == 0, err
        assert "'judge_model'" not in err
        assert "| reward | `good`, `rm` |" in (output_dir / "README.md").read_text().replace(
            "rm`, `good", "good`, `rm"
        )
    status, out, err = nonpareil("distill", "--json", groups=groups, **STORED, **UNSAID, dry_run="true")
    assert status == 0, err
    assert json.loads(out.splitlines()[-1])["rewards"]["rm"] == {
        "not_tried": "its stored scores are trained on"
    }
    status, _, err = nonpareil("distill", groups=groups, **STORED, **UNSAID, reward_weights="3 1")
    assert (status, "was scored with weights=[1.0, 2.0], and this run has [3.0, 1.0]" in err) == (2, True), (
        err
    )
    policy = str(files / "policy")
    args = DistillationConfig(
        str(files / "python"), method=SFTBoN(n=2), max_steps=1, temperature=0.7, max_completion_length=6,
        per_device_train_batch_size=4, report_to="none", bf16=False, disable_tqdm=True,
    )  # fmt: skip
    trainer = DistillationTrainer(policy, None, args, groups=groups)
    assert trainer.reward.names == [each["name"] for each in manifest["rewards"]["rewards"]]
    trainer.train()
    with pytest.raises(ConfigError, match="is known by its stored scores alone, and was not loaded"):
        evaluate(trainer, dataset_name=str(files / "test.jsonl"))


def test_a_reward_that_is_to_score_and_is_gone_is_named(nonpareil, files, groups):
    (files / "rewards.py").rename(files / "moved.py")
    evaluated = {"evaluate_after": "true", "eval_dataset_name": files / "test.jsonl"}
    for scores in (evaluated, {"method": "vbon", "n": None}):
        status, _, err = nonpareil("distill", groups=groups, **{**STORED, **UNSAID, **scores})
        assert (status, f"{files}/rewards.py is not there; give the rewards again" in err) == (2, True), err


def test_no_address_of_a_server_is_kept_or_made_up(groups):
    manifest = read_manifest(groups)
    write_manifest(groups, {**manifest, "reward_options": {"judge_model": "big"}})
    found = manifest_defaults({"groups": str(groups)})
    assert "judge_model" not in found
    assert found["reward_model_name_or_path"] is None
    assert not drawn_from_demo(found)
    assert "scored with judge_model='big', and no manifest keeps the address" in why_not_named(str(groups))
    assert "reward_model_name_or_path" not in manifest_defaults({"groups": str(groups), "judge_model": "big"})


def test_lines_of_others_and_damaged_folders_bring_no_defaults(tmp_path, groups):
    assert manifest_defaults({}) == manifest_defaults({"groups": str(tmp_path / "none.jsonl")}) == {}
    (groups / "manifest.json").write_text("{")
    assert manifest_defaults({"groups": str(groups)}) == {}
