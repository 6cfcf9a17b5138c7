"""How many tokens a batch of draws may hold on a GPU: its keys fit; on a CPU all is as it was given."""

import pytest
import torch
from transformers import DynamicCache

from nonpareil.engines.batches import DrawRequest, batches
from nonpareil.engines.draw_memory import LARGER, cache_bytes, drawing_bounds, tokens_within
from nonpareil.records import Prompt, SamplingParams
from tests.tiny import make_model

GIB = 2**30


@pytest.mark.parametrize(
    ("total", "free", "tokens"),
    [
        (80 * GIB, 70 * GIB, 8192 * LARGER),  # all that is allowed: 3 of 10 GiB
        (
            16 * GIB,
            14 * GIB,
            8192 * 8,
        ),  # an eighth is 2 GiB, and 65,536 tokens of 24 KiB are 1.5
        (16 * GIB, 4 * GIB, 8192 * 4),  # a quarter of what is free is 1 GiB
        (16 * GIB, 3.9 * GIB, 8192 * 4),
        (80 * GIB, GIB // 4, 8192),  # never fewer than were asked for
    ],
)
def test_a_batch_grows_up_to_its_share_of_the_memory(total: int, free: int, tokens: int) -> None:
    assert tokens_within(8192, 24 * 1024, total, int(free)) == tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tokens_keys_are_as_large_as_the_cache_says(dtype: torch.dtype) -> None:
    model = make_model().to(dtype)
    cache = DynamicCache(config=model.config)
    model(torch.tensor([[1, 2, 3]]), past_key_values=cache, use_cache=True)
    held = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    assert cache_bytes(model.config, dtype.itemsize) * 3 == held


def test_on_a_cpu_the_bounds_are_those_that_were_given() -> None:
    assert drawing_bounds(make_model(), 512, 7) == (512, 7)


def test_what_a_row_counts_besides_makes_fewer_rows() -> None:
    request = DrawRequest([Prompt("p", "p", list(range(6)))], 8, SamplingParams(4))
    assert [len(unit.samples) for units in batches([request], 40) for unit in units] == [4, 4]
    assert [len(unit.samples) for units in batches([request], 40, 10) for unit in units] == [2, 2, 2, 2]
