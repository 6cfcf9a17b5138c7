"""The tokens that could stand in a completion's places: which, by which key, in any batch."""

import pytest
import torch

from nonpareil.engines.sampling import BLOCK, draw_tokens, sample_keys
from nonpareil.errors import ConfigError
from nonpareil.models.candidates import Candidates, choose_candidates
from nonpareil.models.logprobs import TokenSequences
from tests.tiny import END, VOCABULARY, forced_logits, make_model

SEQUENCES = TokenSequences(
    prompt_ids=[[1, 7, 8, 9, 10, 11], [1], [1, 9, 9, 14], [5, 6]],
    completion_ids=[[8, END], [17, 16, 15, 14, 13, 12, 11, END], [END], [6, 6, 6, 6, 6]],
)
KEYS = sample_keys("p", range(4), seed=0)


def choose(rows: list[int], **settings: int) -> Candidates:
    settings = {"likeliest": 4, "from_tail": 3, **settings}
    return choose_candidates(make_model(), SEQUENCES.select(rows), KEYS[rows], **settings)


def test_the_tail_is_drawn_without_replacement_by_probability() -> None:
    count = 3000
    keys = sample_keys("p", range(count), seed=0)
    sequences = TokenSequences([[1]] * count, [[END]] * count)
    model = make_model()
    chosen = choose_candidates(model, sequences, keys, likeliest=3, from_tail=2)
    logits = forced_logits(model, [1], [END])[0]
    tail = logits.softmax(-1).scatter(0, chosen.token_ids[0, 0, :4], 0)
    first, second = (chosen.token_ids[:, 0, 4 + i] for i in range(2))
    chances = tail / tail.sum()
    both = chances[:, None] * chances / (1 - chances[:, None])
    both.fill_diagonal_(0)
    for drawn, expected in ((first, chances), (second, both.sum(0))):
        found = drawn.bincount(minlength=len(VOCABULARY)) / count
        spread = (expected * (1 - expected) / count).sqrt()
        assert ((found - expected).abs() <= 4.5 * spread + 1e-6).all()


@pytest.mark.parametrize("kind", ["llama_grouped_heads", "gemma2_capped"])
def test_the_completions_token_comes_first_then_the_likeliest(kind: str) -> None:
    """Also where the logits are more than the head's."""
    model = make_model(kind)
    chosen = choose_candidates(model, SEQUENCES, KEYS, likeliest=4, from_tail=3)
    assert chosen.token_ids.shape == (4, 8, 8)
    for row, (prompt, completion) in enumerate(
        zip(SEQUENCES.prompt_ids, SEQUENCES.completion_ids, strict=True)
    ):
        logprobs = forced_logits(model, prompt, completion).log_softmax(-1)
        for position, token in enumerate(completion):
            ids = chosen.token_ids[row, position]
            others = [i for i in logprobs[position].argsort(descending=True).tolist() if i != token]
            assert ids[:5].tolist() == [token, *others[:4]]
            assert len(set(ids.tolist())) == 8
            torch.testing.assert_close(
                chosen.logprobs[row, position], logprobs[position, ids], atol=1e-5, rtol=0
            )
            torch.testing.assert_close(chosen.weights[row, position].sum(), torch.tensor(1.0))
        assert not chosen.weights[row, len(completion) :].any()
        assert not chosen.logprobs[row, len(completion) :].any()


def test_no_batch_changes_the_candidates() -> None:
    whole = choose([0, 1, 2, 3]).token_ids
    assert torch.equal(choose([0, 1, 2, 3], max_tokens_per_batch=1).token_ids, whole)
    assert torch.equal(choose([3, 1]).token_ids, whole[[3, 1]])
    others = choose_candidates(
        make_model(), SEQUENCES, sample_keys("p", range(4), seed=1), likeliest=4, from_tail=3
    )
    assert torch.equal(others.token_ids[..., :5], whole[..., :5])
    assert not torch.equal(others.token_ids, whole)


def test_temperature_is_that_of_the_law_that_drew() -> None:
    chosen = choose_candidates(make_model(), SEQUENCES, KEYS, likeliest=18, from_tail=0, temperature=0.5)
    logits = forced_logits(make_model(), SEQUENCES.prompt_ids[0], SEQUENCES.completion_ids[0])
    expected = (2 * logits).log_softmax(-1).gather(-1, chosen.token_ids[0, :2])
    torch.testing.assert_close(chosen.logprobs[0, :2], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(chosen.weights[0, :2].sum(-1), torch.ones(2))


def test_the_tail_knows_nothing_of_the_noise_that_drew_the_completion() -> None:
    """One key for both: the column of noise that the drawn token won by must not bring up a token of the tail."""
    count, vocabulary = 2000, 2 * BLOCK + 10
    model = make_model(vocab_size=vocabulary)
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()  # type: ignore[union-attr]
    keys = sample_keys("p", range(count), seed=0)
    drawn, _ = draw_tokens(torch.zeros(count, vocabulary), keys, step=0)
    sequences = TokenSequences([[1]] * count, drawn[:, None].tolist())
    first = choose_candidates(model, sequences, keys, likeliest=0, from_tail=1).token_ids[:, 0, 1]
    blocks = 3
    assert (first == blocks + drawn % BLOCK).float().mean().item() < 0.02  # 1 / 137; 0.4 from one stream


@pytest.mark.parametrize(("likeliest", "from_tail"), [(-1, 2), (2, -1), (10, 9)])
def test_more_candidates_than_tokens_are_refused(likeliest: int, from_tail: int) -> None:
    with pytest.raises(ConfigError, match="vocabulary's 19"):
        choose([0], likeliest=likeliest, from_tail=from_tail)


def test_all_of_the_vocabulary_may_be_looked_at() -> None:
    chosen = choose([0], likeliest=10, from_tail=8)
    assert sorted(chosen.token_ids[0, 0].tolist()) == list(range(19))
    torch.testing.assert_close(chosen.weights[0].sum(-1), torch.ones(2))
