"""One dtype draws, is scored and is measured: against plain transformers, one unpadded pass per completion."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from nonpareil.models.devices import best_device, resolve_dtype
from nonpareil.rollouts import read_groups
from tests.cli.conftest import Command

DTYPES = ["auto", "bfloat16", "float32"]


def move(files: Path, share: float) -> Path:
    """A policy in float32, each weight moved by up to a share of its size from a reference that bfloat16 holds."""
    model = AutoModelForCausalLM.from_pretrained(files / "policy", dtype=torch.bfloat16).float()
    model.save_pretrained(files / "policy")
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1 + share * torch.empty_like(weight).uniform_(-1, 1, generator=noise))
    model.save_pretrained(files / "moved")
    for file in (files / "policy").glob("*token*"):
        (files / "moved" / file.name).write_bytes(file.read_bytes())
    return files / "moved"


@pytest.fixture
def moved(files: Path) -> Path:
    """bfloat16 has eight significant bits: of these moves most round away, and the others become whole steps."""
    return move(files, 2**-8)


class Plain:
    """A model whose weights are those of a dtype, multiplied in float32, as a user would load it."""

    def __init__(self, path: Path, dtype: str, adapter: Path | None = None):
        as_stored = "float32" if adapter else dtype
        model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, as_stored))
        if adapter:
            whole: Any = PeftModel.from_pretrained(model, str(adapter))
            model = whole.merge_and_unload().to(getattr(torch, dtype))
        self.model = model.float().eval()

    @torch.no_grad()
    def logprobs(self, prompt: list[int], completion: list[int]) -> Tensor:
        logits = self.model(torch.tensor([prompt + completion]), use_cache=False).logits[
            0, len(prompt) - 1 : -1
        ]
        return logits.double().log_softmax(-1)


def measured(policy: Plain, reference: Plain, folder: Path) -> dict[str, float]:
    """Of one side's groups: means of exact KL, log-ratio, and a completion's worst recorded log-prob."""
    values: dict[str, list[Tensor]] = {"kl": [], "log_ratio": [], "off": []}
    for group in read_groups(folder):
        for ids, recorded in zip(group.completion_token_ids, group.logprobs, strict=True):
            ours, theirs = (side.logprobs(group.prompt_token_ids, ids) for side in (policy, reference))
            taken = torch.tensor(ids)[:, None]
            own = ours.gather(1, taken)[:, 0]
            values["kl"].append((ours.exp() * (ours - theirs)).sum())
            values["log_ratio"].append((own - theirs.gather(1, taken)[:, 0]).sum())
            values["off"].append((torch.tensor(recorded).double() - own).abs().max())
    means = {name: torch.stack(each).mean().item() for name, each in values.items()}
    return {**means, "worst": torch.stack(values["off"]).max().item()}


def win_rate(policy: Path, reference: Path) -> float:
    theirs = {group.prompt_id: group.rewards or [] for group in read_groups(reference)}
    pairs = [
        (float(mine > other) + float(mine == other) / 2) if mine is not None and other is not None else None
        for group in read_groups(policy)
        for mine in group.rewards or []
        for other in theirs[group.prompt_id]
    ]
    return sum(pair for pair in pairs if pair is not None) / len(pairs)


def evaluated(nonpareil: Command, moved: Path, **changes: Any) -> tuple[dict[str, Any], str]:
    status, _, said = nonpareil(
        "evaluate", model_name_or_path=moved, num_generations=8, output_dir=moved.parent / "out", **changes
    )
    assert status == 0, said
    return json.loads((moved.parent / "out" / "report.json").read_text()), said


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_figure_is_of_the_models_that_drew(dtype: str, nonpareil: Command, moved: Path) -> None:
    report, said = evaluated(nonpareil, moved, dtype=dtype)
    stated = str(resolve_dtype(dtype, best_device())).removeprefix("torch.")
    assert report["context"]["dtype"] == {
        "measured": stated,
        "KL products": "float32",
        "policy stored": "float32",
        "reference stored": "float32",
    }
    assert report["evaluation"]["dtype"] == stated
    assert f"both models in {stated}" in " ".join(said.split())
    assert ("a small training may vanish" in said) == (stated != "float32")
    assert f"All metrics are of both models in {stated}" in (moved.parent / "out" / "report.html").read_text()
    policy, reference = Plain(moved, stated), Plain(moved.parent / "policy", stated)
    ours = measured(policy, reference, moved.parent / "out" / "policy")
    figures = report["evaluation"]
    assert figures["kl"]["estimate"] == pytest.approx(ours["kl"], rel=1e-3)
    assert figures["log_ratio"]["estimate"] == pytest.approx(ours["log_ratio"], rel=1e-3, abs=1e-6)
    # What draws multiplies in its dtype, and what measures in float32: nothing but rounding is between them.
    theirs = measured(reference, policy, moved.parent / "out" / "reference")
    for side in (ours, theirs):
        assert side["off"] < (1e-5 if stated == "float32" else 0.03)
        assert side["worst"] < (1e-4 if stated == "float32" else 0.15)
    won = win_rate(moved.parent / "out" / "policy", moved.parent / "out" / "reference")
    assert figures["comparison"]["win_rate"]["estimate"] == pytest.approx(won, abs=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_an_adapter_is_added_before_rounding_and_measured_as_it_draws(
    dtype: str, nonpareil: Command, files: Path
) -> None:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(files / "policy", dtype=torch.float32)
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    adapted.save_pretrained(files / "adapter")
    for file in (files / "policy").glob("*token*"):
        (files / "adapter" / file.name).write_bytes(file.read_bytes())
    report, said = evaluated(nonpareil, files / "adapter", dtype=dtype)
    policy, reference = Plain(files / "policy", dtype, files / "adapter"), Plain(files / "policy", dtype)
    ours = measured(policy, reference, files / "out" / "policy")
    assert report["evaluation"]["kl"]["estimate"] == pytest.approx(ours["kl"], rel=1e-3)
    assert report["evaluation"]["log_ratio"]["estimate"] == pytest.approx(ours["log_ratio"], rel=1e-3)
    assert ours["off"] < (1e-5 if dtype == "float32" else 0.05)
    assert ("stored in float32, measured in bfloat16" in said) == (dtype == "bfloat16")


def test_of_a_move_that_rounds_away_nothing_is_measured(nonpareil: Command, files: Path) -> None:
    moved = move(files, 2**-10)
    kl = {}
    for dtype in ("float32", "bfloat16"):
        report, _ = evaluated(nonpareil, moved, dtype=dtype, overwrite="true")
        kl[dtype] = report["evaluation"]["kl"]["estimate"]
    assert kl["float32"] > 1e-7
    assert kl["bfloat16"] == 0


def test_products_may_be_as_wide_as_the_weights_and_no_narrower(nonpareil: Command, moved: Path) -> None:
    report, _ = evaluated(nonpareil, moved, dtype="bfloat16", kl_dtype="auto")
    assert report["context"]["dtype"]["KL products"] == "bfloat16"
    for dtype, products in (("float32", "bfloat16"), ("bfloat16", "float16")):
        status, _, said = nonpareil("evaluate", model_name_or_path=moved, dtype=dtype, kl_dtype=products)
        assert status == 2
        assert f"kl_dtype='{products}'" in said
        assert f"drawn from {dtype} weights" in said


def test_groups_of_another_dtype_are_not_taken_up(nonpareil: Command, moved: Path) -> None:
    evaluated(nonpareil, moved, dtype="bfloat16")
    status, _, said = nonpareil(
        "evaluate",
        model_name_or_path=moved,
        num_generations=8,
        output_dir=moved.parent / "out",
        dtype="float32",
    )
    assert status == 2
    assert "model.dtype: 'bfloat16' there, 'float32' now" in said


def test_a_training_is_measured_in_what_it_computed_in(nonpareil: Command, files: Path) -> None:
    status, _, said = nonpareil("distill", max_steps=1, bf16="false")
    assert status == 0, said
    report = json.loads((files / "out" / "evaluation" / "report.json").read_text())
    assert report["evaluation"]["dtype"] == "float32"
    assert "both models in float32" in (files / "out" / "README.md").read_text()
    status, _, said = nonpareil("distill", bf16="false", kl_dtype="bfloat16", output_dir=files / "other")
    assert status == 2
    assert "kl_dtype='bfloat16'" in said
    assert not (files / "other").exists()
