"""Guided draws: best-of-n with the true value, the stated law with any other, whatever else is in the batch."""

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from nonpareil.engines.guidance import Guide
from nonpareil.engines.guided_divergence import guided_divergence
from nonpareil.engines.prefix_rows import shares_rows
from nonpareil.engines.transformers import TransformersEngine
from nonpareil.errors import NotFiniteError
from nonpareil.maths.guidance import Guidance
from nonpareil.models.logprobs import TokenSequences
from nonpareil.records import Draws, SamplingParams
from tests.engines.guided import Enumerated, Network, Separate
from tests.tiny import (
    END,
    UNEVEN,
    forced_logits,
    forced_logprobs,
    make_engine,
    make_model,
    prompts_of,
)

SAMPLING = SamplingParams(max_completion_length=12, seed=5)
LAW = Guidance(likeliest=6, max_advantage=0.8)
BALANCED = replace(LAW, balanced=True)
UNCUT = Guidance(likeliest=100, max_advantage=math.inf)
PROMPT = [1, 8, 9]


def guided(model, value, law: Guidance = LAW, **settings) -> TransformersEngine:
    """Unchecked: without looking for the quickest of the ways to draw, where those are not what is asked."""
    return make_engine(model, guide=Guide(value, law), **{"checked": False, **settings})


def same(one: list[Draws], other: list[Draws]) -> None:
    for a, b in zip(one, other, strict=True):
        assert a.completion_token_ids == b.completion_token_ids
        assert a.finish_reasons == b.finish_reasons
        for mine, theirs in zip(a.logprobs, b.logprobs, strict=True):
            assert mine == pytest.approx(theirs, abs=1e-4)


def law_by_hand(model, value, law: Guidance, prompt, ids, temperature=1.0, top_k=0) -> list[float]:
    """Log-probs of a completion's tokens, as `maths.guidance` writes the law, one prefix at a time."""
    found = []
    for i, (token, logits) in enumerate(zip(ids, forced_logits(model, prompt, ids).double(), strict=True)):
        logits = logits / temperature
        if top_k:
            logits[logits < logits.topk(top_k).values[-1]] = -torch.inf
        p = logits.softmax(-1).tolist()
        top = sorted(range(len(p)), key=lambda a: -p[a])[: law.likeliest]
        worth = value.prefix_values(TokenSequences([prompt] * len(top), [[*ids[:i], a] for a in top]))
        cut = law.max_advantage
        tilt = {
            a: max(-cut, min(cut, law.strength * (worth[k, -1] - worth[k, -2]).item()))
            for k, a in enumerate(top)
        }
        mass = 1 - sum(p[a] for a in top)
        share = (1 - sum(p[a] * math.exp(tilt[a]) for a in top)) / mass if mass > 1e-9 else 1.0
        log_f = max(-cut, min(cut, math.log(share) if share > 0 else -math.inf)) if law.balanced else 0.0
        tilted = [p[a] * math.exp(tilt.get(a, log_f)) for a in range(len(p))]
        found.append(math.log(tilted[token] / sum(tilted)))
    return found


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_with_the_true_value_it_draws_best_of_n(temperature: float) -> None:
    model = make_model()
    value = Enumerated(model, PROMPT, 4, temperature)
    sampling = SamplingParams(max_completion_length=2, seed=2, temperature=temperature)
    drawn = guided(model, value, UNCUT).draw(prompts_of(PROMPT), 100, sampling)[0]
    for ids, logprobs in zip(drawn.completion_token_ids, drawn.logprobs, strict=True):
        assert sum(logprobs) == pytest.approx(value.target[(*ids,)], abs=1e-4)
    assert {len(ids) for ids in drawn.completion_token_ids} == {1, 2}


