"""Search while drawing: best-of-N where it must be, exact counts, and the law of blocks, by enumeration."""

import itertools
import math
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from nonpareil.engines.segments import SegmentingEngine
from nonpareil.errors import ConfigError, DataError
from nonpareil.records import Group, Prompt, SamplingParams
from nonpareil.rewards import CombinedReward, FunctionReward
from nonpareil.rollouts import best
from nonpareil.rollouts.segments.answers import SearchCounts, answer_of, answer_row
from nonpareil.rollouts.segments.choice import best_places, tie_numbers
from nonpareil.rollouts.segments.driver import search
from nonpareil.rollouts.segments.schedule import (
    Layer,
    Schedule,
    best_of_n,
    blockwise,
    speculative_rejection,
    tree,
)
from tests.rollouts.conftest import combined, count_of_good
from tests.tiny import END, UNEVEN, favour, forced_logits, make_model, make_tokenizer

SAMPLING = SamplingParams(max_completion_length=12, seed=5)
LENGTHS = [2, 5, 9]


def taste(completions, completion_ids, **columns):
    """Sums of numbers that a token has at its place: only equal texts tie."""
    return [sum(math.sin(7 * i + token) for i, token in enumerate(ids)) for ids in completion_ids]


@pytest.fixture(scope="module")
def engine() -> SegmentingEngine:
    return SegmentingEngine(make_model("tied"), make_tokenizer())


def found(engine, schedule, reward=None, prompts=UNEVEN, sampling=SAMPLING):
    return list(search(prompts, engine, reward or combined(taste), sampling, schedule))


# --- Where it must be best-of-N


@pytest.mark.parametrize(
    "schedule",
    [best_of_n(8), speculative_rejection(8, 0.0, LENGTHS), tree(8, 1, LENGTHS), Schedule(8, (Layer(3),))],
    ids=["one layer", "nothing rejected", "one child", "all kept"],
)
def test_it_is_best_of_n_bit_for_bit(engine, schedule):
    drawn = engine.draw(UNEVEN, 8, SAMPLING)
    reward = combined(taste)
    for one, prompt, draws in zip(found(engine, schedule), UNEVEN, drawn, strict=True):
        group = Group.of(prompt, draws)
        group.rewards = taste(draws.completions, draws.completion_token_ids)
        assert one.candidates.completion_token_ids == draws.completion_token_ids
        assert one.candidates.finish_reasons == draws.finish_reasons
        assert one.candidates.rewards == group.rewards
        assert one.best == best(group, seed=SAMPLING.seed)
        assert one.tokens_drawn == sum(map(len, draws.completion_token_ids))
        if not schedule.layers:
            assert one.tokens_scored == one.tokens_drawn
    assert reward.names == ["taste"]


def rejected_by_hand(prompt: Prompt, ids: list[list[int]], rate: float, lengths: list[int]):
    """Speculative rejection of completions that are known whole: candidates, tokens drawn, tokens scored."""
    compared, aside, drawn, scored, before = list(range(len(ids))), [], 0, 0, 0
    known: set[int] = set()
    for length in [*lengths, SAMPLING.max_completion_length]:
        for i in compared:
            drawn += max(0, min(len(ids[i]), length) - before)
            if i not in known:
                scored += min(len(ids[i]), length)
            ended = ids[i][-1] == END and len(ids[i]) <= length
            known |= {i} if ended else set()
        if length == SAMPLING.max_completion_length:
            break
        values = {i: taste(None, [ids[i][:length]])[0] for i in compared}
        count = max(1, math.floor((1 - rate) * len(compared) + 0.5))
        ties = dict(
            zip(compared, tie_numbers(prompt.prompt_id, compared, SAMPLING.seed, length), strict=True)
        )
        kept = sorted(compared, key=lambda i: (-values[i], ties[i]))[:count]
        aside += [i for i in compared if i in known and i not in kept]
        compared, before = sorted(kept), length
    return sorted([*compared, *aside]), drawn, scored


