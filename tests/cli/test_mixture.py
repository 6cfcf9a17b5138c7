"""`datasets`: a mixture from flags, YAML and Python, through drawing, training and a comparison's plan."""

import json
from collections import Counter

import datasets
import pytest

import nonpareil as library
from nonpareil.commands.compare.plan import plan_runs
from nonpareil.commands.compare.spec import read_spec
from nonpareil.options.yaml import dump_yaml
from nonpareil.rollouts import read_groups


def sources(folder):
    return Counter(group.columns["dataset_source"] for group in read_groups(folder))


def parts_of(files):
    return [
        {"path": str(files / "train.jsonl"), "fraction": 0.75},
        {"path": str(files / "test.jsonl"), "fraction": 0.25},
    ]


def of_run(files):
    return {"dataset_name": None, "eval_dataset_name": None, "max_steps": 1, "output_dir": files / "run"}


@pytest.mark.slow
def test_a_part_of_a_mixture_is_evaluated_on(nonpareil, files):
    (files / "mixed.yaml").write_text(dump_yaml({"datasets": parts_of(files)}))
    argv = [*nonpareil.flags("distill", **of_run(files), test_split_size=4), "--config", files / "mixed.yaml"]
    status, _, err = nonpareil(*argv)
    assert status == 0, err
    assert sum(sources(files / "run" / "evaluation" / "reference").values()) == 4
    report = json.loads((files / "run" / "evaluation" / "report.json").read_text())
    assert "mixture of train.jsonl (0.75), test.jsonl (0.25)" in json.dumps(report)


def test_a_mixture_is_drawn_and_trained_on(nonpareil, files):
    parts = parts_of(files)
    words = ("--datasets", *map(json.dumps, parts))
    argv = nonpareil.flags("sample", dataset_name=None, max_prompts=4)
    status, _, err = nonpareil(*argv, *words)
    assert status == 0, err
    assert sources(files / "out") == {"train.jsonl": 3, "test.jsonl": 1}
    drawn = json.loads((files / "out" / "manifest.json").read_text())["draw"]["prompts"]
    assert drawn["sources"] == {"train.jsonl": 3, "test.jsonl": 1}

    (files / "mixed.yaml").write_text(dump_yaml({"datasets": parts}))
    run = of_run(files)
    argv = [*nonpareil.flags("distill", **run, evaluate_after=False), "--config", files / "mixed.yaml"]
    status, _, err = nonpareil(*argv)
    assert status == 0, err
    assert "mixture of train.jsonl (0.75)" in (files / "run" / "README.md").read_text()

    for more, says in (
        ((), "datasets is a mixture, without a test split, and evaluation needs held-out prompts"),
        (
            ("--test_split_size", "4", "--dataset_streaming"),
            "dataset_streaming=True is read by hub datasets and mixtures of them only",
        ),
        (("--dataset_name", files / "train.jsonl"), "both name prompts; give one of them"),
    ):
        argv = [*nonpareil.flags("distill", **{**run, "output_dir": files / "no"}), *words, *more]
        status, _, err = nonpareil(*argv)
        assert (status, says in err) == (2, True), err
    argv = nonpareil.flags("sample", dataset_name=None, output_dir=files / "train.jsonl")
    status, _, err = nonpareil(*argv, *words)
    assert (status, "is what datasets names" in err) == (2, True), err


def test_python_mixes_names_and_rows(files):
    rows = datasets.Dataset.from_list(
        [{"prompt": f"the film was {word}", "id": 1} for word in ("good", "bad")]
    )
    result = library.sample(
        model_name_or_path=files / "policy",
        datasets=[files / "train.jsonl", rows, {"path": [{"prompt": "a film", "id": 3}]}],
        reward_funcs=f"{files}/rewards.py:good",
        max_completion_length=4,
        num_generations=2,
        output_dir=files / "groups",
    )
    assert result["prompts"] == 15
    assert sources(files / "groups") == {"train.jsonl": 12, "2 rows in memory": 2, "1 rows in memory": 1}


def test_a_comparison_hands_the_mixture_to_its_runs(files):
    content = {
        "model_name_or_path": str(files / "policy"),
        "datasets": [{"path": str(files / "train.jsonl")}],
        "test_split_size": 3,
        "reward_funcs": [f"{files}/rewards.py:good"],
        "output_dir": str(files / "comparison"),
        "budget": {"completions": 96},
        "methods": {"jbond": {"per_device_train_batch_size": 4}},
        "seeds": [0],
    }
    (files / "c.yaml").write_text(json.dumps(content))
    [plan] = plan_runs(read_spec(files / "c.yaml"))
    assert plan.settings["datasets"] == content["datasets"]
    assert "dataset_name" not in plan.settings
    assert "test_split_size: 3" in dump_yaml(plan.settings)
