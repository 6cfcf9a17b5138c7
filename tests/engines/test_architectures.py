"""Over the architectures of transformers: what is drawn is what is scored, or the model is refused by name."""

import re
from pathlib import Path

import pytest
import torch
import transformers

from nonpareil.engines.cache import check_architecture
from nonpareil.engines.transformers import TransformersEngine
from nonpareil.errors import ModelError
from nonpareil.models.logprobs import TokenSequences, completion_token_logprobs
from nonpareil.records import SamplingParams
from tests.architectures import CACHE, COMMON, DRAWN, REFUSED, known, tiny_config, tiny_model
from tests.tiny import UNEVEN, make_tokenizer, worst_error

SAMPLING = SamplingParams(max_completion_length=12, seed=5)
LISTED_FOR = transformers.__version__.startswith("5.17.")
"""Whether this is the version that the lists are of: others know fewer models, or mended some."""
QUICK = ["bart", "bert", "minimax", "moshi", "openai-gpt", "roberta", "rwkv", "xlnet"]


def draw_and_compare(kind: str) -> None:
    """Drawn, and scored as training scores, against plain float32 passes over each sequence alone."""
    if not known(kind):
        pytest.skip("not in this version of transformers")
    model = tiny_model(kind)
    try:
        engine = TransformersEngine(model, make_tokenizer())
    except ModelError as error:
        if LISTED_FOR:
            raise
        pytest.skip(f"refused in this version of transformers: {error}")
    drawn = engine.draw(UNEVEN, 3, SAMPLING)
    assert len({tuple(ids) for draws in drawn for ids in draws.completion_token_ids}) > 10
    assert worst_error(model, UNEVEN, drawn, SAMPLING) < 1e-4
    with torch.no_grad():
        scored = completion_token_logprobs(model, TokenSequences.of(UNEVEN, drawn))
    for row, recorded in zip(scored, [row for draws in drawn for row in draws.logprobs], strict=True):
        torch.testing.assert_close(row[: len(recorded)], torch.tensor(recorded), rtol=0, atol=1e-4)


def refuse(kind: str) -> None:
    """Or, in another version of transformers, which may have mended it, drawn as it is scored."""
    if not (LISTED_FOR and known(kind)):
        draw_and_compare(kind)
        return
    model = tiny_model(kind)
    with pytest.raises(ModelError, match=REFUSED[kind]) as caught:
        TransformersEngine(model, make_tokenizer())
    assert type(model).__name__ in str(caught.value)
    assert "use a" in str(caught.value)


@pytest.mark.parametrize("kind", COMMON)
def test_what_is_drawn_is_what_is_scored(kind: str) -> None:
    draw_and_compare(kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(set(DRAWN) - set(COMMON)))
def test_what_is_drawn_is_what_is_scored_in_rarer_architectures(kind: str) -> None:
    draw_and_compare(kind)


def test_the_sweep_is_wide() -> None:
    assert sum(map(known, COMMON)) >= 12
    assert sum(map(known, DRAWN)) >= 60
    assert not set(DRAWN) & set(REFUSED)


@pytest.mark.parametrize("kind", QUICK)
def test_a_model_that_is_not_one_law_is_refused(kind: str) -> None:
    refuse(kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(set(REFUSED) - set(QUICK)))
def test_rarer_models_that_are_not_one_law_are_refused(kind: str) -> None:
    refuse(kind)


@pytest.mark.skipif(not LISTED_FOR, reason="other versions of transformers mended some")
@pytest.mark.parametrize("kind", [kind for kind, why in REFUSED.items() if why == CACHE])
def test_a_cache_of_another_kind_is_known_before_any_weight_is_read(kind: str) -> None:
    with pytest.raises(ModelError, match=CACHE):
        check_architecture(tiny_config(kind))


def test_the_documentation_names_what_is_drawn_and_what_is_refused() -> None:
    text = (Path(__file__).parents[2] / "docs" / "supported-models.md").read_text()
    named = [set(re.findall(r"`([\w-]+)`[,. |]", part)) for part in text.split("\n## ")[1:]]
    assert named[0] >= set(DRAWN)
    assert not named[0] & set(REFUSED)
    assert named[1] - {"model_type"} == set(REFUSED)
    assert f"{len(DRAWN)} architectures" in text
    assert f"{len(COMMON)} of them in every run" in text
