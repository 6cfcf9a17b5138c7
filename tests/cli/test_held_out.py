"""`test_split_size`: one file is parted alike by every command, and no evaluation sees a training prompt."""

import json

import datasets

from nonpareil.rollouts import read_groups


def texts(folder) -> set[str]:
    return {group.prompt for group in read_groups(folder)}


def test_every_command_parts_one_file_alike(nonpareil, files):
    one_file = {"dataset_name": files / "train.jsonl", "test_split_size": 4}
    every = {json.loads(line)["prompt"] for line in (files / "train.jsonl").read_text().splitlines()}
    assert nonpareil("sample", **one_file, output_dir=files / "groups")[0] == 0
    run = {**one_file, "eval_dataset_name": None, "max_steps": 1, "output_dir": files / "run"}
    status, _, err = nonpareil("distill", **run)
    assert status == 0, err
    status, _, err = nonpareil("evaluate", **one_file, output_dir=files / "evaluation")
    assert status == 0, err
    held_out = texts(files / "evaluation" / "reference")
    assert len(held_out) == 4
    assert texts(files / "run" / "evaluation" / "reference") == held_out
    assert texts(files / "groups") == every - held_out

    for changes, says in (
        (
            {"eval_dataset_name": files / "test.jsonl"},
            "holds prompts out of dataset_name, and eval_dataset_name=",
        ),
        ({"dataset_test_split": "validation"}, "dataset_test_split='validation' is not read"),
        ({"test_split_size": None}, "give eval_dataset_name or test_split_size"),
        ({"test_split_size": 400}, "of 12 different prompts holds out 400"),
        ({"dataset_streaming": "true"}, "is read by hub datasets and mixtures of them only"),
    ):
        status, _, err = nonpareil("distill", **{**run, **changes, "output_dir": files / "no"})
        assert (status, says in err) == (2, True), err


def test_a_saved_dataset_has_no_test_split_that_would_be_its_training_prompts(nonpareil, files):
    """`Dataset.save_to_disk` keeps one split, which `load_from_disk` gives whatever split is meant."""
    rows = [json.loads(line) for line in (files / "train.jsonl").read_text().splitlines()]
    datasets.Dataset.from_list(rows).save_to_disk(files / "saved")
    run = {"dataset_name": files / "saved", "eval_dataset_name": None, "output_dir": files / "run"}
    for changes, says in (
        ({}, "is one saved dataset, without a test split, and evaluation needs held-out prompts"),
        ({"test_split_size": 4, "dataset_train_split": "validation"}, "' is one saved dataset; remove it"),
    ):
        status, _, err = nonpareil("distill", **run, **changes)
        assert (status, says in err.replace("\n", " ")) == (2, True), err
    assert not (files / "run").exists()
    parted = {**run, "test_split_size": 4, "dry_run": "true"}
    status, _, err = nonpareil("distill", **parted)
    assert status == 0, err


def test_held_out_prompts_that_are_trained_on_are_told_of(nonpareil, files):
    whole = {"dataset_name": files / "train.jsonl", "max_prompts": None}
    assert nonpareil("sample", **whole, output_dir=files / "whole")[0] == 0
    assert nonpareil("sample", **whole, test_split_size=4, output_dir=files / "part")[0] == 0
    run = {
        "dataset_name": None,
        "eval_dataset_name": files / "train.jsonl",
        "test_split_size": 4,
        "method": "vbon",
    }
    for groups, told in (("whole", True), ("part", False)):
        status, _, err = nonpareil(
            "distill", **run, groups=files / groups, dry_run="true", output_dir=files / "run"
        )
        assert status == 0, err
        assert ("4 of 4 held-out prompts are training prompts too" in err.replace("\n", " ")) == told
