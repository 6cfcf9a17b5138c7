"""The moving average of J-BOND's anchor, and the copy that draws."""

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from nonpareil.errors import DataError
from nonpareil.models.anchors import ANCHOR_FILE, Anchor, WorkingCopy
from tests.tiny import make_model

IDS = torch.tensor([[1, 7, 8, 9, 2]])


def shifted(model: PreTrainedModel, by: float) -> PreTrainedModel:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(by)
    return other


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("kind", ["llama_grouped_heads", "tied"])
@pytest.mark.parametrize("rate", [0.02, 0.7, 1.0])
def test_each_update_moves_by_rate_of_the_distance(kind: str, rate: float) -> None:
    policy = make_model(kind)
    anchor = Anchor(policy, rate)
    start, moved = weights(policy), shifted(policy, 0.5)
    anchor.after_step(moved, 1)
    anchor.after_step(moved, 2)
    for name, parameter in anchor.module.named_parameters():
        want = start[name] + (weights(moved)[name] - start[name]) * (1 - (1 - rate) ** 2)
        torch.testing.assert_close(parameter.detach(), want, rtol=1e-6, atol=1e-6)
    assert torch.equal(weights(policy)["model.norm.weight"], start["model.norm.weight"]), "policy stays"


def test_the_anchor_starts_as_the_policy_and_takes_no_gradient() -> None:
    policy = make_model().train()
    anchor = Anchor(policy, 0.1)
    assert torch.equal(anchor.module(IDS).logits, policy.eval()(IDS).logits)
    assert not anchor.module.training
    assert not any(p.requires_grad for p in anchor.module.parameters())


def test_small_steps_of_a_bfloat16_policy_are_not_lost() -> None:
    policy = make_model().to(torch.bfloat16)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.fill_(1.0)
    anchor = Anchor(policy, 0.001)
    in_bfloat16 = torch.ones((), dtype=torch.bfloat16)
    moved = shifted(policy, 0.5)
    for _ in range(100):
        anchor.after_step(moved, 1)
        in_bfloat16.lerp_(torch.tensor(1.5, dtype=torch.bfloat16), 0.001)
    assert in_bfloat16 == 1.0, "the average that this class is there to avoid"
    for parameter in anchor.module.parameters():
        assert parameter.dtype == torch.float32
        want = torch.full_like(parameter, 1 + 0.5 * (1 - 0.999**100))
        torch.testing.assert_close(parameter.detach(), want, rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", ["llama_grouped_heads", "tied"])
def test_saved_and_loaded_weights_are_the_same_bits(kind: str, tmp_path: Path) -> None:
    policy = make_model(kind)
    anchor = Anchor(policy, 0.3)
    anchor.after_step(shifted(policy, 0.1), 1)
    anchor.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [ANCHOR_FILE]
    other = Anchor(make_model(kind, seed=1), 0.3)
    other.load(tmp_path)
    for name, parameter in weights(anchor.module).items():
        assert torch.equal(parameter, weights(other.module)[name])
    assert torch.equal(anchor.module(IDS).logits, other.module(IDS).logits)
    # Still one tensor where weights are tied, so that the next update moves both ends.
    ends = other.module.get_input_embeddings().weight, other.module.get_output_embeddings().weight
    assert (ends[0] is ends[1]) == (kind == "tied")


def test_a_checkpoint_without_anchor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"anchor\.safetensors is missing: .*resume from another"):
        Anchor(make_model(), 0.1).load(tmp_path)


@pytest.mark.parametrize("harm", ["truncated", "another model"])
def test_an_anchor_file_that_does_not_fit_is_refused(harm: str, tmp_path: Path) -> None:
    Anchor(make_model(), 0.1).save(tmp_path)
    target = Anchor(make_model("gpt2" if harm == "another model" else "llama_grouped_heads"), 0.1)
    if harm == "truncated":
        path = tmp_path / ANCHOR_FILE
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=ANCHOR_FILE):
        target.load(tmp_path)


@pytest.mark.parametrize("kind", ["llama_grouped_heads", "tied", "gemma2_capped"])
def test_the_working_copy_takes_on_weights_exactly(kind: str) -> None:
    policy = make_model(kind)
    working = WorkingCopy(policy, torch.float32)
    other = shifted(policy, 0.01)
    assert torch.equal(working.load(other)(IDS).logits, other(IDS).logits)
    assert torch.equal(working.load(policy)(IDS).logits, policy(IDS).logits)
    assert working.model is not policy
    assert not any(p.requires_grad for p in working.model.parameters())


@pytest.mark.parametrize("kind", ["llama_grouped_heads", "tied"])
def test_a_bfloat16_working_copy_is_the_model_as_a_user_would_load_it(kind: str, tmp_path: Path) -> None:
    """Rounded weights, but rotary frequencies in float32, as from_pretrained keeps them."""
    policy = make_model(kind)
    policy.save_pretrained(tmp_path)
    users = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    working = WorkingCopy(make_model(kind, seed=1), torch.bfloat16)
    working.load(policy)
    for (name, ours), theirs in zip(working.model.named_parameters(), users.parameters(), strict=True):
        assert ours.dtype == torch.bfloat16
        assert torch.equal(ours, theirs), name
    buffers = dict(users.named_buffers())
    assert buffers
    for name, ours in working.model.named_buffers():
        assert torch.equal(ours, buffers[name]), name
        assert ours.dtype == buffers[name].dtype
    ids = torch.arange(60)[None] % 19
    assert torch.equal(working.model(ids).logits, users(ids).logits)
