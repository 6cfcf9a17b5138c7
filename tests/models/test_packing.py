"""Completions of one prompt in one row give the log-probs and gradients of a row each."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from nonpareil.models.logprobs import (
    TokenSequences,
    completion_divergence,
    completion_logprobs,
    completion_token_logprobs,
    row_batches,
    token_budget_batches,
)
from nonpareil.models.packing import completions_per_row, even_sizes, pack, row_width
from nonpareil.models.packing_check import per_row, takes_rows
from tests.architectures import COMMON, DRAWN, known, tiny_model
from tests.tiny import END, make_model

SIZES = [3, 1, 2]
PROMPTS = [[1, 7, 8, 9, 10, 11, 12, 13, 9], [1], [1, 9, 9, 14]]
SEQUENCES = TokenSequences(
    prompt_ids=[PROMPTS[0], PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[2], PROMPTS[2]],
    completion_ids=[[8, END, 6, 7], [2], [17, 16, 15, 14, 13], [6, 6, 6], [END, END], [7, 9, 10, 11, 12, 2]],
)
"""Uneven prompts, groups and completions; one of a single token, and one prompt of one."""
SEPARATE = ["bloom", "gemma2", "gemma3_text", "mistral", "mixtral", "mpt", "phi3"]
"""Of the common ones: biases of their own, or a window of 4."""


def values_and_gradients(
    model: PreTrainedModel, sizes: list[int] | None, sequences: TokenSequences = SEQUENCES
) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    values = completion_token_logprobs(model, sequences, 0.7, sizes)
    weights = torch.linspace(-1.0, 2.0, values.numel()).view_as(values)  # no two tokens alike
    (values * weights).sum().backward()
    return values.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def same(model: PreTrainedModel, sizes: list[int]) -> None:
    values, gradients = values_and_gradients(model, None)
    shared, shared_gradients = values_and_gradients(model, sizes)
    torch.testing.assert_close(shared, values, rtol=1e-4, atol=2e-5)
    largest = max(gradient.abs().max().item() for gradient in gradients.values())
    torch.testing.assert_close(shared_gradients, gradients, rtol=1e-4, atol=1e-5 * max(1.0, largest))
    assert sum(gradient.abs().sum() for gradient in gradients.values()) > 1


def sweep(kind: str) -> None:
    if not known(kind):
        pytest.skip("not in this version of transformers")
    model = tiny_model(kind)
    if takes_rows(model, SEQUENCES, SEQUENCES.in_rows(3)):
        same(model, SIZES)
    else:
        assert kind not in COMMON or kind in SEPARATE


@pytest.mark.parametrize("kind", COMMON)
def test_shared_rows_are_separate_ones(kind: str) -> None:
    sweep(kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(set(DRAWN) - set(COMMON)))
def test_shared_rows_are_separate_ones_in_rarer_architectures(kind: str) -> None:
    sweep(kind)


@pytest.mark.parametrize("kind", ["tied", "llama_grouped_heads", "gpt2", "gemma2_capped"])
@pytest.mark.parametrize("sizes", [[2, 1, 1, 1, 1], [1, 2, 1, 2]])
def test_a_group_may_be_split_over_rows(kind: str, sizes: list[int]) -> None:
    model = make_model(kind)
    if kind == "gemma2_capped":  # a window of 4, here so wide that it hides nothing
        model.config.sliding_window = 64
        for layer in model.model.layers:
            if layer.self_attn.sliding_window is not None:
                layer.self_attn.sliding_window = 64
    same(model, sizes)


def test_gradient_checkpointing_changes_nothing() -> None:
    model = make_model()
    plain = values_and_gradients(model, SIZES)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    torch.testing.assert_close(values_and_gradients(model.train(), SIZES), plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_bfloat16_and_autocast_differ_by_rounding_alone(implementation: str) -> None:
    model = make_model()
    model.set_attn_implementation(implementation)
    exact, _ = values_and_gradients(model, None)
    with torch.autocast("cpu", torch.bfloat16):
        cast, gradients = values_and_gradients(model, SIZES)
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    torch.testing.assert_close(cast, exact, rtol=0, atol=0.1)
    with torch.no_grad():
        whole = completion_token_logprobs(model.to(torch.bfloat16), SEQUENCES, 0.7, SIZES)
    torch.testing.assert_close(whole, exact, rtol=0, atol=0.1)


def test_divergence_is_that_of_separate_rows() -> None:
    policy, reference = make_model("tied"), make_model("tied", seed=1)
    separate = completion_divergence(policy, reference, SEQUENCES)
    assert separate[0].min() > 0.01
    torch.testing.assert_close(
        completion_divergence(policy, reference, SEQUENCES, sizes=SIZES), separate, rtol=1e-4, atol=1e-5
    )


def test_one_completion_a_row_is_the_usual_pass_to_the_bit() -> None:
    model = make_model()
    with torch.no_grad():
        usual = completion_token_logprobs(model, SEQUENCES)
        assert torch.equal(completion_token_logprobs(model, SEQUENCES, sizes=[1] * 6), usual)


def test_rows_by_hand() -> None:
    packed = pack([[5, 6], [5, 6], [7]], [[8, 9, 10], [11, 12], [13]], [2, 1], torch.device("cpu"))
    assert packed.input_ids.tolist() == [[5, 6, 8, 9, 11], [7, 0, 0, 0, 0]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 2], [0, 0, 0, 0, 0]]
    assert packed.predicting.tolist() == [1, 2, 3, 1, 4, 5]
    assert packed.attention_mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]
    assert packed.attention_mask.any(-1).all(), "a token that sees none has no number"


def test_rows_of_several_prompts_are_an_error() -> None:
    with pytest.raises(ValueError, match="several prompts"):
        pack([[5], [6]], [[8], [9]], [2], torch.device("cpu"))
    with pytest.raises(ValueError, match="and 2 of them"):
        pack([[5], [5]], [[8], [9]], [1], torch.device("cpu"))


@given(st.integers(1, 200), st.integers(1, 40))
def test_rows_are_as_few_and_as_even_as_can_be(count: int, most: int) -> None:
    sizes = even_sizes(count, most)
    assert sum(sizes) == count
    assert len(sizes) == math.ceil(count / most)
    assert max(sizes) <= most
    assert max(sizes) - min(sizes) <= 1


@given(
    st.lists(st.tuples(st.integers(1, 60), st.lists(st.integers(1, 30), min_size=1, max_size=9)), min_size=1)
)
def test_batches_hold_every_sequence_once_within_the_budget(groups: list[tuple[int, list[int]]]) -> None:
    prompts = [[index] * length for index, (length, _) in enumerate(groups)]
    sequences = TokenSequences(
        [prompt for prompt, (_, lengths) in zip(prompts, groups, strict=True) for _ in lengths],
        [[0] * length for _, lengths in groups for length in lengths],
    )
    for most in (1, 3):
        batches = row_batches(sequences, most, 100)
        rows = [row for batch in batches for row in batch]
        assert sorted(i for row in rows for i in row) == list(range(len(sequences)))
        for batch in batches:
            widths = [
                row_width(len(sequences.prompt_ids[row[0]]), [len(sequences.completion_ids[i]) for i in row])
                for row in batch
            ]
            assert len(batch) == 1 or len(batch) * max(widths) <= 100
    alone = [[row for (row,) in batch] for batch in row_batches(sequences, 1, 100)]
    assert alone == token_budget_batches(sequences.lengths(), 100)


def test_sharing_pays_by_prompt_and_group_and_not_for_the_shortest() -> None:
    def chosen(prompt: int, count: int, groups: int = 64, device: str = "cpu") -> int:
        return completions_per_row([prompt] * groups, [[40] * count] * groups, device)

    assert chosen(6, 2) == chosen(6, 16) == 1
    assert chosen(16, 2) == 2
    assert 2 <= chosen(16, 16) <= 8
    assert chosen(400, 16) == 16
    assert chosen(400, 1) == 1
    assert chosen(16, 2, device="cuda") == chosen(16, 16, device="cuda") == 1
    assert chosen(400, 16, device="cuda") == 16
    assert chosen(40, 3, groups=1) == 1, "too little to look at the model for"
    assert chosen(8000, 64) == 4, "no row is wider than the mask may be"
    assert completions_per_row([400] * 64, [[40] * 16] * 64, "cpu", 600) == 4, "nor wider than a pass may be"
    assert completions_per_row([], [], "cpu") == 1


def test_what_pays_is_shared_and_the_same() -> None:
    prompt = [1, *[9, 7, 12] * 13]
    sequences = TokenSequences([prompt] * 12, [[6 + i, 8, 9, 2] for i in range(12)])
    model = make_model()
    assert per_row(model, sequences) == 12
    assert per_row(model, sequences.select([0, 1])) == 1
    torch.testing.assert_close(
        completion_token_logprobs(model, sequences, sizes=[12]).sum(-1), completion_logprobs(model, sequences)
    )
