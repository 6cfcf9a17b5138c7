"""`distill --groups` asks for nothing that the manifest of the groups says."""

import json

import pytest
import torch

from nonpareil.commands.distill.manifest_defaults import manifest_defaults
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


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"temperature": 1.0},
            "was drawn with temperature=0.7, and this run has temperature=1.0; they must be",
        ),
        (
            {"max_completion_length": 5},
            "with max_completion_length=6, and this run has max_completion_length=5",
        ),
        ({"reward_funcs": "{files}/rewards.py:good"}, "was scored with rewards="),
        ({"reward_weights": "1 3"}, "was scored with weights=[1.0, 2.0], and this run has [1.0, 3.0]"),
    ],
)
def test_what_is_given_stands_and_is_held_against_the_groups(nonpareil, files, groups, given, message):
    given = {name: str(value).format(files=files) for name, value in given.items()}
    status, _, err = nonpareil("distill", groups=groups, **STORED, **{**UNSAID, **given})
    assert (status, message in err) == (2, True), err


def test_a_reward_that_is_gone_is_named(nonpareil, files, groups):
    (files / "rewards.py").rename(files / "moved.py")
    status, _, err = nonpareil("distill", groups=groups, **STORED, **UNSAID)
    assert (status, f"{files}/rewards.py is not there; give the rewards again" in err) == (2, True), err


def test_no_address_of_a_server_is_kept_or_made_up(groups):
    manifest = read_manifest(groups)
    write_manifest(groups, {**manifest, "reward_options": {"judge_model": "big"}})
    with pytest.raises(
        Exception, match="was scored with judge_model='big', and no manifest keeps the address"
    ):
        manifest_defaults({"groups": str(groups)})
    assert "judge_model" not in manifest_defaults({"groups": str(groups), "judge_model": "big"})


def test_lines_of_others_and_damaged_folders_bring_no_defaults(tmp_path, groups):
    assert manifest_defaults({}) == manifest_defaults({"groups": str(tmp_path / "none.jsonl")}) == {}
    (groups / "manifest.json").write_text("{")
    assert manifest_defaults({"groups": str(groups)}) == {}
