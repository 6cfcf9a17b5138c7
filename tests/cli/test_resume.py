"""`nonpareil distill --resume_from_checkpoint`: what it takes, what it refuses, and what it says."""

import json
import shutil

import pytest
import yaml

SAVED = {"evaluate_after": "false", "save_strategy": "steps", "save_steps": 1, "use_cpu": "true"}


@pytest.fixture
def begun(nonpareil, files):
    """Three steps, each with its checkpoint; the result and the last checkpoint are gone again."""
    status, _, error = nonpareil("distill", **SAVED)
    assert status == 0, error
    shutil.rmtree(files / "out" / "checkpoint-3")
    return files / "out"


@pytest.fixture
def no_model(monkeypatch):
    """Nothing may be loaded any more."""

    def load(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("nonpareil.commands.policies.local.load_policy", load)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"learning_rate": "1e-1"}, "learning_rate: 0.001 there, 0.1 now"),
        ({"method": "rloo"}, "method: 'jbond' there, 'rloo' now"),
        ({"temperature": "0.5"}, "temperature: 1.0 there, 0.5 now"),
        ({"max_train_prompts": 8}, "prompts.count: 12 there, 8 now"),
    ],
)
def test_another_training_is_refused_before_a_model_is_loaded(nonpareil, begun, no_model, change, says):
    status, _, error = nonpareil("distill", **SAVED, resume_from_checkpoint="true", **change)
    assert status == 2
    assert f"{begun / 'checkpoint-2'} is of a training with other settings:" in error
    assert says in error
    assert "Traceback" not in error


def test_moved_folders_and_paths_are_the_same_training(nonpareil, begun, files):
    for name in ("policy", "rewards.py", "train.jsonl"):
        (files / "moved").mkdir(exist_ok=True)
        shutil.move(files / name, files / "moved" / name)
    shutil.move(begun, files / "moved" / "out")
    status, _, error = nonpareil(
        "distill",
        **SAVED,
        resume_from_checkpoint="true",
        model_name_or_path=files / "moved" / "policy",
        dataset_name=files / "moved" / "train.jsonl",
        reward_funcs=f"{files}/moved/rewards.py:good",
        output_dir=files / "moved" / "out",
    )
    assert status == 0, error
    assert "resume:" not in error


def test_another_model_of_the_same_make_is_refused(nonpareil, begun, files, no_model):
    weights = files / "policy" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    status, _, error = nonpareil("distill", **SAVED, resume_from_checkpoint="true")
    assert (status, "model: 'sha256-2:" in error) == (2, True)


def test_what_is_taken_is_said(nonpareil, begun):
    status, _, error = nonpareil(
        "distill", **{**SAVED, "save_steps": 2}, resume_from_checkpoint="true", max_steps=4, reward_timeout=60
    )
    assert status == 0, error
    assert "nonpareil: resume: max_steps: 3 there, 4 now: taken" in error
    assert "nonpareil: resume: save_steps: 1.0 there, 2 now: taken" in error
    assert "nonpareil: resume: reward_timeout: None there, 60.0 now: taken" in error
    steps = [json.loads(line)["step"] for line in (begun / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 4]
    assert sorted(path.name for path in begun.glob("checkpoint-*")) == [f"checkpoint-{n}" for n in (1, 2, 4)]


@pytest.mark.parametrize("value", ["false", "False", "none"])
def test_no_is_no_and_not_a_path(nonpareil, files, value):
    (files / "c.yaml").write_text(
        yaml.safe_dump({"resume_from_checkpoint": {"false": False}.get(value, value)})
    )
    status, _, error = nonpareil("distill", "--config", files / "c.yaml", **SAVED)
    assert status == 0, error
    status, _, error = nonpareil("distill", **SAVED, resume_from_checkpoint=value)
    assert (status, "exists; give --resume_from_checkpoint true" in error) == (2, True)


def test_a_path_that_is_no_checkpoint(nonpareil, begun, no_model):
    for path, says in [
        (begun, "these are: checkpoint-2, checkpoint-1"),
        (begun / "checkpoint-9", "no such folder; give a checkpoint's, or true for the last one"),
    ]:
        status, _, error = nonpareil("distill", **SAVED, resume_from_checkpoint=path)
        assert status in (1, 2)
        assert error.count("nonpareil: ") == 1
        assert says in error


def test_a_limit_that_leaves_no_step(nonpareil, no_model):
    flags = {"max_train_prompts": 3, "dataloader_drop_last": "true"}
    status, _, error = nonpareil("distill", **SAVED, **flags)
    assert (status, "no step would be taken: 3 prompts do not fill one batch of 4" in error) == (2, True)


def test_a_base_whose_generation_config_cannot_be_written_is_trained_merged_and_saved(nonpareil, files):
    file = files / "policy" / "generation_config.json"
    strange = {"do_sample": False, "temperature": 0.9, "top_p": 0.6}
    file.write_text(json.dumps({**json.loads(file.read_text()), **strange}))
    status, _, error = nonpareil("distill", "--use_peft", "true", "--merge", "true", **SAVED)
    assert status == 0, error
    assert error.count("temperature=0.9, top_p=0.6, without effect there") == 1
    merged = json.loads((files / "out" / "merged" / "generation_config.json").read_text())
    assert not {"temperature", "top_p"} & {name for name, value in merged.items() if value is not None}
