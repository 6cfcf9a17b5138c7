from hypothesis import given
from hypothesis import strategies as st

from nonpareil.models.logprobs import token_budget_batches

lengths = st.lists(st.integers(1, 300), max_size=60)


@given(lengths, st.integers(1, 1000))
def test_every_row_once_and_the_budget_kept(lengths: list[int], max_tokens: int) -> None:
    batches = token_budget_batches(lengths, max_tokens)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert batch
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= max_tokens


@given(lengths, st.integers(1, 1000))
def test_no_batch_could_have_taken_the_next_ones_first_row(lengths: list[int], max_tokens: int) -> None:
    batches = token_budget_batches(lengths, max_tokens)
    for batch in batches[:-1]:
        assert (len(batch) + 1) * max(lengths[row] for row in batch) > max_tokens


@given(lengths, st.integers(1, 1000))
def test_longest_first_so_that_padding_is_low(lengths: list[int], max_tokens: int) -> None:
    flat = [lengths[row] for batch in token_budget_batches(lengths, max_tokens) for row in batch]
    assert flat == sorted(flat, reverse=True)


def test_padding_of_lognormal_lengths_is_below_a_tenth() -> None:
    import torch

    torch.manual_seed(0)
    lengths = (torch.randn(2000) * 0.8 + 4.5).exp().clamp(1, 1000).int().tolist()
    batches = token_budget_batches(lengths, 16384)
    padded = sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)
    assert len(batches) > 10
    assert 1 - sum(lengths) / padded < 0.1
