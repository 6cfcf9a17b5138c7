"""Logits that are NaN or infinite: nothing is drawn from them. -inf alone rules a token out."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from nonpareil.engines.finite import check_draws
from nonpareil.engines.transformers import DrawRequest
from nonpareil.errors import NotFiniteError
from nonpareil.records import Draws, SamplingParams
from nonpareil.rollouts import draw_and_score
from tests.tiny import GOOD, UNEVEN, favour, forced_logprobs, make_engine, make_model, prompts_of

SAMPLING = SamplingParams(max_completion_length=4, seed=1)
NAN, INF = float("nan"), float("inf")


def overflowing() -> PreTrainedModel:
    """Every weight is a float16; the sums that follow the token "good", which is never drawn, are not."""
    model = favour(make_model(mlp_bias=True), GOOD, -INF)
    with torch.no_grad():
        model.model.embed_tokens.weight[GOOD, 0] = 6e4
        model.model.layers[0].mlp.down_proj.bias[0] = 1e4
    return model


@pytest.mark.parametrize("value", [NAN, INF])
def test_one_bad_logit_of_a_whole_vocabulary_is_told_with_its_place(value: float) -> None:
    model = favour(make_model(), GOOD, value)
    with pytest.raises(
        NotFiniteError, match=r"prompt p0-7, completion 0, token 0 .*logits are NaN or infinite"
    ):
        make_engine(model).draw(UNEVEN, 2, SAMPLING)


@pytest.mark.parametrize("kept", [{"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.1}, {"temperature": 0.5}])
def test_whatever_part_of_the_vocabulary_is_kept(kept: dict[str, float]) -> None:
    model = favour(make_model(), GOOD, NAN)
    with pytest.raises(NotFiniteError, match="logits are NaN"):
        make_engine(model).draw(UNEVEN, 2, SamplingParams(4, seed=1, **kept))


def test_no_token_left_is_no_distribution() -> None:
    model = make_model()
    favour(model, GOOD, -INF).get_output_embeddings().bias.data.fill_(-INF)
    with pytest.raises(NotFiniteError, match="token 0"):
        make_engine(model).draw(UNEVEN, 2, SAMPLING)


def test_tokens_ruled_out_are_never_drawn_and_the_others_have_their_log_probs() -> None:
    model = favour(make_model(), GOOD, -INF)
    for prompt, draws in zip(UNEVEN, make_engine(model).draw(UNEVEN, 8, SAMPLING), strict=True):
        for ids, logprobs in zip(draws.completion_token_ids, draws.logprobs, strict=True):
            assert GOOD not in ids
            expected = forced_logprobs(model, prompt.token_ids, ids)
            torch.testing.assert_close(torch.tensor(logprobs), expected, atol=1e-4, rtol=0)


def test_an_overflow_in_float16_names_the_prompt_and_the_other_rows_are_as_alone() -> None:
    """Of three prompts drawn in one padded batch the second overflows; what the others draw does not change."""
    prompts = prompts_of([1, 7], [1, 9, GOOD, 7, 12], [1, 17, 16])
    half = overflowing().half()
    with pytest.raises(
        NotFiniteError, match=r"prompt p1-5, completion 0, token 0 .*dtype=bfloat16, or float32"
    ):
        make_engine(half).draw(prompts, 2, SAMPLING)
    assert make_engine(overflowing()).draw(prompts, 2, SAMPLING), "in float32 nothing overflows"
    together = make_engine(half).draw_together([DrawRequest(prompts, 2, SAMPLING)])[0]
    for place in (0, 2):
        alone = make_engine(half).draw([prompts[place]], 2, SAMPLING)[0]
        assert alone.completion_token_ids == together[place].completion_token_ids
        for ours, theirs in zip(alone.logprobs, together[place].logprobs, strict=True):
            assert ours == pytest.approx(theirs, abs=0.02)


def test_a_token_in_the_middle_is_found() -> None:
    draws = Draws(["a", "b"], [[4, 5], [6, 7, 8]], ["stop", "stop"], [[-1.0, -0.5], [-1.0, -0.1, NAN]])
    with pytest.raises(
        NotFiniteError, match=r"prompt p0-1, completion 1, token 2 .*in bfloat16: the weights"
    ):
        check_draws(prompts_of([1]), [draws], torch.bfloat16)
    check_draws(prompts_of([1]), [Draws([""], [[]], ["stop"], [[]])], torch.float32)


def test_a_run_keeps_the_shards_before_it_and_says_so(tmp_path: Path) -> None:
    prompts = prompts_of([1, 7], [1, 8], [1, 9, GOOD, 7, 12])
    engine = make_engine(overflowing().half())
    with pytest.raises(NotFiniteError, match=r"prompt p2-5, .*2 of 3 shards stay in .*a new dtype"):
        draw_and_score(prompts, engine, None, SAMPLING, 2, tmp_path / "out", model_info={}, shard_size=1)
    assert len(list((tmp_path / "out" / "data").glob("*.parquet"))) == 2