@pytest.mark.parametrize("rate", [0.3, 0.5, 0.9])
def test_rejection_is_what_it_would_be_by_hand_on_whole_draws_with_exact_counts(engine, rate):
    """A completion has the random numbers of its place, so that the whole group tells the search's end."""
    drawn = engine.draw(UNEVEN, 12, SAMPLING)
    fewer = 0
    for one, prompt, draws in zip(
        found(engine, speculative_rejection(12, rate, LENGTHS)), UNEVEN, drawn, strict=True
    ):
        ids = draws.completion_token_ids
        places, tokens, scored = rejected_by_hand(prompt, ids, rate, LENGTHS)
        assert one.candidates.completion_token_ids == [ids[place] for place in places]
        assert (one.tokens_drawn, one.tokens_scored) == (tokens, scored)
        fewer += tokens < sum(map(len, ids))
    assert fewer == len(UNEVEN)


@pytest.mark.parametrize(
    "schedule", [speculative_rejection(8, 0.5, LENGTHS), tree(8, 4, [2, 6]), blockwise(4, 3, 12)]
)
def test_batches_change_nothing(engine, schedule):
    together = found(engine, schedule)
    engine.max_tokens_per_batch = 8 * (10 + 12)  # one prompt after another
    try:
        apart = found(engine, schedule)
    finally:
        engine.max_tokens_per_batch = 32768
    alone = [found(engine, schedule, prompts=[prompt])[0] for prompt in UNEVEN]
    for one, other in itertools.chain(zip(together, apart, strict=True), zip(together, alone, strict=True)):
        assert one.candidates.completion_token_ids == other.candidates.completion_token_ids
        assert (one.best, one.tokens_drawn, one.tokens_scored) == (
            other.best,
            other.tokens_drawn,
            other.tokens_scored,
        )


def test_memory_is_asked_for_and_never_sets_the_schedule(engine):
    engine.max_tokens_per_batch = 8 * (10 + 12) - 1
    try:
        with pytest.raises(
            ConfigError, match=r"max_tokens_per_batch=175: .* they take 176; give that, or lower"
        ):
            search(UNEVEN, engine, combined(taste), SAMPLING, best_of_n(8))
    finally:
        engine.max_tokens_per_batch = 32768


# --- What is kept


def test_a_completion_that_ended_is_a_candidate_to_the_end_and_is_scored_once():
    """Those that go on look better until they are cut; then only what had ended is worth anything."""
    engine = SegmentingEngine(favour(make_model(), END, 2.0), make_tokenizer())
    asked: Counter[tuple[int, ...]] = Counter()

    def late(completions, completion_ids, **columns):
        asked.update(map(tuple, completion_ids))
        return [
            0.001 * random.Random(str(ids)).random() if ids[-1] == END else 1.0 if len(ids) < 12 else -1.0
            for ids in completion_ids
        ]

    ended = 0
    for one in found(engine, speculative_rejection(16, 0.5, [2, 4]), combined(late)):
        reasons = one.candidates.finish_reasons
        ended += reasons.count("stop")
        assert "stop" not in reasons or reasons[one.best] == "stop"
    drawn = engine.draw(UNEVEN, 16, SAMPLING)
    early = [ids for draws in drawn for ids in draws.completion_token_ids if ids[-1] == END and len(ids) <= 2]
    assert len(early) > 5
    assert ended >= len(early)  # none was dropped for having ended
    assert max(asked[tuple(ids)] for ids in early) <= max(Counter(map(tuple, early)).values())


def test_the_best_are_kept_nulls_behind_all_and_ties_by_their_numbers():
    assert best_places([1.0, None, 3.0, 2.0], 2, [0, 0, 0, 0]) == [2, 3]
    assert best_places([None, -5.0, None, 0.0], 3, [4, 3, 2, 1]) == [1, 2, 3]
    assert best_places([1.0, 1.0, 1.0, 0.0], 2, [9, 1, 5, 0]) == [1, 2]
    kept = Counter(
        place
        for prompt in range(400)
        for place in best_places([0.0] * 4, 1, tie_numbers(f"p{prompt}", range(4), 3, 10))
    )
    assert all(70 < kept[place] < 130 for place in range(4)), kept
    assert tie_numbers("p", range(4), 3, 10) == tie_numbers("p", range(4), 3, 10)
    assert len({*(tie_numbers("p", [0], seed, at)[0] for seed in (0, 1) for at in (5, 6))}) == 4