def test_frequencies_are_those_of_best_of_n() -> None:
    model = make_model()
    value = Enumerated(model, PROMPT, 4)
    sampling = SamplingParams(max_completion_length=2, seed=2)
    drawn = guided(model, value, UNCUT).draw(prompts_of(PROMPT), 1000, sampling)[0]
    counts = Counter(tuple(ids) for ids in drawn.completion_token_ids)
    often = {
        y: 1000 * math.exp(logprob) for y, logprob in value.target.items() if logprob > math.log(5 / 1000)
    }
    assert len(often) > 20
    chi_square = sum((counts[y] - mean) ** 2 / mean for y, mean in often.items())
    # Its mean is the number of cells; five standard deviations above.
    assert chi_square < len(often) + 5 * math.sqrt(2 * len(often))


@pytest.mark.parametrize("likeliest", [4, 100])
@pytest.mark.parametrize("balanced", [False, True])
def test_the_exact_kl_is_that_of_what_is_drawn(likeliest: int, balanced: bool) -> None:
    """On average over the guided policy itself: of all completions, by their probabilities."""
    model, law = make_model(), Guidance(likeliest, max_advantage=math.inf, balanced=balanced)
    value = Enumerated(model, PROMPT, 4)
    every = [list(y) for y in value.logprobs]
    kl, ratio = guided_divergence(model, Guide(value, law), TokenSequences([PROMPT] * len(every), every))
    reference = torch.tensor([*value.logprobs.values()])
    mine = (reference + ratio).exp()
    assert mine.sum().item() == pytest.approx(1, abs=1e-5)
    wanted = (mine * ratio).sum().item()
    assert (mine * kl).sum().item() == pytest.approx(wanted, abs=1e-5)
    assert wanted > 0.1
    if likeliest == 100:
        torch.testing.assert_close(
            reference + ratio, torch.tensor([*value.target.values()]), rtol=0, atol=1e-4
        )


@pytest.mark.parametrize(("settings", "law"), [({}, LAW), ({"temperature": 0.6, "top_k": 9}, BALANCED)])
def test_recorded_logprobs_are_those_of_the_law(settings: dict, law: Guidance) -> None:
    model, value, sampling = make_model(), Network(), replace(SAMPLING, **settings)
    drawn = guided(model, value, law, checked=True).draw(UNEVEN, 2, sampling)
    moved = []
    for prompt, draws in zip(UNEVEN, drawn, strict=True):
        for ids, logprobs in zip(draws.completion_token_ids, draws.logprobs, strict=True):
            assert logprobs == pytest.approx(
                law_by_hand(model, value, law, prompt.token_ids, ids, **settings), abs=1e-4
            )
            plain = forced_logprobs(model, prompt.token_ids, ids, sampling.temperature)
            moved.append((torch.tensor(logprobs) - plain).abs().max())
    assert max(moved) > 0.3


def test_the_divergence_of_stored_completions_is_that_of_their_draws() -> None:
    model, value, sampling = make_model(), Network(), replace(SAMPLING, temperature=0.8)
    drawn = guided(model, value).draw(UNEVEN, 4, sampling)
    sequences = TokenSequences.of(UNEVEN, drawn)
    kl, ratio = guided_divergence(model, Guide(value, LAW), sequences, 0.8)
    recorded = torch.tensor([sum(logprobs) for draws in drawn for logprobs in draws.logprobs])
    reference = [
        forced_logprobs(model, prompt, ids, 0.8).sum()
        for prompt, ids in zip(sequences.prompt_ids, sequences.completion_ids, strict=True)
    ]
    torch.testing.assert_close(recorded - torch.stack(reference), ratio, rtol=0, atol=1e-4)
    assert (kl > 0).all()


@pytest.mark.parametrize(
    "kind", ["llama_grouped_heads", "gpt2", "opt", "mistral_sliding", "bloom_without_window"]
)
@pytest.mark.parametrize("first_ids", [(), (7, 3)])
def test_a_network_reads_from_its_cache_what_it_reads_anew(kind: str, first_ids: tuple[int, ...]) -> None:
    """Where it does not take such passes (full windows, positions that it counts itself) it reads anew."""
    value = Network(kind, first_ids=first_ids)
    shares = shares_rows(
        value.network, [prompt.token_ids for prompt in UNEVEN], SAMPLING.max_completion_length
    )
    assert shares == (kind in ("llama_grouped_heads", "gpt2", "opt"))
    model = make_model()
    cached, anew = (
        guided(model, each).draw(UNEVEN[:3], 2, replace(SAMPLING, max_completion_length=6))
        for each in (value, Separate(value))
    )
    same(cached, anew)


