"""`test_split_size`: one file is parted alike by every command, and no evaluation sees a training prompt."""

import json

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
