"""`scale_rewards` and `multi_objective_aggregation`: what is compared, and where nothing would read them."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nonpareil.errors import ConfigError
from nonpareil.methods import build
from nonpareil.methods.base import ScoredDraws
from nonpareil.records import Group
from nonpareil.rewards import CombinedReward, FunctionReward
from nonpareil.training.step.batch import standardized_tensor
from nonpareil.training.step.scaling import scaled
from tests.training.conftest import goodness, make_trainer, metrics, stored_groups

NAN = math.nan
REWARDS = [[1.0, 2.0, 3.0], [4.0, 4.0, 4.0], [0.0, 10.0, NAN], [5.0, NAN, NAN]]


def drawn(rewards: list[list[float]], k: int = 3) -> ScoredDraws:
    values = torch.tensor(rewards, dtype=torch.float64)
    b, width = values.shape
    nothing = torch.zeros(b, width, 1)
    return ScoredDraws(
        policy_rewards=values[:, :k],
        anchor_rewards=values[:, k:],
        policy_token_logprobs=nothing[:, :k],
        completion_mask=nothing[:, :k].bool(),
        anchor_logprobs_of_policy=nothing[:, :k, 0],
        anchor_token_logprobs=nothing[:, k:],
        tie_breaker=nothing[:, k:, 0],
    )


def same(ours: Tensor, theirs: list[list[float]]) -> None:
    torch.testing.assert_close(ours, torch.tensor(theirs, dtype=torch.float64), equal_nan=True)


def test_within_a_group() -> None:
    root = math.sqrt(0.5)  # of 0 and 10: 5 each from the mean, over sqrt(50)
    same(
        scaled(drawn(REWARDS), "group").policy_rewards,
        [[-1, 0, 1], [0, 0, 0], [-root, root, NAN], [0, NAN, NAN]],
    )
    both = scaled(drawn(REWARDS, 1), "group")  # one deviation for a prompt's own draws and the anchor's
    same(both.anchor_rewards[:1], [[0, 1]])
    tiny = scaled(drawn([[0.1] * 3, [1e-200, 2e-200, 3e-200]]), "group").policy_rewards
    same(tiny, [[0, 0, 0], [-1, 0, 1]])


def test_within_the_batch() -> None:
    known = [1, 2, 3, 4, 4, 4, 0, 10, 5]
    mean = sum(known) / 9
    deviation = math.sqrt(sum((x - mean) ** 2 for x in known) / 8)
    result = scaled(drawn(REWARDS), "batch").policy_rewards
    same(
        result,
        [[-1 / deviation, 0, 1 / deviation], [0] * 3, [-5 / deviation, 5 / deviation, NAN], [0, NAN, NAN]],
    )
    same(scaled(drawn([[2.0, 2.0], [2.0, NAN]], 2), "batch").policy_rewards, [[0, 0], [0, NAN]])
    assert scaled(drawn(REWARDS), "none").policy_rewards.equal(drawn(REWARDS).policy_rewards) is False  # NaN
    same(scaled(drawn(REWARDS), "none").policy_rewards, REWARDS)


def test_the_advantages_are_trls_but_for_the_leave_one_out_mean() -> None:
    rewards = drawn([[1.0, 2.0, 4.0, 9.0]], 4)
    targets: Any = build("rloo", {"kl_coef": 0.0}).targets(scaled(rewards, "group"))
    trl = (rewards.policy_rewards - 4) / rewards.policy_rewards.std()
    torch.testing.assert_close(targets.advantages, trl * 4 / 3)  # less the mean of the others: k / (k - 1)


def lengths(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    return [1000.0 * len(ids) for ids in completion_ids]


TWO = {"reward": [goodness, lengths], "multi_objective_aggregation": "normalize_then_sum"}


def test_a_training_compares_what_was_standardized_and_logs_the_sum(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}
    for name, changes in {
        "sum": {"reward": TWO["reward"]},
        "each": TWO,
        "bool": {**TWO, "scale_rewards": True},
        "group": {**TWO, "scale_rewards": "group"},
    }.items():
        trainer = make_trainer(tmp_path / name, method="rloo", num_generations=3, max_steps=2, **changes)
        draw = trainer.step_sampler.draw
        batches = seen.setdefault(name, [])
        trainer.step_sampler.draw = lambda *a, d=draw, b=batches: b.append(d(*a)) or b[-1]  # type: ignore[method-assign]
        trainer.train()
        seen[f"{name} logged"] = metrics(tmp_path / name)
        seen[f"{name} reward"] = trainer.reward
    batch = seen["each"][0]
    assert batch.draws.policy_rewards.equal(standardized_tensor(batch.groups, seen["each reward"]))
    assert batch.draws.policy_rewards.sum(1).abs().max() < 1e-6
    assert seen["sum"][0].draws.policy_rewards.min() > 500
    first = [seen[f"{name} logged"][0] for name in ("sum", "each")]
    assert first[0]["reward"] == first[1]["reward"] > 500, "the weighted sum, of the same draws"
    assert first[0]["loss"] != pytest.approx(first[1]["loss"])
    assert seen["bool logged"] == seen["group logged"], "TRL's true is group"
    assert seen["group logged"] != seen["each logged"]


def test_stored_groups_are_standardized_by_their_columns(tmp_path: Path) -> None:
    def said(completion_ids: list[list[int]], **columns: Any) -> list[float]:
        return [-3.0 * (ids[0] % 5) for ids in completion_ids]

    def trained(name: str, groups: list[Group], **changes: Any) -> list[dict[str, Any]]:
        make_trainer(
            tmp_path / name,
            reward=[lengths, said],
            groups=groups,
            method="bonbon",
            n=4,
            max_steps=1,
            **changes,
        ).train()
        return metrics(tmp_path / name)

    groups = stored_groups(4, reward=[lengths, said])
    each_first = {"multi_objective_aggregation": "normalize_then_sum"}
    reward = CombinedReward([FunctionReward(lengths), FunctionReward(said)])
    rescored = [Group(**{**vars(g), "rewards": reward.aggregate_group(g.rewards_by_name)}) for g in groups]
    ours, theirs = trained("each", groups, **each_first), trained("rescored", rescored)
    assert ours[0]["grad_norm"] == theirs[0]["grad_norm"] != trained("sum", groups)[0]["grad_norm"]
    for group in groups:
        del group.rewards_by_name["said"]
    with pytest.raises(
        ConfigError, match="needs each reward of the stored groups, and 'p0-3' has none of said"
    ):
        trained("lacking", groups, **each_first)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"scale_rewards": "group"},
            "scale_rewards=group is not read by method=jbond, which compares the ranks",
        ),
        ({"scale_rewards": "std"}, "must be one of none, group, batch"),
        (
            {**TWO, "reward": goodness},
            "puts several rewards on one scale, and there is one, 'goodness'; for one it is nothing",
        ),
        ({**TWO, "reward": goodness, "method": "rloo"}, "for one it is scale_rewards=group"),
    ],
)
def test_what_nothing_reads_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_trainer(tmp_path, **changes)
