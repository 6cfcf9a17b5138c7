"""Completions of a prompt as branches of one row draw what rows of their own draw."""

import copy
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from inspect import signature
from math import isfinite
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface

from nonpareil.engines import shared_layers, shared_prompts
from nonpareil.engines import transformers as engine_module
from nonpareil.engines.attention import NAME, attend, attention_configs, shared_attention, sign
from nonpareil.engines.batches import DrawRequest
from nonpareil.engines.branches import Branches, branches_for
from nonpareil.engines.cache import InPlaceLayer, in_place_cache, is_in_place
from nonpareil.engines.load_check import LONGEST
from nonpareil.engines.rows import Completion
from nonpareil.engines.shared_layers import ApartLayer, JointLayer, Room
from nonpareil.engines.shared_prompts import SharedPrompts
from nonpareil.engines.transformers import TransformersEngine
from nonpareil.engines.ways import BRANCHED, COPIED, SHARED
from nonpareil.errors import ModelError
from nonpareil.records import Prompt, SamplingParams
from tests.architectures import COMMON, DRAWN, known, tiny_model
from tests.tiny import UNEVEN, make_engine, make_tokenizer

SAMPLING = SamplingParams(max_completion_length=12, seed=5)
TAKEN = {"bloom": COPIED, "mpt": COPIED, "falcon": BRANCHED}
"""Biases that follow from the order of the keys; attention that no config names. The others share."""


def both_ways(engine: TransformersEngine, *requests: DrawRequest) -> list[list[list[list[Completion]]]]:
    """As the model was found to take it, then a copy of the prompt per sample."""
    usual = engine.complete(requests)
    engine.ways.taken = []
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
    way = engine.describe()["prompt_cache"]
    assert_same(*both_ways(engine, DrawRequest(UNEVEN, 5, SAMPLING)))
    return way


@pytest.mark.parametrize("kind", COMMON)
def test_shared_prompts_and_branches_draw_what_copies_draw(kind: str) -> None:
    # Newer transformers has eager attention alone for gemma2, whose scores are capped.
    model = tiny_model(kind)
    others = SHARED if attention_configs(model) else BRANCHED
    narrow = not is_in_place(in_place_cache(model.config, LONGEST))  # a window of a few tokens
    assert compare(kind) == (COPIED if narrow else TAKEN.get(kind, others))


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(set(DRAWN) - set(COMMON)))
def test_they_do_in_rarer_architectures(kind: str) -> None:
    compare(kind)


@pytest.mark.parametrize(
    ("layer", "masked", "most"),
    [
        (JointLayer, 99, 16),
        (ApartLayer, 0, 16),
        (InPlaceLayer, 2, 16),
        (InPlaceLayer, 2, 3),
        (InPlaceLayer, 2, 2),
    ],
)
def test_samples_that_end_leave_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, layer: Any, masked: float, most: int
) -> None:
    """Groups of other sizes in one batch, several rows a prompt, completions that end early, room that grows."""
    monkeypatch.setattr(engine_module, "BRANCHES", most)
    monkeypatch.setattr(shared_prompts, "MOST_MASKED", masked)
    monkeypatch.setattr(shared_layers, "GROWTH", 3)
    engine = make_engine()
    assert engine.ways.first == SHARED
    engine.ways.taken = [BRANCHED if layer is InPlaceLayer else SHARED]
    engine.end_ids = frozenset(range(0, 64, 5))  # about every fifth token ends one
    moved: list[Any] = []
    monkeypatch.setattr(layer, "take", counting(layer.take, moved))
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


@pytest.mark.parametrize(
    ("way", "tokens"), [(SHARED, 20 + 8 * 4), (BRANCHED, 20 + 8 * 4), (COPIED, 8 * (20 + 4))]
)
def test_a_prompts_keys_are_held_once(monkeypatch: pytest.MonkeyPatch, way: str, tokens: int) -> None:
    """8 samples of a prompt of 20 tokens and 4 new ones: the bytes of the cache in each way."""
    held: list[int] = []
    engine = make_engine()
    forward = engine._forward

    def watched(cache: Any) -> Any:
        def passed(*arguments: Any) -> Any:
            logits = forward(cache)(*arguments)
            held.append(sum({t.data_ptr(): t.nbytes() for t in storages(cache)}.values()))
            return logits

        return passed

    monkeypatch.setattr(engine, "_forward", watched)
    engine.ways.taken = [way]
    engine.complete([DrawRequest([Prompt("p", "", [5] * 20)], 8, SamplingParams(max_completion_length=4))])
    config = engine.model.config
    size = config.hidden_size // config.num_attention_heads * config.num_key_value_heads * 4
    assert max(held) == tokens * size * 2 * config.num_hidden_layers