@pytest.mark.parametrize("kind", ["gpt2", "mistral_sliding", "linear_and_full_attention"])
def test_every_way_of_drawing_can_be_guided(kind: str) -> None:
    """The policy's own cache is another matter than the value's."""
    model, value = make_model(kind), Network()
    drawn = guided(model, value).draw(UNEVEN[:2], 2, replace(SAMPLING, max_completion_length=6))
    for prompt, draws in zip(UNEVEN, drawn, strict=False):
        for ids, logprobs in zip(draws.completion_token_ids, draws.logprobs, strict=True):
            by_hand = law_by_hand(model, value, LAW, prompt.token_ids, ids)
            assert logprobs == pytest.approx(by_hand, abs=1e-4)


@pytest.mark.parametrize("max_tokens_per_batch", [1, 150])
def test_neither_batch_nor_neighbours_change_the_draws(max_tokens_per_batch: int) -> None:
    model, value = make_model(), Network()
    engine = guided(model, value, checked=True)
    usual = engine.draw(UNEVEN, 6, SAMPLING)
    same(guided(model, value, max_tokens_per_batch=max_tokens_per_batch).draw(UNEVEN, 6, SAMPLING), usual)
    if max_tokens_per_batch == 150:
        for prompt, draws in zip(UNEVEN, usual, strict=True):
            same(engine.draw([prompt], 6, SAMPLING), [draws])
    lengths = {len(ids) for draws in usual for ids in draws.completion_token_ids}
    assert len(lengths) > 4, "some ended early, and left the batch"


def test_an_end_token_is_a_candidate_like_any_other() -> None:
    """A value that likes finished completions makes them short."""

    class Finished(Network):
        def read(self, states):
            return 5.0 * self.ends(states)

        def ends(self, states):
            embedded = self.network.get_input_embeddings().weight[END]
            return torch.nn.functional.cosine_similarity(states, embedded, dim=-1).clamp(min=0)

    model, value = make_model(), Finished(num_hidden_layers=0)
    lengths = []
    for engine in (make_engine(model), guided(model, value, Guidance(likeliest=100, max_advantage=5.0))):
        drawn = engine.draw(UNEVEN, 8, SAMPLING)
        lengths.append(sum(len(ids) for draws in drawn for ids in draws.completion_token_ids))
    assert lengths[1] < 0.5 * lengths[0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_no_number_is_named(bad: float) -> None:
    class Broken(Network):
        def read(self, states):
            return super().read(states).masked_fill(states.norm(dim=-1) > 0, bad)

    model = make_model()
    with pytest.raises(NotFiniteError, match="the value of a prefix is NaN or infinite"):
        guided(model, Broken()).draw(UNEVEN, 2, SAMPLING)
    with pytest.raises(NotFiniteError, match="the value of a prefix is NaN or infinite"):
        guided_divergence(model, Guide(Broken(), LAW), TokenSequences([PROMPT], [[5, 6]]))


def test_what_decides_the_law_stands_in_the_engines_description() -> None:
    model = make_model()
    described = [
        guided(model, Network(), law).describe()
        for law in (LAW, replace(LAW, likeliest=7), replace(LAW, strength=2.0))
    ]
    assert described[0]["guidance"] == {
        "value": {"kind": "network"},
        "likeliest": 6,
        "strength": 1.0,
        "max_advantage": 0.8,
        "balanced": False,
    }
    assert all(one != other for one, other in pairwise(described))
    assert "guidance" not in make_engine(model).describe()
