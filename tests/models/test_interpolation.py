"""A policy at a strength: the reference's weights and the training's change, scaled, as transformers reads them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from nonpareil.engines.transformers import TransformersEngine
from nonpareil.errors import ConfigError, ModelError
from nonpareil.models import interpolated_folder
from nonpareil.models.interpolated_folder import Source, save_interpolated
from nonpareil.models.interpolation import check_interpolable, interpolated, interpolated_model
from nonpareil.models.pretrained import read_config
from nonpareil.models.stored_weights import stored_weights
from nonpareil.records import SamplingParams
from tests.tiny import UNEVEN, make_model, make_tokenizer

KINDS = ["llama_grouped_heads", "tied", "gpt2", "gemma2_capped"]


def moved(model: PreTrainedModel, by: float = 0.02, seed: int = 1) -> PreTrainedModel:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += by * torch.randn(parameter.shape, generator=generator)
    return model


def untied(model: PreTrainedModel) -> PreTrainedModel:
    """The same tied model with a head of its own, which then moves."""
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone())
    model.config.tie_word_embeddings = False
    model.all_tied_weights_keys = {}
    with torch.no_grad():
        head.weight += 0.03 * torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(2))
    return model


def saved(model: PreTrainedModel, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    make_tokenizer().save_pretrained(folder)
    return folder


def written(trained: Path, reference: Path, strength: float, folder: Path, **options: Any) -> PreTrainedModel:
    """What plain transformers loads of the folder, in the type that is stored."""
    one, other = (Source(str(path), None, make_tokenizer()) for path in (trained, reference))
    save_interpolated(one, other, strength, folder, **options)
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not any(info[f"{what}_keys"] for what in ("missing", "unexpected", "mismatched"))
    return model


def plain(path: Path) -> dict[str, Tensor]:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).state_dict()


def between(trained: dict[str, Tensor], reference: dict[str, Tensor], strength: float) -> dict[str, Tensor]:
    return {
        name: (value.double() + strength * (trained[name].double() - value.double())).float()
        for name, value in reference.items()
    }


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name].float(), value, atol=tolerance, rtol=0)


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    reference = saved(make_model(request.param), tmp_path / "reference")
    return saved(moved(make_model(request.param)), tmp_path / "trained"), reference


def test_every_weight_lies_on_the_line(pair: tuple[Path, Path], tmp_path: Path) -> None:
    trained, reference = map(plain, pair)
    for strength in (0.0, 0.3, 1.0, 1.7):
        model = written(*pair, strength, tmp_path / f"at-{strength}")
        assert_same(
            model.state_dict(), between(trained, reference, strength), 0 if strength in (0, 1) else 1e-6
        )
        assert stored_weights(str(tmp_path / f"at-{strength}")).streamed
        in_memory = interpolated_model(
            str(pair[0]), None, stored_weights(str(pair[1])), strength, names=("trained", "reference")
        )
        assert all(torch.equal(v, model.state_dict()[k]) for k, v in in_memory.state_dict().items())


def test_at_the_ends_completions_are_drawn_bit_for_bit(tmp_path: Path) -> None:
    reference = saved(make_model("tied"), tmp_path / "reference")
    trained = saved(untied(moved(make_model("tied"))), tmp_path / "trained")
    sampling = SamplingParams(max_completion_length=8, seed=3)
    for strength, end in ((0.0, reference), (1.0, trained), (0.5, None)):
        model = written(trained, reference, strength, tmp_path / f"at-{strength}")
        draws = {}
        for name, path in (("at", tmp_path / f"at-{strength}"), ("end", end or reference)):
            model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
            draws[name] = TransformersEngine(model, make_tokenizer()).draw(UNEVEN, 3, sampling)
        assert (draws["at"] == draws["end"]) == (end is not None)


@pytest.mark.parametrize("side", ["trained", "reference"])
def test_a_head_of_its_own_in_one_model_is_one_in_between(side: str, tmp_path: Path) -> None:
    tied = saved(make_model("tied", seed=0), tmp_path / "tied")
    own = saved(untied(moved(make_model("tied", seed=0))), tmp_path / "own")
    trained, reference = (own, tied) if side == "trained" else (tied, own)
    expected = between(plain(trained), plain(reference), 1.4)
    model = written(trained, reference, 1.4, tmp_path / "at")
    assert_same(model.state_dict(), expected)
    assert not torch.equal(model.get_output_embeddings().weight, model.get_input_embeddings().weight)
    assert model.config.tie_word_embeddings is False
    in_memory = interpolated_model(
        str(trained), None, stored_weights(str(reference)), 1.4, names=("trained", "reference")
    )
    assert_same(in_memory.state_dict(), expected)
    assert in_memory.get_output_embeddings().weight is not in_memory.get_input_embeddings().weight


def test_an_adapter_scales_its_update(tmp_path: Path) -> None:
    base = saved(make_model(), tmp_path / "base")
    settings: dict[str, Any] = {"r": 2, "lora_alpha": 3, "target_modules": "all-linear"}
    for name, scale in (("adapter", 1.0), ("scaled", 1.6)):
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        torch.manual_seed(0)
        adapted = get_peft_model(model, LoraConfig(**settings, init_lora_weights=False))
        with torch.no_grad():
            for part, value in adapted.named_parameters():
                if "lora_B" in part:
                    value *= scale
        adapted.save_pretrained(tmp_path / name)
        make_tokenizer().save_pretrained(tmp_path / name)
        if name == "scaled":
            expected = adapted.merge_and_unload().state_dict()
    model = written(tmp_path / "adapter", base, 1.6, tmp_path / "at")
    assert_same(model.state_dict(), expected)
    assert model.dtype is torch.float32
    assert_same(written(tmp_path / "adapter", base, 0.0, tmp_path / "none").state_dict(), plain(base), 0)


def test_each_weight_is_written_in_the_wider_type_or_the_one_asked_for(tmp_path: Path) -> None:
    reference = saved(make_model().to(torch.bfloat16), tmp_path / "reference")
    half = saved(moved(make_model()).to(torch.bfloat16), tmp_path / "half")
    whole = saved(moved(make_model()), tmp_path / "whole")
    expected = between(plain(whole), plain(reference), 1.4)
    assert written(half, reference, 1.4, tmp_path / "a").dtype is torch.bfloat16
    model = written(whole, reference, 1.4, tmp_path / "b")
    assert model.dtype is torch.float32
    assert_same(model.state_dict(), expected)
    model = written(whole, reference, 1.4, tmp_path / "c", dtype="bfloat16")
    rounded = {name: value.to(torch.bfloat16).float() for name, value in model.state_dict().items()}
    assert_same(rounded, {name: value.to(torch.bfloat16).float() for name, value in expected.items()}, 0)
    assert json.loads((tmp_path / "c" / "config.json").read_text())["dtype"] == "bfloat16"


def test_large_models_are_written_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = saved(make_model(), tmp_path / "reference", max_shard_size="20KB")
    trained = saved(moved(make_model()), tmp_path / "trained")
    assert len(list(reference.glob("*.safetensors"))) > 1
    monkeypatch.setattr(interpolated_folder, "SHARD_BYTES", 10_000)
    model = written(trained, reference, 0.5, tmp_path / "at")
    assert_same(model.state_dict(), between(plain(trained), plain(reference), 0.5))
    index = json.loads((tmp_path / "at" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {p.name for p in (tmp_path / "at").glob("*.safetensors")}
    assert len(set(index["weight_map"].values())) > 2


def test_shards_that_an_earlier_save_left_behind_are_not_read(tmp_path: Path) -> None:
    reference = saved(make_model(), tmp_path / "reference", max_shard_size="20KB")
    trained = saved(moved(make_model()), tmp_path / "trained", max_shard_size="20KB")
    expected = between(plain(trained), plain(reference), 0.5)
    stale = {name: torch.full_like(value, 7.0) for name, value in plain(trained).items()}
    for folder in (trained, reference):
        save_file(stale, folder / "model-00099-of-00099.safetensors", metadata={"format": "pt"})
        assert stored_weights(str(folder)).streamed
    assert_same(written(trained, reference, 0.5, tmp_path / "at").state_dict(), expected)
    whole = saved(make_model(), tmp_path / "whole")  # transformers prefers one whole file to an index
    for file in trained.glob("model*"):
        (whole / file.name).write_bytes(file.read_bytes())
    assert_same(written(trained, whole, 0.5, tmp_path / "whole-at").state_dict(), expected)


def test_a_name_that_the_index_does_not_have_is_refused(tmp_path: Path) -> None:
    folder = saved(make_model(), tmp_path / "model", max_shard_size="20KB")
    index = folder / "model.safetensors.index.json"
    found = json.loads(index.read_text())
    name, file = max(found["weight_map"].items())
    index.write_text(json.dumps({**found, "weight_map": {**found["weight_map"], "lm_head.other": file}}))
    with pytest.raises(ModelError, match=rf"{file}.* does not hold lm_head.other.*two saves"):
        stored_weights(str(folder))
    save_file({name: torch.zeros(1)}, folder / "model-00099-of-00099.safetensors")
    keeping = [place for place in found["weight_map"].items() if place[1] != file]
    index.write_text(json.dumps({**found, "weight_map": dict(keeping)}))
    with pytest.raises(ModelError, match="does not hold"):
        stored_weights(str(folder))


def test_weights_under_other_names_are_read_by_transformers(tmp_path: Path) -> None:
    """As the hub's GPT-2 has them, without the prefix of its language model."""
    reference = saved(make_model("gpt2"), tmp_path / "reference")
    trained = saved(moved(make_model("gpt2")), tmp_path / "trained")
    expected = between(plain(trained), plain(reference), 1.5)
    for path in (reference, trained):
        stored = load_file(path / "model.safetensors")
        renamed = {name.removeprefix("transformer."): value for name, value in stored.items()}
        save_file(renamed, path / "model.safetensors", metadata={"format": "pt"})
        assert not stored_weights(str(path)).streamed
        assert_same(written(trained, reference, 1.5, tmp_path / f"at-{path.name}").state_dict(), expected)