def storages(cache: Any) -> list[Any]:
    """What holds the keys and values of a cache."""
    parts = [
        part for layer in cache.layers for part in (layer.keys, layer.values, *getattr(layer, "prompt", ()))
    ]
    return [part.untyped_storage() for part in parts]


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("masked", [0, 99])
@pytest.mark.parametrize("m", [1, 5])
def test_room_grows_and_no_padding_is_seen(
    monkeypatch: pytest.MonkeyPatch, m: int, masked: float, whole: bool
) -> None:
    """Prompts of one length, without a mask, and of uneven ones; apart and joint; room not filled, or left out."""

    class Here(Room):
        def __init__(self, *arguments: Any):
            super().__init__(*arguments)
            self.whole = whole

    monkeypatch.setattr(shared_prompts, "Room", Here)
    monkeypatch.setattr(shared_layers, "GROWTH", 5)
    monkeypatch.setattr(shared_prompts, "MOST_MASKED", masked)
    for prompts in ([UNEVEN[0], replace(UNEVEN[0], prompt_id="again")], UNEVEN):
        engine = make_engine()
        assert_same(*both_ways(engine, DrawRequest(prompts, m, SAMPLING)))


@pytest.mark.parametrize(
    ("count", "tokens", "kind"),
    [(5, 3, Branches), (5, 40, SharedPrompts), (1, 40, Branches), (2, 40, Branches)],
)
def test_on_a_gpu_each_way_has_its_lengths(
    monkeypatch: pytest.MonkeyPatch, count: int, tokens: int, kind: Any
) -> None:
    """Prompts of up to 9 tokens; a row of branches holds four times the keys of a sample at most."""
    engine = make_engine()
    engine.ways.on_gpu = True
    engine.check()
    assert engine.ways.taken == [SHARED, BRANCHED]
    engine.end_ids = frozenset([10**6])  # no token: rows stay
    made: list[Any] = []
    samples = engine._samples
    monkeypatch.setattr(engine, "_samples", lambda *given: made.append(samples(*given)) or made[-1])
    assert_same(*both_ways(engine, DrawRequest(UNEVEN, count, SamplingParams(max_completion_length=tokens))))
    assert [type(one) for one in made] == [kind, Branches]
    assert made[0].branches == count if kind is Branches else made[0].places.each == count


@pytest.mark.parametrize("limit", [{"window_size": 48}, {"max_position_embeddings": 48}])
def test_a_model_that_counts_its_keys_gets_copies_once_they_are_many(limit: dict[str, int]) -> None:
    """GPT-Neo's local layers cut their window by the order of the keys, from a buffer as wide as its positions."""
    model = tiny_model("gpt_neo", **{"max_position_embeddings": 512, "window_size": 256, **limit})
    engine = TransformersEngine(model, make_tokenizer())
    engine.end_ids = frozenset([10**6])  # no token: rows stay
    few, many = (DrawRequest(UNEVEN, 16, SamplingParams(max_completion_length=n, seed=5)) for n in (2, 20))
    assert engine.ways.taken == [BRANCHED]
    for asked, reached in ((few, True), (many, False)):
        assert_same(*both_ways(engine, asked))
        engine.ways.taken = [BRANCHED]
        longest = max(len(prompt.token_ids) for prompt in UNEVEN)
        assert (engine.ways.key_order.most >= longest + 16 * asked.sampling.max_completion_length) is reached


def test_a_prompt_without_numbers_takes_them_from_no_other() -> None:
    """Others' draws stay, also where groups are uneven since some of their samples have left."""
    engine = make_engine()
    engine.end_ids = frozenset(range(1, 64, 5))  # not token 0, which NaN logits give
    engine.keeps_not_finite = True
    prompts = [Prompt(name, "", [token, 7, 8, 9] * 12) for name, token in (("bad", 17), ("a", 6), ("b", 11))]
    asked = DrawRequest(prompts, 6, SAMPLING)
    with torch.no_grad():
        engine.model.get_input_embeddings().weight[17] = torch.nan
    engine.model.get_output_embeddings().register_forward_hook(never(17))
    ours, copies = both_ways(engine, asked)
    assert_same([ours[0][1:]], [copies[0][1:]])
    assert all(isfinite(number) for group in ours[0][1:] for row in group for number in row.logprobs)


