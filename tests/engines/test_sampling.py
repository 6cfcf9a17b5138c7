import numpy as np
import pytest
import torch

from nonpareil.engines.sampling import BLOCK, draw_tokens, gumbel_noise, sample_keys


@pytest.mark.parametrize("vocab", [1, 2, 63, 64, 65, 150, 1000])
def test_draws_follow_softmax_whatever_the_vocabulary(vocab: int) -> None:
    torch.manual_seed(vocab)
    count = 20000
    row = torch.randn(vocab) * 1.5
    row[::3] = -torch.inf
    if vocab > 1:
        row[1] = 2.0
    else:
        row[0] = 0.0
    tokens, logprobs = draw_tokens(row.repeat(count, 1), sample_keys("p", range(count), seed=0), step=3)
    probs = row.softmax(-1)
    assert tokens.max() < vocab
    assert torch.isfinite(row[tokens]).all(), "an entry at -inf was drawn"
    torch.testing.assert_close(logprobs, row.log_softmax(-1)[tokens])
    frequencies = tokens.bincount(minlength=vocab) / count
    spread = (probs * (1 - probs) / count).sqrt()
    assert ((frequencies - probs).abs() <= 5 * spread + 6 / count).all()


def test_the_last_block_is_drawn_from_like_the_others() -> None:
    """The entries behind the last full block carry all the mass."""
    vocab = 2 * BLOCK + 3
    row = torch.full((vocab,), -torch.inf)
    row[-3:] = torch.tensor([0.0, 0.0, 0.0])
    tokens, _ = draw_tokens(row.repeat(3000, 1), sample_keys("p", range(3000), seed=0), step=0)
    assert tokens.bincount(minlength=vocab)[-3:].tolist() == pytest.approx([1000] * 3, abs=130)


def test_a_certain_token_has_log_prob_zero() -> None:
    row = torch.full((1, 100), -torch.inf)
    row[0, 77] = -3.0
    tokens, logprobs = draw_tokens(row, sample_keys("p", [0], seed=0), step=0)
    assert tokens.tolist() == [77]
    assert logprobs.tolist() == [0.0]


def test_logits_far_from_zero_lose_no_digits() -> None:
    """A constant added to all logits changes no probability: neither the draws nor their log-probs see it."""
    logits = torch.randint(-64, 64, (64, 200), generator=torch.Generator().manual_seed(0)) / 16
    keys = sample_keys("p", range(64), seed=0)
    tokens, logprobs = draw_tokens(logits, keys, step=0)
    far_tokens, far_logprobs = draw_tokens(logits + 2.0**19, keys, step=0)
    assert torch.equal(tokens, far_tokens)
    assert torch.equal(logprobs, far_logprobs)


def test_logits_that_are_no_numbers_give_none() -> None:
    logits = torch.zeros(4, 100)
    logits[0, 7], logits[1, 7], logits[2] = torch.nan, torch.inf, -torch.inf
    _, logprobs = draw_tokens(logits, sample_keys("p", range(4), seed=0), step=0)
    assert logprobs.isnan().tolist() == [True, True, True, False]


def test_a_rows_numbers_do_not_depend_on_the_other_rows() -> None:
    keys = sample_keys("p", range(5), seed=9)
    whole = gumbel_noise(keys, step=4, count=7)
    assert torch.equal(whole[[3, 1]], gumbel_noise(keys[[3, 1]], step=4, count=7))
    assert not torch.equal(whole, gumbel_noise(keys, step=5, count=7))


def test_noise_is_standard_gumbel() -> None:
    noise = gumbel_noise(sample_keys("p", range(2000), seed=0), step=0, count=50).double()
    assert noise.isfinite().all()
    assert noise.mean().item() == pytest.approx(np.euler_gamma, abs=0.02)
    assert noise.var().item() == pytest.approx(np.pi**2 / 6, abs=0.05)
    # Columns of one row, and the same column of neighbouring rows, are uncorrelated.
    centred = noise - noise.mean()
    assert (centred[:, 1:] * centred[:, :-1]).mean().abs() < 0.03
    assert (centred[1:] * centred[:-1]).mean().abs() < 0.03


def test_keys_are_distinct_and_known() -> None:
    keys = {int(key) for seed in (0, 1) for name in ("a", "b") for key in sample_keys(name, range(100), seed)}
    assert len(keys) == 400
    assert sample_keys("p", [5], 2)[0] == sample_keys("p", range(10), 2)[5]
    # Stored groups are drawn anew from these on another machine: a change here is a new format.
    assert int(sample_keys("p", [0], 0)[0]) == 6768140423775533483
