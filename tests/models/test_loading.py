import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, BertModel, Ernie4_5_MoeConfig

from nonpareil.errors import ConfigError, ModelError
from nonpareil.models.devices import best_device, cast_weights, fast_dtype, resolve_dtype
from nonpareil.models.loading import load_policy, stated_limits
from tests.tiny import LLAMA, make_model, make_tokenizer

CPU = torch.device("cpu")
IDS = torch.tensor([[1, 7, 8, 9, 2]])


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "policy"
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["llama_grouped_heads", "tied"])
def test_a_saved_model_comes_back_with_its_tokenizer(kind: str, tmp_path: Path) -> None:
    model = make_model(kind)
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    loaded, tokenizer = load_policy(str(tmp_path), dtype="float32", device=CPU)
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    assert not loaded.training
    assert tokenizer("good film")["input_ids"] == [1, 10, 8]


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("bfloat16", torch.bfloat16), ("float32", torch.float32), ("auto", fast_dtype(CPU))],
)
def test_the_dtype_asked_for_is_the_dtype_given(saved: Path, dtype: str, expected: torch.dtype) -> None:
    assert load_policy(str(saved), dtype=dtype, device=CPU)[0].dtype == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("kind", ["llama_grouped_heads", "ernie"])
def test_casting_gives_the_types_and_bits_that_loading_would_have(
    kind: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """An architecture may keep some weights in float32, such as a router's: policy and reference must both."""
    if kind == "ernie":
        settings = {name: value for name, value in LLAMA.items() if name != "initializer_range"}
        experts = {"moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1, "moe_intermediate_size": 16}
        config = Ernie4_5_MoeConfig(**settings, **experts, moe_layer_start_index=1)
        AutoModelForCausalLM.from_config(config).float().save_pretrained(tmp_path)
    else:
        make_model(kind).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype).state_dict()
    cast = cast_weights(
        AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32), dtype
    ).state_dict()
    assert loaded.keys() == cast.keys()
    for name, weight in loaded.items():
        assert weight.dtype == cast[name].dtype, name
        assert torch.equal(weight, cast[name]), name
    routers = {name for name in loaded if ".gate." in name}
    kept = {name for name, weight in loaded.items() if weight.dtype is torch.float32}
    assert kept == (set(loaded) if dtype is torch.float32 else routers)


def without_tokenizer(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def torn_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def changed(folder: Path, **settings: int | str) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def a_layer_more(folder: Path) -> None:
    changed(folder, num_hidden_layers=3, layer_types=None)


def another_width(folder: Path) -> None:
    changed(folder, intermediate_size=52)


def unknown_architecture(folder: Path) -> None:
    changed(folder, model_type="no_such_model")


def no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (without_tokenizer, "save one there with tokenizer.save_pretrained"),
        (without_weights, "could not be loaded"),
        (without_config, "no config.json; give a Hugging Face model directory"),
        (torn_weights, "could not be loaded"),
        (a_layer_more, "weights of its own architecture (first: model.layers.2"),
        (another_width, "model.layers.0.mlp"),
        (unknown_architecture, "no_such_model"),
        (no_json, "config"),
    ],
)
def test_each_harm_to_the_directory_has_its_message(
    saved: Path, harm: Callable[[Path], None], says: str
) -> None:
    harm(saved)
    with pytest.raises(ModelError) as caught:
        load_policy(str(saved), device=CPU)
    assert str(saved) in str(caught.value)
    assert says in str(caught.value)


@pytest.mark.parametrize("name", ["/nowhere/policy", "./policy", "a/b/c"])
def test_a_path_to_nowhere_is_no_hub_name(name: str) -> None:
    with pytest.raises(ModelError, match="no such directory; give a model directory or a hub name"):
        load_policy(name, device=CPU)


def test_an_encoder_is_no_policy(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=19, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    BertModel(config).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"would be random\. Is it a causal language model"):
        load_policy(str(tmp_path), device=CPU)


def test_unknown_dtypes_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"dtype='bflot16' is none of .*did you mean 'bfloat16'"):
        resolve_dtype("bflot16", CPU)
    assert resolve_dtype(torch.float16, CPU) is torch.float16
    assert resolve_dtype("auto", CPU) in (torch.bfloat16, torch.float32)
    assert best_device().type in ("cpu", "cuda", "mps")


def test_the_window_is_the_models() -> None:
    assert stated_limits(make_model().config)[0] == 64
    assert stated_limits(make_model("gpt2").config)[0] == 64
    assert stated_limits(make_model("bloom_without_window").config)[0] is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_kept_memory_is_not_paid_for_again_in_page_faults() -> None:
    """Ten buffers of 40 MiB, one after another, are over 100,000 page faults; kept memory faults once."""
    program = """
import resource, sys
from nonpareil.models.memory import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else False
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def use():
    for _ in range(10):
        bytearray(b"x" * (40 << 20))
use()
before = faults()
use()
print(kept, faults() - before)
"""
    counts = {}
    for mode in ("usual", "keep"):
        done = subprocess.run(
            [sys.executable, "-c", program, mode], capture_output=True, text=True, check=True
        )
        kept, faults = done.stdout.split()
        counts[mode] = int(faults)
    if kept == "False":
        pytest.skip("another C library")
    assert counts["keep"] < counts["usual"] / 20
