"""A model is asked whether completions may share a row, and has a row each where they may not."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoConfig, MistralConfig, PreTrainedModel

from nonpareil.models.logprobs import TokenSequences, completion_token_logprobs
from nonpareil.models.packing_check import takes_rows
from tests.tiny import LLAMA, make_model


def asked(model: PreTrainedModel, prompt: int, completions: int = 3, length: int = 3) -> bool:
    tokens = [6 + i * 5 % 13 for i in range(64)]
    sequences = TokenSequences(
        [tokens[:prompt]] * completions, [tokens[i : i + length] for i in range(completions)]
    )
    return takes_rows(model, sequences, sequences.in_rows(completions))


def of_config(config: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def neo(window: int) -> PreTrainedModel:
    """Half of its layers look back a window of columns, which no cache knows of."""
    return of_config(
        GPTNeoConfig(
            vocab_size=19,
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            attention_types=[[["global", "local"], 1]],
            window_size=window,
            max_position_embeddings=64,
            initializer_range=0.2,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def test_most_models_take_shared_rows() -> None:
    for kind in ("llama_grouped_heads", "tied", "gpt2", "opt"):
        assert asked(make_model(kind), 9)


@pytest.mark.parametrize("kind", ["bloom_without_window", "linear_and_full_attention"])
def test_biases_by_column_and_states_along_the_row_are_known_before(kind: str) -> None:
    assert not asked(make_model(kind), 9)


def test_a_window_is_shared_up_to_its_width_and_no_further() -> None:
    model = of_config(MistralConfig(**LLAMA, sliding_window=20))
    assert asked(model, 14)  # 14 + 3 x 2 columns
    assert not asked(model, 15)
    assert asked(model, 10), "narrower rows are taken as before"


def test_a_window_that_no_cache_knows_shows_once_rows_are_wide() -> None:
    model = neo(16)
    assert asked(model, 6)
    assert not asked(model, 14)
    assert not asked(model, 6), "it is of no kind that can be trusted"


def test_a_row_without_numbers_says_nothing_of_the_model() -> None:
    model = make_model()
    weights = model.get_input_embeddings().weight
    kept = weights.detach().clone()
    with torch.no_grad():
        weights.fill_(torch.nan)
        assert not asked(model, 9)
        weights.copy_(kept)
    assert asked(model, 9)


def test_a_completion_without_numbers_takes_them_from_no_other() -> None:
    """In a shared row, 0 times NaN would reach the others; the one that is bad is to be named."""
    model = make_model()
    bad = TokenSequences([[5, 6, 7]] * 4, [[8, 9], [10, 11], [8, 12], [13]])
    with torch.no_grad():
        model.get_input_embeddings().weight[10] = torch.nan
        rows = completion_token_logprobs(model, bad, sizes=[4])
    assert rows.isfinite().all(-1).tolist() == [True, False, True, True]


def test_a_model_is_asked_once_as_long_as_rows_get_no_wider() -> None:
    model, passes = make_model(), 0

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1

    model.model.register_forward_hook(count)
    assert asked(model, 9)
    first = passes
    assert asked(model, 9)
    assert asked(model, 7)
    assert passes == first
    assert asked(model, 12)
    assert passes > first


def test_other_kinds_of_attention_take_no_such_mask() -> None:
    model = make_model()
    model.config._attn_implementation_internal = "flash_attention_2"
    assert not asked(model, 9)


def test_a_model_whose_weights_are_no_numbers_is_not_trusted_and_nothing_is_raised() -> None:
    model = make_model()
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    assert not asked(model, 9)


def test_asking_costs_no_gradient_under_autocast() -> None:
    gradients = []
    for ask in (True, False):
        model = make_model()
        with torch.autocast("cpu", torch.bfloat16):
            completion_token_logprobs(model, TokenSequences([[1, 6]], [[7, 8]])).sum().backward()
            model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            if ask:
                assert asked(model, 9)
            completion_token_logprobs(model, TokenSequences([[1, 6]], [[7, 8]])).sum().backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)