def test_a_partial_null_never_goes_on_before_a_number_and_a_final_null_is_no_answer(engine):
    def unread(completions, completion_ids, **columns):
        return [None if ids[0] % 2 else float(len(ids)) for ids in completion_ids]

    rows = list(search(UNEVEN, engine, combined(unread), SAMPLING, speculative_rejection(8, 0.5, [1, 4])))
    for one, draws in zip(rows, engine.draw(UNEVEN, 8, SAMPLING), strict=True):
        even = sum(ids[0] % 2 == 0 for ids in draws.completion_token_ids)
        left = [ids[0] % 2 for ids in one.candidates.completion_token_ids if len(ids) > 1]
        assert sum(left) <= max(0, 4 - even)
        assert one.best is None or one.candidates.rewards[one.best] is not None
    counts = SearchCounts()

    def nothing(completions, **columns):
        return [None] * len(completions)

    (blind,) = search(UNEVEN[:1], engine, combined(nothing), SAMPLING, best_of_n(2))
    counts.add(answer_of(blind))
    row = answer_row(answer_of(blind))
    assert (row["completion"], row["reward"], row["rewards"]) == (None, None, {"nothing": None})
    assert "nothing" in row["failed_rewards"]
    assert (counts.answers, counts.to_dict()["mean_reward"]) == (0, None)


def test_a_tree_draws_as_many_at_every_moment_and_no_tokens_twice(engine):
    sampling = replace(SAMPLING, max_completion_length=9)
    policy = SegmentingEngine(favour(make_model(), END, -50.0), make_tokenizer())
    for one in found(policy, tree(8, 4, [3, 6]), sampling=sampling):
        ids = one.candidates.completion_token_ids
        assert (len(ids), one.tokens_drawn, one.tokens_scored) == (8, 72, 8 * (3 + 6 + 9))
        assert len({(*each[:6],) for each in ids}) <= 2 < len({(*each,) for each in ids})
        for each, known in zip(ids, one.partial_rewards, strict=True):
            assert known == taste(None, [each[:3], each[:6]])


# --- The law of blocks


def law_of_blocks(probs: np.ndarray, leaves: np.ndarray, size: int, k: int) -> np.ndarray:
    """Of every leaf of a tree `[3] * depth`, when the best of k blocks of `size` tokens by the true value is kept.

    `probs`: of the leaves; a prefix is worth the mean of its leaves.
    """
    depth, law = probs.ndim, np.ones(())
    for start in range(0, depth, size):
        end = min(start + size, depth)
        mass = probs.sum(axis=tuple(range(end, depth)))
        values = (probs * leaves).sum(axis=tuple(range(end, depth))) / mass
        new = np.zeros((3,) * end)
        for prefix in itertools.product(range(3), repeat=start):
            p, v = mass[prefix].ravel() / mass[prefix].sum(), values[prefix].ravel()
            below = np.array([p[v < x].sum() for x in v])
            at_most = np.array([p[v <= x].sum() for x in v])
            share = (at_most**k - below**k) / (at_most - below) * p
            new[prefix] = law[prefix] * share.reshape(mass[prefix].shape)
        law = new
    return law


def test_the_law_of_blocks_has_the_win_rates_and_kls_of_trees_of_four_tokens():
    rng, uniform = np.random.default_rng(0), np.full((3,) * 4, 1 / 81)
    for size, k, win, kl in (
        (4, 2, 0.667, 0.193),
        (2, 2, 0.718, 0.377),
        (1, 2, 0.759, 0.647),
        (1, 4, 0.917, 2.222),
    ):
        found = []
        for _ in range(40):
            leaves = sum(rng.normal(size=(3,) * (d + 1) + (1,) * (3 - d)) for d in range(4)) + np.zeros(
                (3,) * 4
            )
            law = law_of_blocks(uniform, leaves, size, k)
            assert law.sum() == pytest.approx(1)
            beaten = (leaves.ravel()[:, None] > leaves.ravel()).mean(1) + 0.5 / 81
            found.append(((law.ravel() * beaten).sum(), (law * np.log(np.maximum(law, 1e-300) * 81)).sum()))
        assert np.mean(found, 0) == pytest.approx([win, kl], abs=0.012 if kl < 1 else 0.06)