def never(token: int) -> Any:
    def hook(head: Any, inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        return logits.index_fill(-1, torch.tensor([token]), -1e4)

    return hook


def test_threads_take_turns() -> None:
    """A drawing sets the model's attention for its passes."""
    engine = make_engine()
    asked = DrawRequest(UNEVEN, 3, SAMPLING)
    alone = engine.complete([asked])
    with ThreadPoolExecutor(4) as threads:
        for drawn in threads.map(lambda _: engine.complete([asked]), range(12)):
            assert drawn == alone


def test_a_layer_knows_how_many_tokens_it_has() -> None:
    """Some models count positions by it, before and behind their attention."""
    engine, lengths = make_engine(), []
    prompts = [prompt for prompt in UNEVEN if len(prompt.token_ids) == max(len(p.token_ids) for p in UNEVEN)]

    def ask(layer: Any, args: Any, kwargs: dict[str, Any]) -> None:
        cache = next(kwargs[name] for name in ("past_key_values", "cache") if name in kwargs)
        lengths.append(cache.layers[0].get_seq_length())

    attention: Any = engine.model.model.layers[0].self_attn
    attention.register_forward_pre_hook(ask, with_kwargs=True)
    attention.register_forward_hook(
        lambda layer, args, kwargs, output: ask(layer, args, kwargs), with_kwargs=True
    )
    both_ways(engine, DrawRequest(prompts, 2, SamplingParams(max_completion_length=4)))
    half = len(lengths) // 2
    assert lengths[:half] == lengths[half:]
    width = len(prompts[0].token_ids)
    assert lengths[:half] == [0, width, width, width + 1, width + 1, width + 2, width + 2, width + 3]


def test_a_model_that_holds_more_than_keys_says_that_it_copies() -> None:
    assert TransformersEngine(tiny_model("jamba"), make_tokenizer()).describe()["prompt_cache"] == COPIED


def test_a_model_attends_as_before_once_drawn() -> None:
    engine = make_engine()
    asked = DrawRequest(UNEVEN, 3, SAMPLING)
    engine.complete([asked])
    assert engine.model.config._attn_implementation == "sdpa"
    with suppress(ZeroDivisionError), shared_attention(attention_configs(engine.model)):
        assert engine.model.config._attn_implementation == NAME
        raise ZeroDivisionError
    assert engine.model.config._attn_implementation == "sdpa"


def test_another_attention_than_the_usual_is_left_to_the_model() -> None:
    engine = TransformersEngine(tiny_model("llama", attn_implementation="eager"), make_tokenizer())
    assert (engine.ways.first, engine.model.config._attn_implementation) == (BRANCHED, "eager")
    assert_same(*both_ways(engine, DrawRequest(UNEVEN, 5, SAMPLING)))


@pytest.mark.parametrize(
    "asked",
    [{"attention_mask": torch.zeros(1, 1, 1, 1)}, {"dropout": 0.1}, {"position_bias": torch.ones(1)}, {}],
)
def test_what_a_model_asks_for_beside_is_refused_not_left_out(asked: dict[str, Any]) -> None:
    """A mask, dropout, a bias; or keys that are not the cache's own."""
    keys = torch.zeros(1, 2, 4, 8)
    if asked:
        sign(keys, HOLDER)
    if "position_bias" in asked and "position_bias" not in signature(AttentionInterface()["sdpa"]).parameters:
        pytest.skip("not in this version of transformers")
    with pytest.raises(NotImplementedError, match="Linear attends in a way of its own"):
        attend(torch.nn.Linear(1, 1), keys[:, :, :1], keys, keys, **{"attention_mask": None, **asked})


class Holder:
    """Answers whatever reaches it."""

    def attend(self, query: Any, scale: float) -> Any:
        return query


HOLDER = Holder()


def test_keys_that_nothing_attends_to_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that reads its cache past the attention that it was told to use."""
    engine = make_engine()
    model: Any = engine.model
    for layer in model.model.layers:
        layer.self_attn.config = copy.copy(layer.self_attn.config)  # looks there for its attention
    engine.ways.taken = [SHARED]
    monkeypatch.setattr(engine_module, "attention_configs", lambda model: [model.config])
    with pytest.raises(
        ModelError, match=r"in a way of its own; give another attn_implementation .it has sdpa; eager"
    ):
        engine.complete([DrawRequest(UNEVEN, 1, SAMPLING)])


def test_a_kernel_that_is_not_there_for_longer_rows_is_told_with_its_remedy() -> None:
    """As some are not on a device, or beyond a length: after the check of a few tokens, in the midst of a draw."""

    def short(module: Any, query: Any, key: Any, *arguments: Any, **options: Any) -> Any:
        if key.shape[-2] > 14:
            raise NotImplementedError("no kernel for this many keys")
        return AttentionInterface()["sdpa"](module, query, key, *arguments, **options)

    AttentionInterface.register("short_rows", short)
    AttentionMaskInterface.register("short_rows", AttentionMaskInterface()["sdpa"])
    model = tiny_model("llama", attn_implementation="short_rows")
    engine = TransformersEngine(model, make_tokenizer())
    with pytest.raises(
        ModelError, match=r"no kernel for this many keys; give another attn_implementation .it has short"
    ):
        engine.draw(UNEVEN, 2, replace(SAMPLING, max_completion_length=30))


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
