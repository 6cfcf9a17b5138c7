"""Segment by segment: the same draws and log-probs as whole ones, whatever is given up or multiplied between."""

from dataclasses import replace

import pytest
import torch

from nonpareil.engines.guidance import Guide
from nonpareil.engines.segments import SegmentingEngine
from nonpareil.errors import ConfigError, DataError, NotFiniteError
from nonpareil.maths.guidance import Guidance
from nonpareil.records import Draws, SamplingParams
from tests.engines.guided import Enumerated
from tests.tiny import UNEVEN, make_model, make_tokenizer, worst_error

SAMPLING = SamplingParams(max_completion_length=12, seed=5, temperature=0.9)
KINDS = ["llama_grouped_heads", "gemma2_capped", "linear_and_full_attention"]
"""Shared prompts, a copy of the prompt a sample, and layers that keep a state in the place of keys."""


def engine_of(kind: str = KINDS[0], **settings) -> SegmentingEngine:
    return SegmentingEngine(make_model(kind), make_tokenizer(), **settings)


def whole(engine: SegmentingEngine, count: int, lengths: list[int], children: int = 1) -> list[Draws]:
    """Drawn by segments, each of which all go on from; the last gets `children` more."""
    with engine.segments(UNEVEN, count, SAMPLING) as draws:
        for length in lengths:
            draws.draw_to(length)
            last = length == lengths[-1]
            draws.go_on(
                [
                    (one, [one.sample, *(one.sample + count * i for i in range(1, children if last else 1))])
                    for one in draws.partials
                ]
            )
        draws.draw_to(SAMPLING.max_completion_length)
        return [
            draws.draws(place, [one for one in draws.partials if one.prompt == place])
            for place in range(len(UNEVEN))
        ]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_never_given_up_is_what_is_drawn_at_once(kind):
    engine = engine_of(kind)
    for one, other in zip(whole(engine, 4, [1, 2, 7]), engine.draw(UNEVEN, 4, SAMPLING), strict=True):
        assert one.completion_token_ids == other.completion_token_ids
        assert one.finish_reasons == other.finish_reasons
        assert one.completions == other.completions
        for mine, theirs in zip(one.logprobs, other.logprobs, strict=True):
            assert mine == pytest.approx(theirs, abs=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_children_share_what_stands_and_draw_on_by_themselves_with_true_log_probs(kind):
    engine = engine_of(kind)
    drawn = whole(engine, 3, [2, 4], children=3)
    assert worst_error(engine.model, UNEVEN, drawn, SAMPLING) < 5e-5
    alone = engine.draw(UNEVEN, 3, SAMPLING)
    going = apart = 0
    for draws, first in zip(drawn, alone, strict=True):
        ids = draws.completion_token_ids
        for parent in first.completion_token_ids:
            family = [each for each in ids if each[:4] == parent[:4]]
            assert parent in family  # the first child has its parent's random numbers
            if len(parent) > 5:
                going += 1
                apart += len({tuple(each) for each in family}) > 1
    assert going >= 4
    assert apart >= 0.7 * going


def test_tokens_are_counted_and_what_is_given_up_is_drawn_no_further():
    engine = engine_of()
    with engine.segments(UNEVEN, 6, SAMPLING) as draws:
        assert sum(draws.draw_to(3)) == sum(len(one.token_ids) for one in draws.partials)
        kept = [one for one in draws.partials if one.sample == 2 and one.prompt != 1]
        before = [len(one.token_ids) for one in kept]
        draws.go_on([(one, [2]) for one in kept])
        drawn = draws.draw_to(SAMPLING.max_completion_length)
        assert drawn[1] == 0
        after = [len(one.token_ids) for one in draws.partials]
        assert [one for place, one in enumerate(drawn) if place != 1] == [
            y - x for x, y in zip(before, after, strict=True)
        ]
        draws.go_on([])
        assert draws.draw_to(SAMPLING.max_completion_length) == [0] * len(UNEVEN)


def test_what_cannot_be_drawn_so_is_refused_before_any_pass():
    engine, policy = engine_of(), make_model()
    for change, named in (
        ({"stop": ("good",)}, "stop="),
        ({"repetition_penalty": 1.3}, "repetition_penalty="),
    ):
        with pytest.raises(ConfigError, match=named), engine.segments(UNEVEN, 2, replace(SAMPLING, **change)):
            pass
    with pytest.raises(DataError, match="window"), engine.segments(UNEVEN, 2, SamplingParams(60)):
        pass
    guide = Guide(Enumerated(policy, [1, 8], 2), Guidance())
    guided = engine_of(guide=guide, checked=False)
    with pytest.raises(ConfigError, match="guide"), guided.segments(UNEVEN, 2, SAMPLING):
        pass


def test_logits_that_are_no_numbers_are_refused():
    engine = engine_of()
    with torch.no_grad():
        engine.model.get_output_embeddings().weight[:] = torch.nan
    with engine.segments(UNEVEN, 2, SAMPLING) as draws:
        draws.draw_to(2)
        with pytest.raises(NotFiniteError, match="NaN or infinite"):
            draws.draws(0, draws.partials[:2])
