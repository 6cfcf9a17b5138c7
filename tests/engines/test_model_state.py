"""Drawing leaves the model as it was, and is not moved by the state that training left it in."""

import pytest
import torch
from transformers import DynamicCache

from nonpareil.engines.cache import InPlaceLayer, expand_cache, in_place_cache
from nonpareil.engines.transformers import generation_mode
from nonpareil.records import SamplingParams
from tests.tiny import UNEVEN, make_engine, make_model

SAMPLING = SamplingParams(max_completion_length=6, seed=0)


def state_of(model: torch.nn.Module) -> list[tuple[str, bool, object, object]]:
    return [
        (
            name,
            module.training,
            getattr(module, "gradient_checkpointing", None),
            getattr(module, "_gradient_checkpointing_func", None),
        )
        for name, module in model.named_modules()
    ]


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_put_back_also_after_an_error(fails: bool) -> None:
    model = make_model("gpt2").train()
    model.get_input_embeddings().eval()  # one part frozen in evaluation mode
    model.config.use_cache = False
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    before = state_of(model)
    assert model.is_gradient_checkpointing
    inside = []
    try:
        with generation_mode(model):
            inside = [model.training, model.config.use_cache, model.is_gradient_checkpointing]
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert inside == [False, True, False]
    assert state_of(model) == before
    assert model.config.use_cache is False


def test_drawing_from_a_model_in_training_ignores_dropout_and_checkpointing() -> None:
    model = make_model("gpt2")  # with its usual dropout of 0.1
    quiet = make_engine(model).draw(UNEVEN, 4, SAMPLING)
    model.train()
    model.gradient_checkpointing_enable()
    model.config.use_cache = False
    assert make_engine(model).draw(UNEVEN, 4, SAMPLING) == quiet
    assert model.training
    assert model.is_gradient_checkpointing


def test_drawing_twice_gives_the_same_and_moves_no_random_state() -> None:
    engine = make_engine()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = engine.draw(UNEVEN, 4, SAMPLING)
    assert torch.equal(torch.get_rng_state(), before)
    assert engine.draw(UNEVEN, 4, SAMPLING) == first


@pytest.mark.parametrize("room", [0, 6, 30])
@torch.no_grad()
def test_the_cache_in_place_answers_as_transformers_own(room: int) -> None:
    model = make_model()
    own, ours = DynamicCache(config=model.config), in_place_cache(model.config)
    assert all(type(layer) is InPlaceLayer for layer in ours.layers)
    torch.manual_seed(0)
    ids = torch.randint(6, 18, (3, 5))

    def step(ids: torch.Tensor) -> None:
        a = model(input_ids=ids, past_key_values=own, use_cache=True).logits
        b = model(input_ids=ids, past_key_values=ours, use_cache=True).logits
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
        for one, other in zip(own.layers, ours.layers, strict=True):
            torch.testing.assert_close(one.keys, other.keys)
            torch.testing.assert_close(one.values, other.values)

    step(ids)
    rows = torch.tensor([0, 0, 1, 2, 2])
    own.reorder_cache(rows)
    expand_cache(ours, rows, capacity=room)
    for _ in range(8):  # past the room that was made
        step(torch.randint(6, 18, (5, 1)))
    alive = torch.tensor([1, 3, 4])
    own.reorder_cache(alive)
    ours.reorder_cache(alive)
    step(torch.randint(6, 18, (3, 2)))
    assert ours.get_seq_length() == 15


def test_the_cache_is_not_copied_while_there_is_room() -> None:
    layer = InPlaceLayer()
    layer.update(torch.ones(2, 1, 3, 4), torch.ones(2, 1, 3, 4))
    layer.expand(torch.tensor([0, 1, 1]), capacity=6)
    where = layer.keys.data_ptr()
    for length in (4, 5, 6):
        keys, _ = layer.update(torch.full((3, 1, 1, 4), 2.0), torch.zeros(3, 1, 1, 4))
        assert keys.shape == (3, 1, length, 4)
        assert keys.data_ptr() == where
    layer.update(torch.ones(3, 1, 1, 4), torch.ones(3, 1, 1, 4))
    assert layer.keys.data_ptr() != where
    assert layer.keys[0, 0, :, 0].tolist() == [1, 1, 1, 2, 2, 2, 1]
