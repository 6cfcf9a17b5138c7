"""How many tokens a batch of draws may hold on a GPU: its keys fit; on a CPU all is as it was given."""

import pytest
import torch
from transformers import DynamicCache, LlamaForCausalLM, PreTrainedModel

from nonpareil.engines import draw_memory
from nonpareil.engines.batches import DrawRequest, batches
from nonpareil.engines.draw_memory import LARGER, cache_bytes, drawing_bounds, tokens_within
from nonpareil.records import Prompt, SamplingParams
from tests.architectures import tiny_config, tiny_model
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


@pytest.mark.parametrize("kind", ["falcon", "gpt_bigcode", "mistral", "phi3", "qwen2"])
def test_a_tokens_keys_are_never_taken_for_smaller_than_they_are(kind: str) -> None:
    model = tiny_model(kind)
    cache = DynamicCache(config=model.config)
    model(torch.tensor([[1, 2, 3]]), past_key_values=cache, use_cache=True)
    held = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    assert cache_bytes(model.config, 4) * 3 >= held


@pytest.mark.parametrize("kind", ["deepseek_v3", "gemma4_text"])
def test_keys_that_a_head_dim_does_not_tell_are_of_no_known_size(kind: str) -> None:
    """In transformers 5.10 two fifths of DeepSeek's, and half of Gemma 4's in its layers of full attention."""
    assert cache_bytes(tiny_config(kind), 2) is None


class AllLogits(LlamaForCausalLM):
    """A model that gives the logits of a whole prompt."""

    def forward(self, input_ids, attention_mask=None, past_key_values=None, use_cache=None, **unread):
        return super().forward(input_ids, attention_mask, None, past_key_values, use_cache=use_cache)


WIDE = {
    "keys": (lambda: make_model(), 0, True),
    "a sliding window": (lambda: make_model("mistral_sliding"), 0, True),
    "eager attention, of all tokens with all": (lambda: make_model("gemma2_capped"), 0, False),
    "a recurrent state for each row": (lambda: make_model("linear_and_full_attention"), 0, False),
    "logits of whole prompts": (lambda: AllLogits(make_model().config), 0, False),
    "a value's keys beside the model's": (lambda: make_model(), 9, False),
}


@pytest.mark.parametrize("case", WIDE)
def test_only_a_batch_whose_memory_is_keys_grows(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        draw_memory, "tokens_on", lambda device, per_token, most: most * LARGER
    )  # as on a GPU
    make, queries, grows = WIDE[case]
    model: PreTrainedModel = make()
    tokens, beside = drawing_bounds(model, 512, queries)
    if grows:
        logits = 32 * model.config.vocab_size // cache_bytes(model.config, 4)
        assert (tokens, beside) == (512 * LARGER, logits)
    else:
        assert (tokens, beside) == (512, queries)


def test_the_masks_of_long_prompts_count_beside_their_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = make_model(), []
    monkeypatch.setattr(
        draw_memory, "tokens_on", lambda device, per_token, most: asked.append(per_token) or most
    )
    for length in (1, 9):
        drawing_bounds(model, 512, 0, [DrawRequest([Prompt("p", "p", [1] * length)], 2, SamplingParams(4))])
    assert asked == [cache_bytes(model.config, 4) + 5 * length for length in (1, 9)]


def test_on_a_cpu_the_bounds_are_those_that_were_given() -> None:
    assert drawing_bounds(make_model(), 512, 7) == (512, 7)


def test_what_a_row_counts_besides_makes_fewer_rows() -> None:
    request = DrawRequest([Prompt("p", "p", list(range(6)))], 8, SamplingParams(4))
    assert [len(unit.samples) for units in batches([request], 40) for unit in units] == [4, 4]
    assert [len(unit.samples) for units in batches([request], 40, 10) for unit in units] == [2, 2, 2, 2]
