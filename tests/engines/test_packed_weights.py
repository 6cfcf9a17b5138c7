"""Packed weights: the same draws, of the weights as they are now, and nothing left behind."""

from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import nn
from transformers import LlamaConfig

from nonpareil.engines import packed_weights as module
from nonpareil.engines.batches import DrawRequest
from nonpareil.engines.packed_weights import MOST_ROWS, PackedLinear, packed_weights
from nonpareil.engines.transformers import TransformersEngine
from nonpareil.engines.ways import COPIED
from nonpareil.models.adapters import ANCHOR, POLICY, AdapterAnchor, add_policy_adapter, plain_model
from nonpareil.models.devices import cast_weights
from nonpareil.records import SamplingParams
from tests.tiny import UNEVEN, make_engine, make_model, make_tokenizer

SAMPLING = SamplingParams(max_completion_length=24, seed=3)
ROOM = 2**30
FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16


def packed(model: nn.Module) -> list[str]:
    return [
        name for name, each in model.named_modules() if isinstance(vars(each).get("forward"), PackedLinear)
    ]


def can_pack(dtype: torch.dtype) -> bool:
    layer = nn.Linear(64, 64).to(dtype)
    with packed_weights(layer, 4, ROOM):
        return bool(packed(layer))


def needs(dtype: torch.dtype) -> None:
    if not can_pack(dtype):
        pytest.skip("this processor, or this torch, has no such products")


def seen_packed(engine: TransformersEngine) -> set[str]:
    """Names of the layers that are packed in some pass from now on."""
    names: set[str] = set()
    engine.model.register_forward_pre_hook(lambda model, inputs: names.update(packed(model)))
    return names


def without(engine: TransformersEngine) -> TransformersEngine:
    """Draws of the same model without room for packed weights."""
    other = TransformersEngine(engine.model, engine.tokenizer, checked=False)
    other.ways.taken, other.end_ids, other.packing.spare_bytes = engine.ways.taken, engine.end_ids, -ROOM
    engine.packing.spare_bytes = ROOM
    return other


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize("kind", ["llama_grouped_heads", "tied", "opt"])
def test_packed_weights_draw_what_plain_ones_draw(kind: str, dtype: torch.dtype) -> None:
    needs(dtype)
    engine = TransformersEngine(cast_weights(make_model(kind), dtype), make_tokenizer())
    plain = without(engine).complete([DrawRequest(UNEVEN, 5, SAMPLING)])[0]
    names = seen_packed(engine)
    drawn = engine.complete([DrawRequest(UNEVEN, 5, SAMPLING)])[0]
    assert len(names) >= 8
    for one, other in zip(chain(*plain), chain(*drawn), strict=True):
        assert (one.token_ids, one.finish_reason) == (other.token_ids, other.finish_reason)
        tolerance = 1e-5 if dtype is FLOAT32 else 0.0  # bit for bit
        assert one.logprobs == pytest.approx(other.logprobs, abs=tolerance, rel=0)
    assert not packed(engine.model)


@pytest.mark.parametrize("shape", [(48, 32), (65, 127), (320, 33), (1000, 64)])
@pytest.mark.parametrize("bias", [True, False])
def test_bfloat16_layers_answer_bit_for_bit_whatever_the_rows(shape: tuple[int, int], bias: bool) -> None:
    needs(BFLOAT16)
    torch.manual_seed(0)
    layer = nn.Linear(shape[1], shape[0], bias=bias).to(BFLOAT16)
    for rows in (1, 3, 16, 100):
        states = torch.randn(rows, 2, shape[1]).to(BFLOAT16)
        expected = layer(states)
        with torch.inference_mode(), packed_weights(layer, rows, ROOM):
            assert packed(layer) == [""]
            assert torch.equal(layer(states), expected)
            assert layer(states[:0]).shape == (0, 2, shape[0])


def test_weights_that_moved_since_are_seen() -> None:
    needs(FLOAT32)
    engine = make_engine(make_model("llama_grouped_heads"))
    engine.packing.spare_bytes = ROOM
    before = engine.complete([DrawRequest(UNEVEN, 3, SAMPLING)])
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in engine.model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    names = seen_packed(engine)
    after = engine.complete([DrawRequest(UNEVEN, 3, SAMPLING)])
    assert names
    assert after != before
    plain = without(engine).complete([DrawRequest(UNEVEN, 3, SAMPLING)])
    assert [c.token_ids for g in after[0] for c in g] == [c.token_ids for g in plain[0] for c in g]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, ValueError])
def test_nothing_stays_packed_after_an_error(error: type[BaseException]) -> None:
    needs(FLOAT32)
    engine = make_engine(make_model("llama_grouped_heads"))
    engine.packing.spare_bytes = ROOM
    names = seen_packed(engine)
    passes: list[int] = []

    def fail(*_: Any) -> None:
        passes.append(1)
        if len(passes) == 4:
            raise error

    engine.model.register_forward_pre_hook(fail)
    with pytest.raises(error):
        engine.complete([DrawRequest(UNEVEN, 3, SAMPLING)])
    assert names
    assert not any("forward" in vars(each) for each in engine.model.modules())


