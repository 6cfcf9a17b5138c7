"""rho squared on laws whose KL efficiency is known exactly, and what it cannot tell."""

import itertools
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from nonpareil.errors import DataError
from nonpareil.evaluation import evaluate_groups
from nonpareil.evaluation.intervals import Bootstrap
from nonpareil.evaluation.log_ratios import _SCHEMA, LOG_RATIOS, read_log_ratios, write_log_ratios
from nonpareil.evaluation.rho_squared import rho_squared_of
from nonpareil.evaluation.rows import summary_rows
from nonpareil.maths.group_frontier import group_least_kl, tilt_table

F64 = torch.float64
LAWS = {
    "all differ": ([0.0, 1.0, 2.0, 3.0], [0.1, 0.7, 0.3, 1.2]),
    "0 and 1": ([0.0, 1.0, 0.0, 1.0], [-0.2, 0.5, 0.4, 0.3]),
    "ties": ([0.0, 2.0, 2.0, 1.0], [0.0, 0.2, 1.2, 0.5]),
}


def every_group(rewards, log_ratio, m=3):
    """All groups of m of equally likely completions, one each: means over them are expectations."""
    draws = torch.tensor(list(itertools.product(range(len(rewards)), repeat=m)))
    return (torch.tensor(each, dtype=F64)[draws] for each in (log_ratio, rewards))


def efficiency_at(strength, rewards, log_ratio):
    """Of softmax(strength * log-ratio) over equally likely completions, by the yardstick's own frontier."""
    rewards, log_ratio = (torch.tensor(each, dtype=F64) for each in (rewards, log_ratio))
    policy = torch.softmax(strength * log_ratio, 0)
    u = ((rewards[:, None] > rewards).double() + (rewards[:, None] == rewards).double() / 2).mean(1)
    spent = (policy * (policy * len(policy)).log()).sum()
    many = rewards.repeat(1000)[None] + 0.0  # shares that are the chances themselves
    return (group_least_kl((policy @ u)[None], tilt_table(many)) / spent).item()


@pytest.mark.parametrize("name", list(LAWS))
def test_it_is_the_kl_efficiency_of_a_small_step(name):
    rewards, log_ratio = LAWS[name]
    found = rho_squared_of(*every_group(rewards, log_ratio), Bootstrap())
    steps = [efficiency_at(strength, rewards, log_ratio) for strength in (0.2, 0.1)]
    assert 2 * steps[1] - steps[0] == pytest.approx(found.estimate, rel=0.01)


def test_known_directions_have_known_squares():
    """The frontier's own policies have 1, best-of-N has 3/4 for every N, a log-ratio of half noise has 1/2."""
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(3000, 8, generator=generator, dtype=F64)
    noise = torch.randn(3000, 8, generator=generator, dtype=F64)
    directions = {1.0: 3 * u, 0.75: 7 * u.log(), 0.5: u * 12**0.5 + noise, 0.0: noise}
    for expected, log_ratio in directions.items():
        found = rho_squared_of(log_ratio, u**3, Bootstrap())
        assert abs(found.estimate - expected) < 4 * found.standard_error
        assert found.standard_error < 0.02
        assert found.low <= expected <= found.high
        turned = rho_squared_of(-log_ratio, u**3, Bootstrap())
        assert turned.estimate == pytest.approx(-found.estimate)


def test_what_cannot_be_told_is_none():
    rewards = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 1.0]], dtype=F64)
    varied = torch.tensor([[0.1, 0.5, 0.2], [0.9, 0.8, 1.0]], dtype=F64)
    assert rho_squared_of(varied, rewards, Bootstrap()) is not None
    nothing = {
        "a constant log-ratio": (torch.full_like(varied, 0.3), rewards),
        "rewards that all tie": (varied, torch.ones_like(rewards)),
        "two draws that tie": (varied[:, 1:], rewards[:, 1:]),
        "one draw": (varied[:, :1], rewards[:, :1]),
        "failures": (varied, torch.full_like(rewards, math.nan)),
    }
    for name, (log_ratio, of) in nothing.items():
        assert rho_squared_of(log_ratio, of, Bootstrap()) is None, name
    never_tie = torch.tensor([[0.0, 1.0], [0.5, 0.2]], dtype=F64)
    assert rho_squared_of(varied[:, :2], never_tie, Bootstrap()).num_prompts == 2


def test_a_failed_reward_takes_its_completion_with_it():
    log_ratio, rewards = every_group([0.0, 1.0, 3.0], [0.1, 0.7, 0.3])
    clean = rho_squared_of(log_ratio, rewards, Bootstrap())
    failing = torch.cat([rewards, torch.full_like(rewards[:, :1], math.nan)], 1)
    with_failures = rho_squared_of(torch.cat([log_ratio, log_ratio[:, :1] + 99], 1), failing, Bootstrap())
    assert with_failures == clean


def rows_of(draw, log_ratio_of, spent=0.4, num_prompts=40, m=16):
    """The row of an evaluation whose log-ratio is that function of the reward."""
    even, rewards = torch.full((num_prompts, 9), 1 / 9, dtype=F64), torch.arange(9.0).expand(num_prompts, 9)
    sides = [draw(even, rewards, k, seed) for k, seed in ((4, 0), (m, 1))]
    for group in sides[0].groups:
        group.rewards = [reward + 2 for reward in group.rewards]
    got = evaluate_groups(
        *(side.groups for side in sides),
        policy_kl=torch.full((num_prompts, 4), spent),
        policy_log_ratio=torch.full((num_prompts, 4), spent),
        reference_log_ratio=None if log_ratio_of is None else log_ratio_of(sides[1].outcomes.double()),
    )
    (row,) = [row for row in summary_rows(got) if row.label == "direction, rho²"]
    return row


