"""Completions of a prompt as branches of one row draw what rows of their own draw."""

from typing import Any

import pytest
import torch

from nonpareil.engines import branches as module
from nonpareil.engines import transformers as engine_module
from nonpareil.engines.batches import DrawRequest
from nonpareil.engines.branches import branches_for
from nonpareil.engines.cache import InPlaceLayer
from nonpareil.engines.rows import Completion
from nonpareil.engines.transformers import TransformersEngine
from nonpareil.errors import ModelError
from nonpareil.records import Prompt, SamplingParams
from tests.architectures import COMMON, DRAWN, known, tiny_model
from tests.tiny import UNEVEN, make_engine, make_tokenizer

SAMPLING = SamplingParams(max_completion_length=12, seed=5)
ROWS = {"bloom", "mpt"}
"""Their biases follow from the order of the keys."""


def both_ways(engine: TransformersEngine, *requests: DrawRequest) -> list[list[list[list[Completion]]]]:
    """With branches where the model takes them, then a row per sample."""
    usual = engine.complete(requests)
    engine.prompt_cache = "copied"
    return [usual, engine.complete(requests)]


def assert_same(one: Any, other: Any) -> None:
    for first, second in zip(flat(one), flat(other), strict=True):
        assert (first.token_ids, first.finish_reason) == (second.token_ids, second.finish_reason)
        torch.testing.assert_close(
            torch.tensor(first.logprobs), torch.tensor(second.logprobs), rtol=0, atol=2e-5
        )


def flat(drawn: list[list[list[Completion]]]) -> list[Completion]:
    return [completion for groups in drawn for group in groups for completion in group]


def compare(kind: str) -> str:
    if not known(kind):
        pytest.skip("not in this version of transformers")
    try:
        engine = TransformersEngine(tiny_model(kind), make_tokenizer())
    except ModelError as error:
        pytest.skip(f"refused in this version of transformers: {error}")
    way = engine.prompt_cache
    assert_same(*both_ways(engine, DrawRequest(UNEVEN, 5, SAMPLING)))
    return way


@pytest.mark.parametrize("kind", COMMON)
def test_branches_draw_what_rows_draw(kind: str) -> None:
    assert compare(kind) == {"bloom": "copied", "mpt": "copied", "falcon": "branches"}.get(kind, "shared")


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(set(DRAWN) - set(COMMON)))
def test_branches_draw_what_rows_draw_in_rarer_architectures(kind: str) -> None:
    compare(kind)


@pytest.mark.parametrize("most", [16, 3, 2])
def test_branches_that_end_leave_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Groups of other sizes in one batch, several rows a prompt, completions that end early."""
    monkeypatch.setattr(engine_module, "BRANCHES", most)
    engine = make_engine()
    engine.end_ids = frozenset(range(0, 64, 5))  # about every fifth token ends one
    moved = []
    monkeypatch.setattr(InPlaceLayer, "take", counting(InPlaceLayer.take, moved))
    requests = [
        DrawRequest(UNEVEN, 7, SAMPLING),
        DrawRequest(UNEVEN[:2], 6, SamplingParams(max_completion_length=12, seed=6)),
    ]
    one, other = both_ways(engine, *requests)
    assert_same(one, other)
    lengths = {len(completion.token_ids) for completion in flat(one)}
    assert min(lengths) < 3 < max(lengths)
    assert moved


def counting(function: Any, calls: list[Any]) -> Any:
    def counted(*arguments: Any) -> Any:
        calls.append(arguments)
        return function(*arguments)

    return counted


def test_a_prompts_keys_are_held_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """8 samples of a prompt of 20 tokens and 4 new ones: 20 + 8 x 4 places, not 8 x (20 + 4)."""
    buffers: list[torch.Size] = []
    expand = module.expand_cache

    def seen(cache: Any, rows: Any, capacity: int) -> None:
        expand(cache, rows, capacity)
        buffers.append(cache.layers[0]._buffers[0].shape)

    monkeypatch.setattr(module, "expand_cache", seen)
    engine = make_engine()
    buffers.clear()
    prompts = [Prompt("p", "", [5] * 20)]
    both_ways(engine, DrawRequest(prompts, 8, SamplingParams(max_completion_length=4)))
    assert [(shape[0], shape[2]) for shape in buffers] == [(1, 52), (8, 24)]


@pytest.mark.parametrize(
    ("counts", "most", "branches"),
    [
        ([8, 8], 16, 8),
        ([16, 16, 16], 16, 16),
        ([64], 16, 16),
        ([1, 1, 1], 16, 1),
        ([16, 2], 16, 1),  # 32 places for 18 samples
        ([16, 14], 16, 16),
        ([20], 16, 10),
        ([7, 6], 3, 3),
        ([5], 1, 1),
    ],
)
def test_how_many_branches(counts: list[int], most: int, branches: int) -> None:
    assert branches_for(counts, most) == branches
