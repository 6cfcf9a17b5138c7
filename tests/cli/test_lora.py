"""LoRA from the command line: an adapter that every command takes as a policy, and the merged model beside it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from nonpareil.cli.main import main
from nonpareil.models import merging
from nonpareil.models.fingerprint import fingerprint
from nonpareil.models.loading import load_policy
from nonpareil.models.trained import trained_temperature
from nonpareil.rollouts.manifest import read_manifest
from tests.tiny import make_model, make_tokenizer

IDS = torch.tensor([[1, 7, 8, 9]])


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    model, tokenizer = make_model(), make_tokenizer()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("the film was\na good film\na very long film\nnot bad")
    (tmp_path / "reward.py").write_text(
        "def length(completion_ids, **_):\n    return [len(ids) + ids[0] / 100 for ids in completion_ids]\n"
    )
    return {
        "model_name_or_path": tmp_path / "model",
        "dataset_name": tmp_path / "prompts.txt",
        "reward_funcs": f"{tmp_path / 'reward.py'}:length",
        "max_completion_length": 6,
    }


def run(command: str, settings: dict[str, Any], **changes: Any) -> int:
    return main([command, *(f"--{name}={value}" for name, value in {**settings, **changes}.items())])


def distilled(settings: dict[str, Any], out: Path, **changes: Any) -> int:
    options = {
        "eval_dataset_name": settings["dataset_name"],
        "use_peft": "true",
        "lora_target_modules": "all-linear",
        "learning_rate": 0.05,
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "bf16": "false",
        "num_generations_eval": 2,
        "num_reference_samples_eval": 4,
        "output_dir": out,
    }
    given = {name: value for name, value in {**options, **changes}.items() if value is not None}
    return run("distill", settings, **given)


def test_an_adapter_is_a_policy_for_every_command(settings: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert distilled(settings, out, merge="true") == 0
    assert (out / "adapter_config.json").is_file()
    assert not (out / "model.safetensors").exists()
    evaluated = json.loads((out / "evaluation" / "report.json").read_text())
    assert evaluated["evaluation"]["kl"]["estimate"] > 0.01, "the adapter was measured, not the base"

    plain = AutoPeftModelForCausalLM.from_pretrained(out).eval()(IDS).logits
    ours = load_policy(str(out), dtype="float32")[0](IDS).logits
    written = AutoModelForCausalLM.from_pretrained(out / "merged").eval()(IDS).logits
    assert trained_temperature(str(out)) == trained_temperature(str(out / "merged")) == 1.0
    base = make_model()(IDS).logits
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(written, plain, atol=1e-5, rtol=0)
    assert (plain - base).abs().max() > 0.05

    groups = tmp_path / "groups"
    assert run("sample", settings, model_name_or_path=out, num_generations=2, output_dir=groups) == 0
    drawn_from = read_manifest(groups)["draw"]["model"]["fingerprint"]
    assert drawn_from == fingerprint(str(out)) != fingerprint(str(tmp_path / "model"))


def test_an_adapter_of_tied_embeddings_is_the_same_policy_merged(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    make_model("tied").save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    assert distilled(settings, out, lora_target_modules="embed_tokens", merge="true") == 0
    plain = AutoPeftModelForCausalLM.from_pretrained(out).eval()(IDS).logits
    assert (plain - make_model("tied")(IDS).logits).abs().max() > 0.05
    written = AutoModelForCausalLM.from_pretrained(out / "merged")
    assert not written.config.tie_word_embeddings
    for model in (load_policy(str(out), dtype="float32")[0], written):
        torch.testing.assert_close(model(IDS).logits, plain, atol=1e-5, rtol=0)


def test_a_merge_that_would_be_another_policy_ends_as_an_error_and_leaves_nothing(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    make_model("tied").save_pretrained(tmp_path / "model")
    monkeypatch.setattr(merging, "_part_shared_weights", lambda adapted: None)
    out = tmp_path / "out"
    assert distilled(settings, out, lora_target_modules="embed_tokens", merge="true") == 1
    assert "is another policy than the adapter beside it" in capsys.readouterr().err
    assert (out / "adapter_model.safetensors").is_file()
    assert not (out / "merged").exists()
    assert not list(out.glob(".nonpareil-*"))
    assert not (out / "evaluation").exists()


def test_tokens_that_an_adapter_added_are_drawn_from(settings: dict[str, Any], tmp_path: Path) -> None:
    """The base has 19 tokens and the adapter's file 23."""
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    model.resize_token_embeddings(23)
    get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    tokenizer = make_tokenizer()
    assert tokenizer.add_tokens(["new", "newer"]) == 2
    tokenizer.save_pretrained(tmp_path / "adapter")
    (tmp_path / "prompts.txt").write_text("the new film\nthe newer film")
    groups = tmp_path / "groups"
    asked = {"num_generations": 2, "output_dir": groups, "model_name_or_path": tmp_path / "adapter"}
    assert run("sample", settings, **asked) == 0


def test_an_adapter_on_another_base_is_another_policy(settings: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert distilled(settings, out, evaluate_after="false") == 0
    before = fingerprint(str(out))
    make_model(seed=5).save_pretrained(tmp_path / "model")
    assert fingerprint(str(out)) != before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"use_peft": "false", "lora_target_modules": None, "merge": "true"}, "merge"),
        ({"frozen_parameters": "embed_tokens"}, "frozen_parameters"),
        ({"lora_r": 0}, "lora_r"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    settings: dict[str, Any], tmp_path: Path, changes: dict[str, Any], named: str, capsys: Any
) -> None:
    assert distilled(settings, tmp_path / "out", **changes) == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_adapter_is_not_trained_on_an_adapter(
    settings: dict[str, Any], tmp_path: Path, capsys: Any
) -> None:
    assert distilled(settings, tmp_path / "first", evaluate_after="false") == 0
    assert distilled(settings, tmp_path / "second", model_name_or_path=tmp_path / "first") == 2
    assert "merge it first" in capsys.readouterr().err
