"""Where a completion ends, and that ended ones leave the batch without a trace."""

import pytest
import torch

from nonpareil.engines import rows as engine_module
from nonpareil.engines.transformers import TransformersEngine
from nonpareil.models.loading import end_token_ids
from nonpareil.records import Draws, SamplingParams
from tests.tiny import (
    END,
    UNEVEN,
    favour,
    make_engine,
    make_model,
    make_tokenizer,
    prompts_of,
    said,
    worst_error,
)

USER = 4  # a second special token that ends a turn
SAMPLING = SamplingParams(max_completion_length=10, seed=2)


def completions(drawn: list[Draws]) -> list[tuple[list[int], str, str]]:
    return [
        each
        for d in drawn
        for each in zip(d.completion_token_ids, d.finish_reasons, d.completions, strict=True)
    ]


def test_every_end_id_of_the_generation_config_ends_a_completion() -> None:
    model = favour(make_model(), USER, 1.0)
    model.generation_config.eos_token_id = [END, USER]
    found = completions(make_engine(model).draw(UNEVEN, 12, SAMPLING))
    ends = {END, USER}
    for ids, reason, text in found:
        assert not ends & set(ids[:-1]), "an end token only stands last"
        assert reason == ("stop" if ids[-1] in ends else "length")
        assert 1 <= len(ids) <= 10
        if reason == "length":
            assert len(ids) == 10
        assert text == said(ids, ends), (
            "of the special tokens, ends and borders alone are left out of the text"
        )
    assert {ids[-1] for ids, _, _ in found} >= ends
    assert {reason for _, reason, _ in found} == {"stop", "length"}


def test_an_end_token_drawn_last_is_a_stop() -> None:
    model = favour(make_model(), END, 50.0)
    found = completions(make_engine(model).draw(UNEVEN, 2, SamplingParams(max_completion_length=1)))
    assert [(ids, reason, text) for ids, reason, text in found] == [([END], "stop", "")] * 10


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [([2, 9], 7, {2, 9}), (4, 7, {4}), (None, 7, {7}), (None, [5, 7], {5, 7}), (None, None, {END})],
)
def test_end_ids_come_from_the_generation_config_then_the_model_then_the_tokenizer(
    generation: object, config: object, expected: set[int]
) -> None:
    model = make_model(eos_token_id=config)
    model.generation_config.eos_token_id = generation
    assert end_token_ids(model, make_tokenizer()) == expected


def test_without_an_end_id_every_completion_has_full_length() -> None:
    engine = make_engine()
    engine.end_ids = frozenset()
    found = completions(engine.draw(UNEVEN, 3, SAMPLING))
    assert {(len(ids), reason) for ids, reason, _ in found} == {(10, "length")}


def test_padding_that_equals_the_end_token_changes_nothing() -> None:
    model = favour(make_model(), END, 1.0)
    usual = TransformersEngine(model, make_tokenizer()).draw(UNEVEN, 6, SAMPLING)
    model.config.pad_token_id = END
    same = TransformersEngine(model, make_tokenizer(pad="</s>")).draw(UNEVEN, 6, SAMPLING)
    assert [d.completion_token_ids for d in usual] == [d.completion_token_ids for d in same]
    assert [d.logprobs for d in usual] == [d.logprobs for d in same]
    assert any(ids[-1] == END for ids, _, _ in completions(same))


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_tokenizers_padding_side_is_of_no_account(side: str) -> None:
    model = make_model()
    drawn = TransformersEngine(model, make_tokenizer(padding_side=side)).draw(UNEVEN, 3, SAMPLING)
    assert worst_error(model, UNEVEN, drawn, SAMPLING) < 1e-4


@pytest.mark.parametrize("kind", ["llama_grouped_heads", "mistral_sliding", "linear_and_full_attention"])
def test_rows_that_leave_do_not_disturb_those_that_stay(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = favour(make_model(kind), END, 1.5)
    model.generation_config.eos_token_id = END
    sampling = SamplingParams(max_completion_length=24, seed=0)
    drawn = make_engine(model).draw(UNEVEN, 12, sampling)
    lengths = {len(ids) for ids, _, _ in completions(drawn)}
    assert len(lengths) > 4, "rows must leave at different steps"
    assert worst_error(model, UNEVEN, drawn, sampling) < 1e-4
    for threshold in (-1.0, 1.0):  # nobody leaves before all are done; everybody leaves at once
        monkeypatch.setattr(engine_module, "RETIRE_BELOW", threshold)
        other = make_engine(model).draw(UNEVEN, 12, sampling)
        assert completions(other) == completions(drawn)


def test_ended_completions_stop_costing() -> None:
    model = favour(make_model(), END, 3.0)
    fed: list[int] = []
    engine = make_engine(model)
    hook = model.get_input_embeddings().register_forward_pre_hook(
        lambda _, args: fed.append(args[0].shape[0]) if args[0].shape[1] == 1 else None
    )
    prompts = prompts_of([1, 7, 8], [1, 9, 9])
    drawn = engine.draw(prompts, 32, SamplingParams(max_completion_length=40, seed=0))
    hook.remove()
    needed = sum(len(ids) - 1 for ids, _, _ in completions(drawn))
    everything = 64 * (max(len(ids) for ids, _, _ in completions(drawn)) - 1)
    assert needed < everything / 2, "most must end early for this to show anything"
    assert sum(fed) <= needed / engine_module.RETIRE_BELOW
    assert torch.tensor(fed).diff().max() <= 0