@pytest.mark.parametrize(("size", "k"), [(2, 2), (1, 3)])
def test_the_driver_draws_from_the_law_of_blocks(size, k):
    """A policy of three tokens at each of four places, enumerated; a prefix is scored by its true value."""
    model = favour(make_model("gpt2"), END, -50.0)
    prompt, count = [1, 8], 500
    probs, tokens = tree_of(model, prompt)
    leaves = np.random.default_rng(3).normal(size=probs.shape)
    values = {
        ids[:length]: float((probs[at[:length]] * leaves[at[:length]]).sum() / probs[at[:length]].sum())
        for at, ids in tokens.items()
        for length in range(1, 5)
    }

    def value(completions, completion_ids, **columns):
        return [values[tuple(ids)] for ids in completion_ids]

    engine = SegmentingEngine(model, make_tokenizer())
    prompts = [Prompt(f"p-{i}", "the", prompt) for i in range(count)]
    sampling = SamplingParams(max_completion_length=4, top_k=3, seed=1)
    answers = Counter(
        tuple(one.candidates.completion_token_ids[one.best])
        for one in found(
            engine, blockwise(k, size, 4), CombinedReward([FunctionReward(value)]), prompts, sampling
        )
    )
    law = law_of_blocks(probs, leaves, size, k)
    likely = [at for at in tokens if law[at] > 0.02]
    assert len(likely) >= 8
    for at in likely:
        assert abs(answers[tokens[at]] / count - law[at]) < 4.5 * math.sqrt(law[at] * (1 - law[at]) / count)
    mean = sum(values[ids] * times for ids, times in answers.items()) / count
    spread = math.sqrt((law * leaves**2).sum() - (law * leaves).sum() ** 2)
    assert abs(mean - (law * leaves).sum()) < 4 * spread / math.sqrt(count)


def tree_of(model, prompt) -> tuple[np.ndarray, dict[tuple[int, ...], tuple[int, ...]]]:
    """Probabilities `[3, 3, 3, 3]` of what top_k=3 lets be drawn, and the token ids of each leaf."""
    probs, tokens = np.ones((3,) * 4), {}
    nodes: dict[tuple[int, ...], tuple[int, ...]] = {(): ()}
    for _ in range(4):
        following = {}
        for at, ids in nodes.items():
            top = forced_logits(model, [*prompt, *ids], [0])[0].double().topk(3)
            probs[at] *= top.values.softmax(-1).numpy().reshape(3, *(1,) * (3 - len(at)))
            following |= {(*at, i): (*ids, token) for i, token in enumerate(top.indices.tolist())}
        nodes = tokens = following
    return probs, tokens


# --- Refusals


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: speculative_rejection(8, 1.0, [4]), r"rejection_rate=1.0 must lie in \[0, 1\)"),
        (
            lambda: speculative_rejection(8, 0.5, [4, 4]),
            r"score_at=\[4, 4\] must be lengths in tokens that rise",
        ),
        (lambda: speculative_rejection(8, 0.5, [0]), r"score_at=\[0\]"),
        (lambda: tree(8, 3, [4]), "children=3 does not divide num_generations=8"),
        (lambda: blockwise(4, 0, 12), "block_length=0 must be at least 1"),
        (lambda: Schedule(0), "num_generations=0 must be at least 1"),
        (lambda: Schedule(4, (Layer(3, share=0.0),)), "share must lie in"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(make, said):
    with pytest.raises(ConfigError, match=said):
        make()


def test_what_a_search_cannot_work_with_is_refused_before_it_draws(engine):
    class Compares(FunctionReward):
        compares_within_groups = True

    reward = CombinedReward([Compares(count_of_good)])
    with pytest.raises(ConfigError, match="'count_of_good' compares the completions of a group"):
        search(UNEVEN, engine, reward, SAMPLING, best_of_n(4))
    with pytest.raises(ConfigError, match="score_at=12 is not below max_completion_length=12"):
        search(UNEVEN, engine, combined(taste), SAMPLING, speculative_rejection(4, 0.5, [12]))
    with pytest.raises(DataError, match="repeat another's prompt_id"):
        search([UNEVEN[0]] * 2, engine, combined(taste), SAMPLING, best_of_n(4))


def test_rows_of_a_schedule():
    assert speculative_rejection(64, 0.5, [4, 8]).most_rows == 64
    assert tree(8, 4, [4]).most_rows == 8
    assert blockwise(4, 3, 12).most_rows == 4
    assert Schedule(4, (Layer(3, children=3),)).most_rows == 12
    assert [layer.length for layer in blockwise(2, 5, 12).layers] == [5, 10]
    assert [Layer(1, share=0.5).keeps(n) for n in (1, 2, 5, 8)] == [1, 1, 3, 4]
    assert torch.tensor(tree(8, 4, [4]).layers[0].keeps(8)) == 2
