"""An evaluation is of the policy at its training's temperature, and of as many completions as were asked for."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from nonpareil.errors import ModelError
from nonpareil.models.trained import keep_temperature, trained_temperature
from nonpareil.rollouts import read_groups
from nonpareil.rollouts.manifest import read_manifest
from tests.cli.conftest import Command


def evaluated(nonpareil: Command, policy: Path, **changes: Any) -> tuple[dict[str, Any], str]:
    """The report, and what stderr said on one line."""
    settings = {"num_generations": 2, "num_reference_samples": 4, "dtype": "float32", **changes}
    status, _, said = nonpareil("evaluate", model_name_or_path=policy, **settings)
    assert status == 0, said
    return json.loads((policy.parent / "out" / "report.json").read_text()), " ".join(said.split())


@pytest.fixture
def half(files: Path) -> Path:
    """A policy whose folder says that it was trained at temperature 0.5."""
    shutil.copytree(files / "policy", files / "half")
    model = AutoModelForCausalLM.from_pretrained(files / "policy")
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1 + 0.3 * torch.rand_like(weight))
    model.save_pretrained(files / "half")
    keep_temperature(files / "half", 0.5)
    return files / "half"


def plain_kl(policy: Path, reference: Path, folder: Path, temperature: float) -> float:
    """Of one side's groups, one unpadded pass per completion."""
    models = [AutoModelForCausalLM.from_pretrained(path).eval() for path in (policy, reference)]
    found = []
    for group in read_groups(folder):
        for ids in group.completion_token_ids:
            start = len(group.prompt_token_ids) - 1
            with torch.no_grad():
                logits = [m(torch.tensor([group.prompt_token_ids + ids])).logits[0, start:-1] for m in models]
            ours, theirs = ((each.double() / temperature).log_softmax(-1) for each in logits)
            found.append((ours.exp() * (ours - theirs)).sum().item())
    return sum(found) / len(found)


def test_the_temperature_is_that_of_the_training(nonpareil: Command, files: Path) -> None:
    settings = {"temperature": 0.5, "evaluate_after": "false", "save_strategy": "steps", "save_steps": 1}
    status, _, said = nonpareil("distill", max_steps=2, output_dir=files / "trained", **settings)
    assert status == 0, said
    for folder in (files / "trained", files / "trained" / "checkpoint-1"):
        assert trained_temperature(str(folder)) == 0.5
        assert json.loads((folder / "sampling.json").read_text()) == {"temperature": 0.5}
    report, _ = evaluated(nonpareil, files / "trained")
    assert report["context"]["temperature"] == {"measured": 0.5, "from": "as the policy was trained"}


def test_all_figures_are_at_that_temperature(nonpareil: Command, half: Path) -> None:
    report, said = evaluated(nonpareil, half)
    assert "temperature 0.5: draws, rewards and KL are at what the policy was trained at" in said
    out, reference = half.parent / "out", half.parent / "policy"
    for side in ("policy", "reference"):
        assert (read_manifest(out / side) or {})["draw"]["sampling"]["temperature"] == 0.5
    expected = plain_kl(half, reference, out / "policy", 0.5)
    assert report["evaluation"]["kl"]["estimate"] == pytest.approx(expected, rel=1e-4)
    assert expected != pytest.approx(plain_kl(half, reference, out / "policy", 1.0), rel=0.05)


def test_one_that_is_given_prevails_and_the_difference_is_told(nonpareil: Command, half: Path) -> None:
    report, said = evaluated(nonpareil, half, temperature=0.8)
    assert report["context"]["temperature"] == {"measured": 0.8, "from": "as given"}
    assert report["context"]["sampling"]["temperature"] == 0.8
    assert (
        "the policy was trained at temperature 0.5, and draws, rewards and KL are at 0.8 (as given)" in said
    )


def test_a_reference_of_another_temperature_is_told_of(nonpareil: Command, half: Path) -> None:
    report, said = evaluated(nonpareil, half.parent / "policy", reference_model_name_or_path=half)
    assert report["context"]["temperature"]["measured"] == 1.0
    assert report["context"]["temperature"]["from"].startswith("by default")
    assert "the reference was trained at temperature 0.5" in said


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"temperature": 0}', '{"temperature": true}', '{"temperature": "hot"}']
)
def test_a_note_that_is_no_temperature_is_refused(content: str, nonpareil: Command, half: Path) -> None:
    (half / "sampling.json").write_text(content)
    with pytest.raises(ModelError, match=r"half/sampling.json' should hold the temperature"):
        trained_temperature(str(half))
    if not content:
        status, _, said = nonpareil("evaluate", model_name_or_path=half)
        assert status == 1
        assert "sampling.json" in said
        assert not (half.parent / "out" / "policy").exists()


def test_a_model_that_we_did_not_train_says_nothing(files: Path) -> None:
    assert trained_temperature(str(files / "policy")) is None
    assert trained_temperature("nobody/there") is None


def test_an_n_above_the_references_completions_is_refused_before_anything(nonpareil: Command) -> None:
    status, _, said = nonpareil("evaluate", n="2 8", num_reference_samples=4, model_name_or_path="no/model")
    assert status == 2
    assert "n=[2, 8] asks for more than num_reference_samples=4; lower n or draw more" in said


def test_no_n_above_them_is_measured_where_none_is_given(nonpareil: Command, files: Path) -> None:
    report, _ = evaluated(nonpareil, files / "policy", num_reference_samples=5, num_generations=3)
    found = report["evaluation"]
    assert [target["n"] for target in found["targets"]] == [2, 4]
    assert all(target["forward_kl"] is not None for target in found["targets"])
    assert (found["policy"]["num_completions"], found["reference"]["num_completions"]) == (3, 5)
    drawn = [len(group) for side in ("policy", "reference") for group in read_groups(files / "out" / side)]
    assert drawn == [3] * 12 + [5] * 12
