"""A metric is described once: what is shown, stored and compared follows from its field and its row."""

import dataclasses
import json

import pytest
import torch

from nonpareil.commands.compare.results import Cost, RunRecord, compare_runs, metrics_of
from nonpareil.commands.compare.tables import tables
from nonpareil.evaluation import Evaluation, best_of_n_report, evaluate_groups
from nonpareil.evaluation.rows import summary_rows
from nonpareil.maths.bootstrap import Interval

NOTHING = Cost(None, None, None, None, None)


@pytest.fixture
def sides(draw):
    """Rewards 0 and 1 that sometimes fail, a second reward, and a policy that never falls short."""
    rewards = (torch.arange(6) > 3).double().expand(12, 6)
    even = torch.full((12, 6), 1 / 6, dtype=torch.float64)
    best = torch.softmax(50 * rewards, dim=-1)
    policy, reference = draw(best, rewards, 4, 0).groups, draw(even, rewards, 8, 1).groups
    for group in (*policy, *reference):
        group.rewards_by_name["judge"] = [float(ids[0]) for ids in group.completion_token_ids]
    reference[3].rewards[0] = None
    return policy, reference


@pytest.fixture
def evaluation(sides):
    kl, ratio = torch.full((12, 4), 0.4), torch.rand(12, 8, generator=torch.Generator().manual_seed(0))
    return evaluate_groups(
        *sides,
        policy_kl=kl,
        policy_log_ratio=kl,
        reference_log_ratio=ratio,
        n=(2, 16),
        unseen_reward="judge",
        reward_names=("main", "judge"),
    )


def intervals(value):
    """Every interval of an evaluation, its parts' included."""
    if isinstance(value, Interval):
        return [value]
    if dataclasses.is_dataclass(value):
        return intervals([getattr(value, field.name) for field in dataclasses.fields(value)])
    if isinstance(value, dict):
        return intervals(list(value.values()))
    return [found for each in value for found in intervals(each)] if isinstance(value, list | tuple) else []


def test_an_evaluation_outlives_its_json(evaluation):
    content = json.loads(json.dumps(evaluation.to_dict()))
    again = Evaluation.from_dict(content)
    assert again == evaluation
    assert again.to_dict() == content


def test_every_metric_has_a_row(evaluation):
    """But those that stand in a note: the shares of wins, ties and losses, of cut completions, of pairs."""
    shown = [row.interval for row in summary_rows(evaluation)]
    sides = (evaluation.comparison, evaluation.unseen)
    noted = [share for side in sides for share in (side.wins, side.ties, side.losses)]
    noted += [side.clipped_ratio for side in (evaluation.policy, evaluation.reference)]
    noted += [stratum.share for stratum in evaluation.length_strata]
    found = intervals(evaluation)
    assert len(found) > 30
    assert [each for each in found if not any(each is one for one in (*shown, *noted))] == []


def test_a_rows_columns_are_tabulated_and_averaged(evaluation, sides):
    run = RunRecord("m", 0, evaluation, (), NOTHING, {})
    report = compare_runs([run], best_of_n_report(sides[1]).points)
    columns = [column for row in summary_rows(evaluation) for column in row.columns]
    assert len(columns) > 10
    assert len({column.name for column in columns}) == len(columns)
    told = {label for table in tables(report) for label in table.header}
    assert {column.label for column in columns if column.label} <= told
    metrics = metrics_of(evaluation, NOTHING)
    assert {column.name: metrics[column.name] for column in columns} == {c.name: c.value for c in columns}
    assert report.to_dict()["methods"][0]["figures"]["gold_reward"]["mean"] == metrics["gold_reward"]


def test_the_terminal_shows_the_columns_that_are_brief(evaluation, sides):
    run = RunRecord("m", 0, evaluation, (), NOTHING, {})
    gain = tables(compare_runs([run], best_of_n_report(sides[1]).points))[0]
    brief = [gain.header[place] for place in gain.brief]
    assert brief == [
        *("method", "win rate", "gold win rate", "KL, nats", "KL efficiency", "length, %", "on the front")
    ]