def test_its_row_says_how_to_read_it_beside_the_efficiency(draw):
    above = rows_of(draw, lambda reward: reward / 10, spent=2.0)
    assert above.interval.estimate == pytest.approx(1, abs=0.02)
    assert above.note.endswith("above the KL efficiency: less strength would waste less")
    against = rows_of(draw, lambda reward: -(reward**2))
    assert against.interval.high < 0
    assert against.note.endswith("negative: the policy turns from the reward")
    assert against.columns[0].name == "rho_squared"
    assert rows_of(draw, torch.exp, num_prompts=2, m=3).note.endswith("too noisy to tell")
    lucky = rows_of(draw, lambda reward: reward / 10, num_prompts=4, m=5)
    assert lucky.interval.estimate > 1.01
    assert lucky.note.endswith("above 1 by noise")
    for nothing in (None, torch.zeros_like):
        row = rows_of(draw, nothing)
        assert (row.value, row.range) == ("—", "—")
        assert "needs both to vary" in row.note


# --- On disk


def test_log_ratios_are_kept_by_prompt_and_completion(draw, tmp_path):
    reference = torch.full((5, 6), 1 / 6, dtype=F64)
    side = draw(reference, torch.arange(6.0).expand(5, 6), 3, 0)
    side.groups[2].rewards[1] = None
    ratio = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    path = write_log_ratios(tmp_path, side.groups[::-1], ratio.flip(0))
    assert path == tmp_path / LOG_RATIOS
    got = read_log_ratios(tmp_path)
    assert got.prompt_ids == tuple(group.prompt_id for group in side.groups)
    assert torch.equal(got.log_ratio, ratio.double())
    assert got.rewards[2].tolist()[0::2] == [side.groups[2].rewards[0], side.groups[2].rewards[2]]
    assert got.rewards[2, 1].isnan()
    schema = pq.read_schema(path)
    assert [str(schema.field(name).type) for name in ("log_ratios", "rewards")] == [
        "list<element: float>",
        "list<element: double>",
    ]


def test_other_draws_and_other_rewards_are_told_apart(draw, tmp_path):
    reference = torch.full((5, 6), 1 / 6, dtype=F64)
    rewards = torch.arange(6.0).expand(5, 6)

    def kept(name, seed=0, change=None):
        groups = draw(reference, rewards, 3, seed).groups
        if change is not None:
            groups[1].rewards[2] = change[0]
        (tmp_path / name).mkdir()
        write_log_ratios(tmp_path / name, groups, torch.rand(5, 3))
        return read_log_ratios(tmp_path / name)

    first = kept("first")
    assert first.same_draws(kept("same"))
    assert not first.same_draws(kept("other", seed=1))
    assert not first.same_draws(kept("rescored", change=[7.5]))
    failed = kept("failed", change=[None])
    assert not first.same_draws(failed)
    assert failed.same_draws(kept("failed too", change=[None]))


@pytest.mark.parametrize(
    ("log_ratios", "rewards", "says"),
    [
        ([[0.1, 0.2], [0.3]], [[1.0, 2.0], [3.0, 4.0]], "log_ratios has not the same number"),
        ([[0.1, 0.2], None], [[1.0, 2.0], [3.0, 4.0]], "log_ratios has not the same number"),
        ([[0.1, 0.2], [0.3, 0.4]], [[1.0, 2.0], [3.0]], "rewards has not the same number"),
        (
            [[0.1], [0.3]],
            [[1.0, 2.0], [3.0, 4.0]],
            "log_ratios has 1 completions per prompt, and rewards has 2",
        ),
        ([[0.1, 0.2], [0.3, None]], [[1.0, 2.0], [3.0, 4.0]], "log_ratios has no finite number .* 'b'"),
        ([[0.1, -math.inf], [0.3, 0.4]], [[1.0, 2.0], [3.0, 4.0]], "log_ratios has no finite number .* 'a'"),
        ([[0.1, 0.2], [0.3, 0.4]], [[1.0, 2.0], [3.0, math.inf]], "rewards has no finite number .* 'b'"),
    ],
)
def test_columns_that_are_not_a_number_per_completion_are_refused(log_ratios, rewards, says, tmp_path):
    columns = {"prompt_id": ["a", "b"], "completions_sha256": ["x", "y"]}
    columns |= {"log_ratios": log_ratios, "rewards": rewards}
    pq.write_table(pa.table(columns, schema=_SCHEMA), tmp_path / LOG_RATIOS)
    with pytest.raises(DataError, match=rf"{LOG_RATIOS}: {says}"):
        read_log_ratios(tmp_path)


def test_a_null_of_a_completion_that_was_not_scored_is_read(tmp_path):
    columns = {"prompt_id": ["a"], "completions_sha256": ["x"]}
    columns |= {"log_ratios": [[0.5, None]], "rewards": [[1.0, None]]}
    pq.write_table(pa.table(columns, schema=_SCHEMA), tmp_path / LOG_RATIOS)
    found = read_log_ratios(tmp_path)
    assert found.log_ratio[0, 0] == 0.5
    assert found.rewards[0].isnan().tolist() == [False, True]


def test_a_file_that_is_missing_or_not_ours_is_refused(tmp_path):
    with pytest.raises(DataError, match=rf"{LOG_RATIOS} cannot be read \(FileNotFoundError\)"):
        read_log_ratios(tmp_path)
    (tmp_path / LOG_RATIOS).write_bytes(b"PAR1")
    with pytest.raises(DataError, match="cannot be read"):
        read_log_ratios(tmp_path)
    pq.write_table(pa.table({"prompt_id": ["a"]}), tmp_path / LOG_RATIOS)
    with pytest.raises(DataError, match="has other columns than prompt_id, completions_sha256"):
        read_log_ratios(tmp_path)
