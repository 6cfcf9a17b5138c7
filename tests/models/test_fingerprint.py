"""A fingerprint notices whatever tensor changes, in any format and however large the file."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from nonpareil.models import fingerprint as module
from nonpareil.models.fingerprint import fingerprint, module_fingerprint
from nonpareil.models.first_fingerprint import _first_fingerprint, renewed
from nonpareil.models.stored_places import stale_shards
from tests.tiny import make_model

MATRICES = 60


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is over the budget 30 times, as a 2 GB model is."""
    monkeypatch.setattr(module, "BUDGET", 512 * 1024)
    generator = torch.Generator().manual_seed(0)
    tensors = {f"{i}": torch.randn(256, 256, generator=generator) for i in range(MATRICES)}
    save_file(tensors | {"bias": torch.zeros(5)}, tmp_path / "model.safetensors")
    return tmp_path


def flip(file: Path, start: int, size: int) -> Callable[[], None]:
    """Invert bytes in place; returns what puts them back."""
    with file.open("r+b") as stream:
        stream.seek(start)
        were = stream.read(size)
        stream.seek(start)
        stream.write(bytes(255 - byte for byte in were))

    def put_back() -> None:
        with file.open("r+b") as stream:
            stream.seek(start)
            stream.write(were)

    return put_back


