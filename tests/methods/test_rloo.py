"""RLOO on a tabular policy: the KL-regularised reward, leave-one-out."""

import math

import pytest
import torch

from nonpareil.errors import ConfigError
from nonpareil.methods.rloo import RLOO
from tests.methods import tabular
from tests.methods.tabular import F64, LOGITS, REFERENCE

SETTINGS = {"num_generations": 2, "kl_coef": 0.2}
CASES = {"rloo": RLOO(3, 0.2)}

REWARDS = torch.tensor([0.3, -0.4, 1.1], dtype=F64)


@pytest.mark.parametrize(("k", "kl_coef"), [(2, 0.0), (2, 0.7), (3, 0.05)])
def test_expected_gradient_is_that_of_the_regularised_reward(k, kl_coef):
    method = RLOO(k, kl_coef)
    found = tabular.gradient(lambda z: tabular.expected_loss(method, z, REWARDS, REFERENCE, 0), LOGITS)

    def objective(z):
        return kl_coef * tabular.kl(z, REFERENCE.log()) - (z.softmax(-1) * REWARDS).sum()

    truth = tabular.numeric_gradient(objective, LOGITS)
    torch.testing.assert_close(found, truth, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("kl_coef", [0.5, 2.0])
def test_ends_at_the_tilt_by_the_raw_reward(kl_coef):
    reached = tabular.train_with_many(RLOO(4, kl_coef), REFERENCE, REWARDS)
    fixed_point = (REFERENCE.log() + REWARDS / kl_coef).softmax(-1)
    torch.testing.assert_close(reached, fixed_point, atol=3e-3, rtol=0)


def test_failed_rewards_move_nothing_on_average():
    reached = tabular.train_with_groups(RLOO(4, 0.5), REFERENCE, REWARDS, m=0, rows=1024, failing=0.3)
    fixed_point = (REFERENCE.log() + REWARDS / 0.5).softmax(-1)
    torch.testing.assert_close(reached, fixed_point, atol=0.015, rtol=0)


def test_advantages_by_hand():
    """Rewards 1, 3, failed: each of the two valid is the other's baseline. A lone one has none and is left out."""
    nan = math.nan
    own, none = torch.tensor([[0, 1, 2], [0, 1, 2]]), torch.zeros(2, 0, dtype=torch.long)
    draws = tabular.draws_of(own, none, REWARDS, LOGITS.log_softmax(-1), LOGITS.log_softmax(-1))
    rewards = torch.tensor([[1.0, 3.0, nan], [nan, 5.0, nan]], dtype=F64)
    targets = RLOO(3, 0.1).targets(type(draws)(**{**vars(draws), "policy_rewards": rewards}))
    assert targets.advantages.tolist() == [[-2, 2, 0], [0, 0, 0]]
    assert targets.train_policy.tolist() == [[True, True, False], [False] * 3]


def test_settings_out_of_range_are_refused():
    with pytest.raises(
        ConfigError, match="num_generations=1 must be at least 2: the others are the baseline"
    ):
        RLOO(1)
    with pytest.raises(ConfigError, match=r"kl_coef=-0\.1"):
        RLOO(kl_coef=-0.1)