def test_the_base_of_adapters_is_packed_and_the_adapters_are_not() -> None:
    needs(FLOAT32)
    adapted = add_policy_adapter(
        make_model("llama_grouped_heads"), LoraConfig(r=4, target_modules="all-linear")
    )
    AdapterAnchor(adapted, 0.1)
    torch.manual_seed(0)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            weight.data = 0.3 * torch.randn(weight.shape)
    engine = TransformersEngine(plain_model(adapted), make_tokenizer(), checked=False)
    requests = [DrawRequest(UNEVEN, 2, replace(SAMPLING, seed=i), a) for i, a in enumerate((POLICY, ANCHOR))]
    plain = without(engine).complete(requests)
    names = seen_packed(engine)
    drawn = engine.complete(requests)
    assert {name.rsplit(".", 1)[1] for name in names} == {"base_layer"}
    assert [[[c.token_ids for c in g] for g in r] for r in drawn] == [
        [[c.token_ids for c in g] for g in r] for r in plain
    ]


def test_what_is_more_than_a_plain_layer_stays_as_it_is() -> None:
    needs(FLOAT32)

    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    own = nn.Linear(64, 64)
    own.forward = lambda x: x  # type: ignore[method-assign]
    layers = {
        "plain": nn.Linear(64, 64),
        "subclass": Doubled(64, 64),
        "parametrised": nn.utils.parametrizations.weight_norm(nn.Linear(64, 64)),
        "hooked": nn.utils.spectral_norm(nn.Linear(64, 64)),
        "own_pass": own,
        "small": nn.Linear(64, 8),
        "float64": nn.Linear(64, 64).double(),
        "mixed": nn.Linear(64, 64),
        "meta": nn.Linear(64, 64, device="meta"),
    }
    layers["mixed"].bias.data = layers["mixed"].bias.data.double()
    model = nn.ModuleDict(layers)
    with packed_weights(model, 4, ROOM):
        assert packed(model) == ["plain"]
    assert "forward" in vars(own)
    with torch.autocast("cpu", dtype=BFLOAT16), packed_weights(model, 4, ROOM):
        assert not packed(model)


def test_layers_are_packed_as_far_as_there_is_room() -> None:
    needs(FLOAT32)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 128), nn.Linear(64, 64))
    for room, names in ((0, []), (16383, []), (16384, ["0"]), (32768, ["0", "2"]), (65536, ["0", "1", "2"])):
        with packed_weights(model, 4, room):
            assert packed(model) == names


def test_many_rows_and_short_completions_are_drawn_from_plain_weights() -> None:
    needs(BFLOAT16)
    engine = TransformersEngine(cast_weights(make_model("llama_grouped_heads"), BFLOAT16), make_tokenizer())
    engine.packing.spare_bytes = ROOM
    names = seen_packed(engine)
    many = MOST_ROWS[BFLOAT16] // len(UNEVEN) + 1
    engine.complete([DrawRequest(UNEVEN, many, SAMPLING)])
    engine.complete([DrawRequest(UNEVEN, 2, replace(SAMPLING, max_completion_length=8))])
    assert not names
    engine.complete([DrawRequest(UNEVEN, 2, SAMPLING)])
    assert names


def test_packed_weights_take_half_the_room_of_keys_that_samples_share() -> None:
    needs(FLOAT32)
    engine = make_engine(make_model("llama_grouped_heads"))
    assert engine.ways.first != COPIED
    names = seen_packed(engine)
    shared = sum(len(prompt.token_ids) for prompt in UNEVEN)
    of_a_token = 2 * 2 * 2 * 8 * 4  # keys and values, layers, heads, numbers of a head, bytes
    layer = 32 * 32 * 4  # the smallest; queries and outputs
    engine.complete([DrawRequest(UNEVEN, 1, SAMPLING)])
    assert not names, "a sample alone shares nothing"
    enough = -(-layer // (shared * of_a_token // 2))
    engine.complete([DrawRequest(UNEVEN, enough, SAMPLING)])
    assert not names
    engine.complete([DrawRequest(UNEVEN, enough + 1, SAMPLING)])
    assert 0 < len(names) < 8
    names.clear()
    engine.ways.taken = []
    engine.complete([DrawRequest(UNEVEN, enough + 1, SAMPLING)])
    assert not names, "copies of the prompt save nothing"


def test_operators_that_answer_otherwise_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    needs(FLOAT32)
    monkeypatch.setattr(module, "_ALIKE", {})
    right = PackedLinear.__call__
    monkeypatch.setattr(PackedLinear, "__call__", lambda self, x: 1.001 * right(self, x))
    layer = nn.Linear(64, 64)
    with packed_weights(layer, 4, ROOM):
        assert not packed(layer)
    monkeypatch.undo()
    nan = nn.Linear(64, 80)
    nan.weight.data[3, 3] = torch.nan
    for _ in range(2):  # says nothing of the operators
        with packed_weights(nan, 4, ROOM):
            assert not packed(nan)
    nan.weight.data[3, 3] = 0
    with packed_weights(nan, 4, ROOM):
        assert packed(nan)


def test_a_model_that_begins_autocast_itself_multiplies_by_plain_weights() -> None:
    """accelerate wraps a model's forward so; the packed weight is of another type than what comes in."""
    needs(FLOAT32)
    layer, states = nn.Linear(64, 64), torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    with packed_weights(layer, 4, ROOM), torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert packed(layer)
        ours = layer(states)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours, layer(states))


def test_a_configuration_that_tells_no_size_of_the_cache_leaves_weights_plain() -> None:
    """Gemma 4's raises where each layer has a number of its own."""

    class PerLayer(LlamaConfig):
        @property
        def head_dim(self) -> int:
            raise ValueError("one for each layer")

        @head_dim.setter
        def head_dim(self, value: int) -> None:
            pass

    model = make_model()
    engine = TransformersEngine(model, make_tokenizer())
    model.config.__class__ = PerLayer
    names = seen_packed(engine)
    engine.complete([DrawRequest(UNEVEN, 5, SAMPLING)])
    assert not names
