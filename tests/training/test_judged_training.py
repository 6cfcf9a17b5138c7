"""A reward that compares within groups, given to the trainer itself, is refused where its scores would be mixed."""

import pytest

from nonpareil.errors import ConfigError
from nonpareil.methods.jbond import JBOND
from nonpareil.methods.vbon import VBON
from nonpareil.records import Group
from nonpareil.rewards import CombinedReward, JudgeReward
from nonpareil.training.config import DistillationConfig
from nonpareil.training.step.sampler import StepSampler

STORED = {"p": Group("p", "p", [1], ["a"], [[1]], ["stop"], [[0.0]])}


@pytest.mark.parametrize(
    ("method", "settings", "stored", "max_calls", "says"),
    [
        (JBOND(), {}, {}, None, None),
        (JBOND(), {}, {}, 5, "judge_max_calls=5 is too few for 3 completions"),
        (
            JBOND(),
            {"eval_strategy": "steps"},
            {},
            None,
            "eval_strategy='steps' scores one completion per prompt",
        ),
        (VBON(stored=True), {}, STORED, None, "VBON compares fresh draws with stored groups"),
    ],
)
def test_where_a_judge_can_train(tmp_path, method, settings, stored, max_calls, says):
    judge = JudgeReward("m", "http://127.0.0.1:9/v1", max_calls=max_calls, api_key_env=None)
    config = DistillationConfig(output_dir=str(tmp_path), report_to="none", **settings)

    def made():
        return StepSampler(None, method, CombinedReward([judge]), config, stored)

    if says is None:
        assert made().reward.names_within_groups == ["judge-m"]
        return
    with pytest.raises(ConfigError, match=says):
        made()