def places(file: Path) -> dict[str, tuple[int, int]]:
    """Where each tensor lies in a safetensors file, read independently of the code."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    return {
        name: (8 + length + tensor["data_offsets"][0], 8 + length + tensor["data_offsets"][1])
        for name, tensor in header.items()
    }


def test_each_tensor_of_a_large_file_counts(large: Path) -> None:
    file, before = large / "model.safetensors", fingerprint(str(large))
    assert before.startswith("sha256-2:")
    found = places(file)
    assert len(found) == MATRICES + 1
    for first, last in found.values():
        put_back = flip(file, first, last - first)
        assert fingerprint(str(large)) != before
        put_back()
    assert fingerprint(str(large)) == before


@pytest.mark.parametrize("part", [0, 0.34, 0.67, 1])
def test_a_block_at_either_end_or_inside_a_large_tensor_counts(large: Path, part: float) -> None:
    """At most a third of a tensor lies between two places that are read."""
    file, before = large / "model.safetensors", fingerprint(str(large))
    first, last = places(file)["7"]
    size = (last - first) // 3
    flip(file, first + int((last - first - size) * part), size)
    assert fingerprint(str(large)) != before


def test_little_is_read_of_a_large_folder(large: Path) -> None:
    parts = module._parts(large / "model.safetensors")
    read = sum(b - a for p in parts for a, b in module._stretches(p.size, module.BUDGET // len(parts)))
    assert 0.9 * module.BUDGET < read <= module.BUDGET


@pytest.mark.parametrize("pickled", [False, True])
def test_every_number_of_a_small_model_counts(tmp_path: Path, pickled: bool) -> None:
    model, name = make_model(), "pytorch_model.bin" if pickled else "model.safetensors"
    state = model.state_dict()
    del state["lm_head.weight"]

    def save() -> str:
        torch.save(state, tmp_path / name) if pickled else save_file(state, tmp_path / name)
        return fingerprint(str(tmp_path))

    before = save()
    seen = {before}
    for tensor in state.values():
        tensor.view(-1)[tensor.numel() // 2] += 1
        seen.add(save())
        tensor.view(-1)[tensor.numel() // 2] -= 1
    assert len(seen) == len(state) + 1


def test_the_checksums_of_a_large_pickle_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUDGET", 4096)
    tensors = {str(i): torch.zeros(100, 100) for i in range(4)}
    seen = set()
    for name in ("none", *tensors):
        if name in tensors:
            tensors[name][37, 41] += 1  # one number, between the places that are read
        torch.save(tensors, tmp_path / "pytorch_model.bin")
        seen.add(fingerprint(str(tmp_path)))
    assert len(seen) == 5


def test_a_file_that_is_no_safetensors_counts_as_it_is(tmp_path: Path) -> None:
    seen = set()
    for content in (
        b"",
        b"short",
        b"\xff" * 40,
        b"\x02" + b"\0" * 7 + b"[]",
        b"\x0f" + b"\0" * 7 + b'{"w": {"a": 1}}',
    ):
        (tmp_path / "model.safetensors").write_bytes(content)
        seen.add(fingerprint(str(tmp_path)))
    assert len(seen) == 5


def test_shards_and_which_of_them_holds_what_count(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path / "m", max_shard_size="20KB")
    shards = sorted((tmp_path / "m").glob("model-*.safetensors"))
    assert len(shards) > 2
    seen = {fingerprint(str(tmp_path / "m"))}
    for shard in shards:
        tensors = load_file(shard)
        save_file({name: -tensor for name, tensor in tensors.items()}, shard)
        seen.add(fingerprint(str(tmp_path / "m")))
    assert len(seen) == len(shards) + 1


def test_shards_that_the_index_does_not_name_do_not_count(tmp_path: Path) -> None:
    """An earlier save left them; what the index names, and files of other names, count as they did."""
    sharded, whole = tmp_path / "sharded", tmp_path / "whole"
    make_model().save_pretrained(sharded, max_shard_size="20KB")
    make_model().save_pretrained(whole)
    for folder in (sharded, whole):
        first = fingerprint(str(folder))
        for name in ("model-00001-of-00099.safetensors", "pytorch_model-00001-of-00002.bin"):
            save_file({"w": torch.ones(3)}, folder / name)
        (folder / "pytorch_model.bin.index.json").write_text('{"weight_map": {}}')
        with_index = fingerprint(str(folder))
        (folder / "pytorch_model.bin.index.json").unlink()
        (folder / "pytorch_model-00001-of-00002.bin").unlink()
        assert fingerprint(str(folder)) == first != with_index  # the index is a file that counts whole
        save_file({"w": torch.ones(3)}, folder / "more.safetensors")
        assert fingerprint(str(folder)) != first
    save_file({"w": torch.ones(3)}, tmp_path / "model-00001-of-00001.safetensors")
    assert stale_shards(tmp_path) == set()
    index = tmp_path / "model.safetensors.index.json"
    for damaged in ("{", "[]", '{"weight_map": 1}', '{"weight_map": {"w": []}}'):
        index.write_text(damaged)
        assert stale_shards(tmp_path) == set()
    index.write_text('{"weight_map": {"w": "model-00001-of-00002.safetensors"}}')
    assert stale_shards(tmp_path) == {"model-00001-of-00001.safetensors"}


@pytest.mark.parametrize("name", ["special_tokens_map.json", "vocab.json", "merges.txt", "tokenizer.model"])
def test_a_tokenizers_older_files_count(tmp_path: Path, name: str) -> None:
    before = fingerprint(str(tmp_path))
    (tmp_path / name).write_text("{}")
    assert fingerprint(str(tmp_path)) != before


def test_every_number_in_memory_counts() -> None:
    layer = nn.Linear(300, 300)
    layer.register_buffer("halves", torch.zeros(20_000, dtype=torch.bfloat16))
    layer.register_buffer("flag", torch.tensor([True, False]))
    seen = {module_fingerprint(layer)}
    for tensor in layer.state_dict().values():
        flat = tensor.view(-1)
        flat[len(flat) * 2 // 5] = ~flat[0] if tensor.dtype == torch.bool else flat[0] + 0.5
        seen.add(module_fingerprint(layer))
    assert len(seen) == 5


def test_what_a_manifest_has_in_the_first_form_is_renewed_where_the_files_are_the_same(
    tmp_path: Path,
) -> None:
    """The value is what the first form gave; a folder of groups has it."""
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 20_000)
    first = "sha256:217f131ea6d5d0da31fcd3bfdb6466b76cb914f983e29259fe3671939e8c112c"
    here = {"path": str(folder), "fingerprint": fingerprint(str(folder))}
    stored = {"path": "elsewhere", "fingerprint": first}
    assert renewed({"model": stored, "n": [stored, 1]}, {"model": here, "n": [here, 1]}) == {
        "model": {**stored, "fingerprint": here["fingerprint"]},
        "n": [{**stored, "fingerprint": here["fingerprint"]}, 1],
    }
    _first_fingerprint.cache_clear()
    (folder / "config.json").write_text("[]")
    assert renewed(stored, {**here, "fingerprint": fingerprint(str(folder))}) == stored


def test_a_large_file_takes_a_moment(tmp_path: Path) -> None:
    """Sparse: 8 GB of 300 tensors, of which nobody reads more than the budget."""
    size = 8 * 1024**3 // 300
    header = {
        f"w{i}": {"dtype": "F32", "shape": [size // 4], "data_offsets": [i * size, (i + 1) * size]}
        for i in range(300)
    }
    text = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + 300 * size)
    start = time.perf_counter()
    fingerprint(str(tmp_path))
    assert time.perf_counter() - start < 10