@pytest.mark.parametrize(
    ("kind", "changes", "says"),
    [
        ("gpt2", {}, "other architectures, LlamaConfig and GPT2Config"),
        ("llama_grouped_heads", {"vocab_size": 23}, "vocab_size 19 and 23"),
        ("llama_grouped_heads", {"rms_norm_eps": 0.1}, "rms_norm_eps"),
        ("llama_grouped_heads", {"quantization_config": {"quant_method": "bitsandbytes"}}, "quantised"),
    ],
)
def test_what_cannot_be_interpolated(kind: str, changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    trained = saved(make_model(), tmp_path / "trained")
    other = saved(make_model(kind), tmp_path / "other")
    config = json.loads((other / "config.json").read_text()) | changes
    (other / "config.json").write_text(json.dumps(config))
    sides = [(read_config(str(path)), make_tokenizer()) for path in (trained, other)]
    with pytest.raises(ConfigError, match=says):
        check_interpolable(*sides, ("trained", "other"))


def test_other_tokens_shapes_and_numbers_are_refused(tmp_path: Path) -> None:
    trained = saved(make_model(), tmp_path / "trained")
    other = make_tokenizer()
    other.add_tokens(["splendid"])
    side = read_config(str(trained))
    with pytest.raises(ConfigError, match="'splendid' is None and 19"):
        check_interpolable((side, make_tokenizer()), (side, other), ("trained", "other"))
    wider = make_model()
    wider.resize_token_embeddings(24)
    reference = saved(wider, tmp_path / "wider")
    with pytest.raises(ConfigError, match=r"embed_tokens.weight|lm_head.weight"):
        written(trained, reference, 0.5, tmp_path / "at")
    with pytest.raises(ModelError, match="lower the strength"):
        written(
            trained,
            saved(moved(make_model()), tmp_path / "reference"),
            1e30,
            tmp_path / "at",
            dtype="float16",
        )
    with pytest.raises(ValueError, match="whole numbers"):
        interpolated(torch.tensor([1]), torch.tensor([2]), 0.5)
