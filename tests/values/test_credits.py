"""Credits of an exactly known value, enumerated; which completions have some; what changes nothing."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nonpareil.credits import check_credits
from nonpareil.errors import DataError, NotFiniteError
from nonpareil.models.logprobs import TokenSequences
from nonpareil.records import Group
from nonpareil.values import credits as module
from nonpareil.values.base import PrefixValue
from nonpareil.values.credits import chosen_completions, credit_totals, make_credits
from nonpareil.values.model import ValueModel, ValueNotes
from nonpareil.values.network import load_network
from nonpareil.values.settings import CreditSettings
from tests.tiny import VOCABULARY, make_model, make_tokenizer

SIZE = len(VOCABULARY)
LENGTH = 2


class ExactValue:
    """log E[W | s] of completions of two tokens, by going through all of them; W is any positive number of each."""

    def __init__(self) -> None:
        self.model = make_model()
        self.weight = torch.randn(
            SIZE, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        ).exp()

    @functools.cache  # noqa: B019 - one object
    @torch.no_grad()
    def probs(self, *ids: int) -> Tensor:
        return self.model(torch.tensor([ids])).logits[0, -1].double().softmax(-1)

    def expected(self, prompt: list[int], tokens: list[int]) -> float:
        if len(tokens) == LENGTH:
            return self.weight[tokens[0], tokens[1]].item()
        return sum(
            chance * self.expected(prompt, [*tokens, token])
            for token, chance in enumerate(self.probs(*prompt, *tokens).tolist())
        )

    def value(self, prompt: list[int], tokens: list[int]) -> float:
        return float(np.log(self.expected(prompt, tokens) / self.expected(prompt, [])))

    def prefix_values(self, sequences: TokenSequences) -> Tensor:
        pairs = zip(sequences.prompt_ids, sequences.completion_ids, strict=True)
        return torch.tensor([[self.value(p, c[:t]) for t in range(LENGTH + 1)] for p, c in pairs])

    def candidate_values(self, sequences: TokenSequences, token_ids: Tensor) -> Tensor:
        pairs = zip(sequences.prompt_ids, sequences.completion_ids, strict=True)
        rows = [
            [[self.value(p, [*c[:t], token]) for token in ids[t]] for t in range(LENGTH)]
            for (p, c), ids in zip(pairs, token_ids.tolist(), strict=True)
        ]
        return torch.tensor(rows)

    def describe(self) -> dict:
        return {}


def two_tokens(number: int, prompt: list[int]) -> Group:
    completions = [[8, 9], [17, 6], [5, 18]]
    empty = [""] * 3
    return Group(f"p{number}", "prompt", prompt, empty, completions, ["length"] * 3, [], {}, [1.0, 2.0, 3.0])


def test_a_true_value_is_credited_exactly_and_does_not_drift() -> None:
    exact = ExactValue()
    assert isinstance(exact, PrefixValue)
    settings = CreditSettings(likeliest=SIZE - 1, from_tail=0)
    made = make_credits(exact.model, exact, [two_tokens(0, [1, 7])], settings)
    (credits,) = [each for each in made["p0"] if each is not None]
    place = next(place for place, each in enumerate(made["p0"]) if each is not None)
    own = two_tokens(0, [1, 7]).completion_token_ids[place]
    check_credits(credits, own, "them")
    for t in range(LENGTH):
        probs = exact.probs(1, 7, *own[:t])
        torch.testing.assert_close(
            torch.tensor(credits.weights[t]).double(), probs[credits.token_ids[t]], atol=1e-6, rtol=0
        )
        after = [exact.value([1, 7], [*own[:t], token]) for token in credits.token_ids[t].tolist()]
        expected = np.array(after) - exact.value([1, 7], own[:t])
        np.testing.assert_allclose(credits.advantages[t], expected, atol=1e-5)
        # What follows is worth, on average, what stands there: so the tilted next-token law adds up to 1.
        assert (credits.weights[t] * np.exp(credits.advantages[t])).sum() == pytest.approx(1, abs=1e-5)
    assert credits.prefix_values[0] == 0
    assert credits.prefix_values[1] == pytest.approx(exact.value([1, 7], own[:1]), abs=1e-5)
    totals = credit_totals([credits], settings)
    assert (totals.completions, totals.positions, totals.candidates) == (1, LENGTH, SIZE)
    assert totals.mass == pytest.approx(1, abs=1e-5)
    assert totals.drift < 1e-8 < totals.spread
    assert 0 < totals.large_share < 1

    exact.weight[:, 5] = torch.nan
    with pytest.raises(NotFiniteError, match="NaN or infinity"):
        make_credits(exact.model, exact, [two_tokens(0, [1, 7])], settings)

    biased = replace(credits, advantages=credits.advantages + np.float32(0.5))
    assert credit_totals([biased], settings).drift > 0.1


class Likes:
    """How often a token is there, `offset` off at the prompt and `apart` off after a candidate."""

    def __init__(self, offset: float = 0.0, apart: float = 0.0, made: Callable = torch.Tensor.bfloat16):
        self.offset, self.apart, self.made = offset, apart, made

    def _prefixes(self, sequences: TokenSequences) -> Tensor:
        rows = [(torch.tensor([0, *ids]) == 8).float().cumsum(0) for ids in sequences.completion_ids]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True) + self.offset

    def prefix_values(self, sequences: TokenSequences) -> Any:
        return self.made(self._prefixes(sequences))

    def candidate_values(self, sequences: TokenSequences, token_ids: Tensor) -> Any:
        return self.made(self._prefixes(sequences)[:, :-1, None] + (token_ids == 8) + self.apart)

    def describe(self) -> dict:
        return {}


def test_a_value_that_contradicts_itself_is_refused_and_one_of_few_bits_is_not(groups) -> None:
    policy, settings = make_model(), CreditSettings(likeliest=3, from_tail=0)
    expected = make_credits(policy, Likes(made=torch.Tensor.float), groups[:3], settings)
    for made in (torch.Tensor.bfloat16, torch.Tensor.numpy):
        found = make_credits(policy, Likes(made=made), groups[:3], settings)
        for prompt, ours in found.items():
            for one, other in zip(ours, expected[prompt], strict=True):
                if one is not None:
                    np.testing.assert_array_equal(one.advantages, other.advantages)
    with pytest.raises(DataError, match=r"gave 0\.5 nats for a prompt"):
        make_credits(policy, Likes(offset=0.5), groups[:1], settings)
    with pytest.raises(DataError, match="is 2 nats off"):
        make_credits(policy, Likes(apart=2.0), groups[:1], settings)


@pytest.fixture(scope="module")
def value(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    make_model().save_pretrained(folder)
    network = load_network(str(folder), 4, fresh_head=True)
    torch.nn.init.normal_(network.score.weight, std=0.5)
    return ValueModel(network, make_tokenizer(), ValueNotes(4)).at(4)


def test_no_batch_and_no_order_changes_a_credit(value, groups, monkeypatch) -> None:
    policy, settings = make_model(), CreditSettings(credited_completions=3, likeliest=4, from_tail=3)
    some = groups[:5]
    whole = make_credits(policy, value, some, settings, seed=7)
    monkeypatch.setattr(module, "AT_ONCE", 4)
    parts = make_credits(policy, value, some[3:], settings, seed=7, max_tokens_per_batch=1)
    parts |= make_credits(policy, value, some[2::-1], settings, seed=7)
    assert parts.keys() == whole.keys()
    for group in some:
        for one, other, ids in zip(
            whole[group.prompt_id], parts[group.prompt_id], group.completion_token_ids, strict=True
        ):
            assert (one is None) == (other is None)
            if one is not None:
                check_credits(one, ids, group.prompt_id)
                np.testing.assert_array_equal(one.token_ids, other.token_ids)
                np.testing.assert_allclose(one.advantages, other.advantages, atol=1e-5)
                assert one.token_ids.shape[1] == settings.candidates
    other_seed = make_credits(policy, value, some, settings, seed=8)
    assert any(
        (one is None) != (other is None)
        for group in some
        for one, other in zip(whole[group.prompt_id], other_seed[group.prompt_id], strict=True)
    )


def test_advantages_of_the_own_tokens_add_up_to_the_value(value, groups) -> None:
    """V(s, own token) is V of the next prefix: along a completion the advantages telescope."""
    made = make_credits(make_model(), value, groups[:2], CreditSettings(likeliest=2, from_tail=0))
    for group in groups[:2]:
        (place,) = [place for place, each in enumerate(made[group.prompt_id]) if each is not None]
        credits = made[group.prompt_id][place]
        sequences = TokenSequences([group.prompt_token_ids], [group.completion_token_ids[place]])
        at_end = value.prefix_values(sequences)[0, -1].item()
        assert credits.advantages[:, 0].sum() == pytest.approx(at_end, abs=1e-5)


def test_completions_are_chosen_by_chance_among_those_with_a_reward_and_a_token(groups) -> None:
    some = replace(groups[0], rewards=[None, 1.0, 2.0, None, 3.0, 4.0, 5.0, 6.0])
    some = replace(some, completion_token_ids=[*some.completion_token_ids[:7], []])
    usable = {1, 2, 4, 5, 6}
    assert chosen_completions(some, 99, 0) == sorted(usable)
    found = [chosen_completions(some, 2, seed) for seed in range(40)]
    assert {place for places in found for place in places} == usable
    assert all(len(set(places)) == 2 for places in found)
    first = [chosen_completions(some, 1, seed)[0] for seed in range(40)]
    assert [places for places, one in zip(found, first, strict=True) if one not in places] == []
