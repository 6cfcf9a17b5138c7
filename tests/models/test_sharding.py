"""Reading a plain checkpoint into a model weight by weight; tests/training/test_processes.py does it in shards."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from nonpareil.errors import DataError
from nonpareil.models.empty import empty_policy
from nonpareil.models.loading import stored_state
from nonpareil.models.sharding import load_whole_state_dict, make_room
from tests.tiny import make_model


class Scaled(nn.Module):
    """A weight, and a buffer that belongs to the checkpoint."""

    def __init__(self, scale: float):
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), scale))
        self.register_buffer("scale", torch.tensor(scale))


def test_buffers_of_the_checkpoint_are_read_too(tmp_path: Path) -> None:
    save_file(Scaled(0.3).state_dict(), tmp_path / "model.safetensors")
    model = Scaled(1.0)
    load_whole_state_dict(model, tmp_path, stored_state)
    assert model.scale == torch.tensor(0.3)
    assert torch.equal(model.weight.detach(), torch.full((3,), 0.3))


@pytest.mark.parametrize("kind", ["llama_grouped_heads", "tied", "gpt2"])
def test_an_empty_policy_filled_from_its_folder_is_the_model(kind: str, tmp_path: Path) -> None:
    model = make_model(kind)
    model.generation_config.eos_token_id = [2, 5]
    model.save_pretrained(tmp_path)
    found = empty_policy(str(tmp_path))
    assert found is not None
    empty, folder = found
    assert all(parameter.is_meta for parameter in empty.parameters())
    make_room(empty, torch.device("cpu"))
    load_whole_state_dict(empty, folder, stored_state)
    ids = torch.tensor([[1, 7, 8, 9]])
    assert torch.equal(empty(ids).logits, model(ids).logits)
    assert empty.generation_config.eos_token_id == [2, 5]
    tied = empty.get_output_embeddings().weight is empty.get_input_embeddings().weight
    assert tied == (kind in ("tied", "gpt2"))


def test_a_weight_that_is_missing_is_named_and_never_random(tmp_path: Path) -> None:
    model = make_model()
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    del stored["model.layers.1.mlp.up_proj.weight"]
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match="up_proj"):
        load_whole_state_dict(make_model(seed=1), tmp_path, stored_state)


def test_shards_that_an_earlier_save_left_behind_are_not_read(tmp_path: Path) -> None:
    model = make_model()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    stale = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    save_file(stale, tmp_path / "model-00000-of-00099.safetensors", metadata={"format": "pt"})
    other = make_model(seed=1)
    load_whole_state_dict(other, tmp_path, stored_state)
    ids = torch.tensor([[1, 7, 8, 9]])
    assert torch.equal(other(ids).logits, model(ids).logits)


def test_weights_stored_under_other_names_are_read_whole(tmp_path: Path) -> None:
    model = make_model()
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    # As an older checkpoint might: transformers finds the base model's weights without their prefix.
    renamed = {name.removeprefix("model."): value for name, value in stored.items()}
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert empty_policy(str(tmp_path)) is None
    other = make_model(seed=1)
    load_whole_state_dict(other, tmp_path, stored_state)
    ids = torch.tensor([[1, 7, 8, 9]])
    assert torch.equal(other(ids).logits, model(ids).logits)
