"""`interpolate` and `evaluate --strengths`: one training, a policy of every strength, and what each is worth."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from nonpareil.commands.evaluate.folders import folder_at
from nonpareil.commands.policies.interpolated import InterpolatedPolicy
from nonpareil.commands.policies.local import LocalPolicy
from nonpareil.errors import ConfigError
from nonpareil.models.trained import keep_temperature
from nonpareil.rollouts.manifest import check_same
from nonpareil.rollouts.reading import read_groups
from tests.cli.conftest import Command, tokenizer

SMALL = {"max_prompts": 4, "num_generations": 3, "num_reference_samples": 4}


@pytest.fixture
def moved(files: Path) -> Path:
    """policy/, a little away from itself, which was trained at temperature .8."""
    model = AutoModelForCausalLM.from_pretrained(files / "policy", dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.15 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(files / "moved")
    tokenizer().save_pretrained(files / "moved")
    keep_temperature(files / "moved", 0.8)
    return files / "moved"


def interpolate(nonpareil: Command, moved: Path, **changes: Any) -> tuple[int, str, str]:
    settings = {
        "model_name_or_path": moved,
        "reference_model_name_or_path": moved.parent / "policy",
        "strength": 1.5,
        "output_dir": moved.parent / "stronger",
        **changes,
    }
    words = [word for k, v in settings.items() if v is not None for word in (f"--{k}", str(v))]
    return nonpareil("interpolate", "--json", *words)


def groups(folder: Path) -> list[tuple[int, ...]]:
    return [tuple(ids) for group in read_groups(folder) for ids in group.completion_token_ids]


def test_a_policy_at_a_strength_is_a_plain_folder(nonpareil: Command, moved: Path) -> None:
    status, result, said = interpolate(nonpareil, moved)
    assert status == 0, said
    assert json.loads(result)["dtype"] == "float32"
    out = moved.parent / "stronger"
    found = AutoModelForCausalLM.from_pretrained(out).state_dict()
    trained, reference = (
        AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (moved, moved.parent / "policy")
    )
    for name, value in found.items():
        expected = reference[name] + 1.5 * (trained[name] - reference[name])
        torch.testing.assert_close(value, expected, atol=1e-6, rtol=0)
    assert AutoTokenizer.from_pretrained(out)("the film").input_ids == tokenizer()("the film").input_ids
    assert json.loads((out / "sampling.json").read_text()) == {"temperature": 0.8}
    assert interpolate(nonpareil, moved)[0] == 2, "it is not replaced unasked"
    status, _, said = interpolate(nonpareil, moved, strength=0, overwrite="true")
    assert status == 0, said
    again = AutoModelForCausalLM.from_pretrained(out).state_dict()
    assert all(torch.equal(value, reference[name]) for name, value in again.items())
    assert (out / "sampling.json").is_file()
    (out / "notes.txt").write_text("mine")
    status, _, said = interpolate(nonpareil, moved, overwrite="true")
    assert status == 2
    assert "notes.txt" in said
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"strength": None}, "strength is missing"),
        ({"reference_model_name_or_path": None}, "reference_model_name_or_path is missing"),
        ({"output_dir": None}, "output_dir is missing"),
        ({"strength": -0.5}, "strength=-0.5 must be at least 0"),
        ({"strength": "nan"}, "strength='nan' must be"),
        ({"strength": "inf"}, "strength='inf' must be"),
        ({"output_dir": "policy"}, "it would be written over"),
    ],
)
def test_what_cannot_be_is_refused(
    changes: dict[str, Any], says: str, nonpareil: Command, moved: Path
) -> None:
    if changes.get("output_dir"):
        changes = {"output_dir": moved.parent / "policy"}
    status, _, said = interpolate(nonpareil, moved, **changes)
    assert status == 2
    assert says in said
    assert not (moved.parent / "stronger").exists()


def test_a_path_is_measured_against_one_drawing_of_the_reference(nonpareil: Command, moved: Path) -> None:
    settings = {**SMALL, "model_name_or_path": moved, "strengths": "2 1", "at_win_rates": "0.999"}
    status, result, said = nonpareil("evaluate", "--json", **settings)
    assert status == 0, said
    assert said.count("groups to draw") == 3
    out = moved.parent / "out"
    content = json.loads((out / "path.json").read_text())
    assert json.loads(result)["path"] == content["path"]
    points = {point["strength"]: point for point in content["path"]["points"]}
    assert list(points) == [1, 2]
    for strength, point in points.items():
        report = json.loads((out / f"strength-{strength:g}" / "report.json").read_text())["evaluation"]
        assert point["kl"]["estimate"] == report["kl"]["estimate"]
        assert point["win_rate"] == report["comparison"]["win_rate"]
    kl = [point["kl"]["estimate"] for point in points.values()]
    assert 0.01 < kl[0] < kl[1]
    (beyond,) = content["path"]["at"]
    assert (beyond["win_rate"], beyond["position"], beyond["kl"]) == (0.999, None, None)
    assert "not reached" in said
    assert "not reached" in (out / "path.html").read_text()
    assert (out / "path.png").stat().st_size > 0


def test_the_groups_of_each_strength_are_its_own(moved: Path) -> None:
    trained, reference = LocalPolicy(str(moved)), LocalPolicy(str(moved.parent / "policy"))
    draws = {strength: InterpolatedPolicy(trained, reference, strength).info() for strength in (0.5, 0.75)}
    check_same({"model": draws[0.5]}, {"model": draws[0.5]}, moved)
    with pytest.raises(ConfigError, match=r"model.strength: 0.5 there, 0.75 now"):
        check_same({"model": draws[0.5]}, {"model": draws[0.75]}, moved)
    with pytest.raises(ConfigError, match=r"model.strength: None there, 0.5 now"):
        check_same({"model": trained.info()}, {"model": draws[0.5]}, moved)
    other = InterpolatedPolicy(trained, trained, 0.5).info()
    with pytest.raises(ConfigError, match=r"model.reference_fingerprint"):
        check_same({"model": draws[0.5]}, {"model": other}, moved)


@pytest.mark.slow
def test_a_path_goes_on_and_is_begun_anew(nonpareil: Command, moved: Path) -> None:
    settings = {**SMALL, "model_name_or_path": moved}
    assert nonpareil("evaluate", **settings, strengths="0 1")[0] == 2
    assert nonpareil("evaluate", **settings, strengths="0 0.5 1")[0] == 0
    out = moved.parent / "out"
    before = (out / "reference/data/shard-00000.parquet").read_bytes()
    status, _, said = nonpareil("evaluate", **settings, strengths="1 1.25")
    assert status == 0, said
    assert said.count("groups to draw") == 1, "only the new strength was drawn"
    assert (out / "reference/data/shard-00000.parquet").read_bytes() == before
    # The trained policy and its reference, each as it is when it is evaluated alone.
    for name, strength in (("moved", 1), ("policy", 0)):
        alone = {"model_name_or_path": moved.parent / name, "output_dir": moved.parent / name[0]}
        assert nonpareil("evaluate", **{**settings, **alone, "temperature": 0.8})[0] == 0
        assert groups(moved.parent / name[0] / "policy") == groups(out / f"strength-{strength}/policy")
    (out / "strength-0.75").mkdir()
    (out / "strength-0.5/policy").rename(out / "strength-0.75/policy")
    status, _, said = nonpareil("evaluate", **settings, strengths="0.75 1")
    assert status == 2
    assert "model.strength: 0.5 there, 0.75 now" in said
    status, _, said = nonpareil("evaluate", "--overwrite", **settings, strengths="0.75 1")
    assert status == 0, said
    assert said.count("groups to draw") == 3, "the reference's too"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"strengths": "1"}, "strengths=[1.0] is no path"),
        ({"strengths": "0 1"}, "strengths=[0.0, 1.0] is no path"),
        ({"strengths": "1 2 1"}, "strengths=[1.0, 2.0, 1.0] has one of them twice"),
        ({"strengths": "1 2", "at_win_rates": "0.5"}, "at_win_rates=[0.5] must lie between 0.5 and 1"),
        ({"strengths": "1 2", "at_win_rates": "0.7 1.0"}, "at_win_rates=[0.7, 1.0] must lie between"),
        ({"strengths": "1 2", "at_win_rates": "0.7 0.7"}, "has one of them twice"),
        ({"at_win_rates": "0.7"}, "at_win_rates=[0.7] is not read without strengths"),
        (
            {"strengths": "1 2", "reference_model_name_or_path": None},
            "reference_model_name_or_path is missing",
        ),
    ],
)
def test_what_is_no_path_is_refused_before_anything_is_read(
    changes: dict[str, Any], says: str, nonpareil: Command
) -> None:
    status, _, said = nonpareil("evaluate", **changes, model_name_or_path="no/model")
    assert status == 2
    assert says in said


def test_a_reference_of_another_kind_is_refused_before_anything_is_drawn(
    nonpareil: Command, moved: Path
) -> None:
    config = json.loads((moved / "config.json").read_text()) | {"rms_norm_eps": 0.01}
    (moved / "config.json").write_text(json.dumps(config))
    status, _, said = nonpareil("evaluate", **SMALL, model_name_or_path=moved, strengths="0.5 1")
    assert status == 2
    assert "their configs differ in rms_norm_eps 0.01 and 1e-06" in said
    assert not (moved.parent / "out").exists()


def test_folders_of_strengths_have_names_of_their_own() -> None:
    near = [1.0, 1.4, 1.4000001, 0.1 + 0.2, 0.3, 1e-9]
    assert folder_at(1.0) == "strength-1"
    assert len({folder_at(each) for each in near}) == len(near)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_is_scaled_in_any_dtype(dtype: str, files: Path) -> None:
    settings = {"r": 2, "lora_alpha": 3, "target_modules": "all-linear", "init_lora_weights": False}
    for name, scale in (("adapter", 1.0), ("scaled", 1.5)):
        base = AutoModelForCausalLM.from_pretrained(files / "policy", dtype=torch.float32)
        torch.manual_seed(0)
        adapted = get_peft_model(base, LoraConfig(**{**settings, "lora_alpha": 3 * scale}))
        adapted.save_pretrained(files / name)
        tokenizer().save_pretrained(files / name)
    trained, scaled, reference = (
        LocalPolicy(str(files / name), dtype=dtype) for name in ("adapter", "scaled", "policy")
    )
    ids = torch.tensor([[1, 5, 6, 7, 9, 8]])
    with torch.no_grad():
        at = {s: InterpolatedPolicy(trained, reference, s).load()(ids).logits for s in (0.0, 1.0, 1.5)}
        ends = [each.load()(ids).logits for each in (reference, trained, scaled)]
    assert torch.equal(at[0.0], ends[0])
    assert torch.equal(at[1.0], ends[1])
    torch.testing.assert_close(at[1.5], ends[2], atol=1e-5 if dtype == "float32" else 0, rtol=0)
    assert not torch.equal(at[1.5], at[1.0])


def test_an_adapter_that_is_more_than_factors_is_refused_in_half_precision(files: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(files / "policy", dtype=torch.float32)
    saved = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    saved.save_pretrained(files / "adapter")
    tokenizer().save_pretrained(files / "adapter")
    trained, reference = (LocalPolicy(str(files / name), dtype="bfloat16") for name in ("adapter", "policy"))
    with pytest.raises(ConfigError, match="give dtype=float32"):
        InterpolatedPolicy(trained, reference, 1.5).load()
