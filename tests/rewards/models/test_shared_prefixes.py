"""Texts of one prompt are read behind their common beginning, where that pays."""

from hypothesis import given, settings
from hypothesis import strategies as st

from nonpareil.rewards.models.shared_prefixes import shared_batches

PAD = 0
texts = st.lists(st.integers(0, 2), min_size=1, max_size=12).map(tuple)


@settings(max_examples=40)
@given(st.dictionaries(texts, st.sampled_from("abc"), min_size=1, max_size=20), st.integers(1, 60))
def test_a_prefix_is_that_of_all_its_texts_and_ends_before_what_is_pooled(
    prompt_of: dict, tokens: int
) -> None:
    rows = list(prompt_of)
    batches = shared_batches(rows, prompt_of, PAD, tokens, overhead=1)
    placed = [i for batch in batches for group in batch.members for i in group]
    assert len(placed) == len(set(placed))
    for batch in batches:
        assert batch.length > 0
        assert len(batch.members) == 1 or len(batch.members) * batch.length <= tokens
        for group in batch.members:
            assert len({prompt_of[rows[i]] for i in group}) == 1
            assert len({rows[i][: batch.length] for i in group}) == 1
            assert all(any(token != PAD for token in rows[i][batch.length :]) for i in group)


def group(prompt: int, length: int, count: int, rest: int = 4) -> dict[tuple[int, ...], str]:
    """Texts of `length` equal tokens, of which the last `rest` tell them apart."""
    return {(*[prompt] * length, 100 + i, *[9] * (rest - 1)): f"prompt {prompt}" for i in range(count)}


def lengths(
    prompt_of: dict[tuple[int, ...], str], overhead: int, tokens: int = 1000
) -> list[tuple[int, int]]:
    batches = shared_batches(list(prompt_of), prompt_of, None, tokens, overhead)
    return [(batch.length, len(batch.members)) for batch in batches]


def test_it_pays_from_two_passes_worth_of_tokens_on() -> None:
    assert lengths(group(1, 20, 5), overhead=40) == [(20, 1)]  # 4 x 20 tokens are saved
    assert lengths(group(1, 20, 5), overhead=41) == []
    assert lengths(group(1, 20, 1), overhead=0) == []


def test_it_does_not_pay_before_long_completions() -> None:
    assert lengths(group(1, 7, 8, rest=42), overhead=1) == [(7, 1)]  # 49 of 392 tokens are saved
    assert lengths(group(1, 7, 8, rest=50), overhead=1) == []


def test_prompts_of_about_one_length_join_at_the_shortest() -> None:
    both = {**group(1, 20, 5), **group(2, 18, 5)}
    assert lengths(both, overhead=10) == [(18, 2)]  # 5 texts compute 2 tokens each once more
    assert lengths(both, overhead=9) == [(20, 1), (18, 1)]
    assert lengths(both, overhead=10, tokens=39) == [(20, 1), (18, 1)]


def test_a_text_that_another_goes_on_from_keeps_its_last_token() -> None:
    rows = {(1, 2, 3, 4): "a", (1, 2, 3, 4, 5): "a", (1, 2, 3, 4, 5, 6): "a"}
    assert lengths(rows, overhead=1) == [(3, 1)]


def test_no_prefix_reaches_past_the_token_before_the_pads() -> None:
    rows = {(1, 2, 3, PAD): "a", (1, 2, 3, PAD, PAD): "a", (1, 2, 3, PAD, 4): "a"}
    (batch,) = shared_batches(list(rows), rows, PAD, 100, overhead=1)
    assert batch.length == 2
