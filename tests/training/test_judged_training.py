"""A reward that compares within groups, given to the trainer itself, is refused where its scores would be mixed."""

import pytest

from nonpareil import DistillationTrainer
from nonpareil.errors import ConfigError, ModelError
from nonpareil.methods.jbond import JBOND
from nonpareil.records import Group
from nonpareil.rewards import CombinedReward, JudgeReward
from nonpareil.training.config import DistillationConfig
from tests.tiny import make_tokenizer

STORED = [
    Group("p", "the film", [1], ["a", "the"], [[6], [7]], ["stop"] * 2, [[0.0]] * 2, rewards=[0.0, 1.0])
]


@pytest.mark.parametrize(
    ("method", "settings", "stored", "max_calls", "says"),
    [
        (JBOND(), {}, [], None, None),
        (JBOND(), {}, [], 5, "judge_max_calls=5 is too few for 3 completions"),
        (
            JBOND(),
            {"eval_strategy": "steps"},
            [],
            None,
            "eval_strategy='steps' scores one completion per prompt",
        ),
        ("vbon", {}, STORED, None, "VBON compares fresh draws with stored groups"),
    ],
)
def test_where_a_judge_can_train(tmp_path, method, settings, stored, max_calls, says):
    judge = JudgeReward("m", "http://127.0.0.1:9/v1", max_calls=max_calls, api_key_env=None)
    config = DistillationConfig(
        output_dir=str(tmp_path), method=method, report_to="none", bf16=False, **settings
    )
    data = {"groups": stored} if stored else {"train_dataset": [{"prompt": "the film"}]}
    if config.eval_strategy != "no":
        data["eval_dataset"] = data["train_dataset"]
    with pytest.raises(
        ConfigError if says else ModelError, match=says or "nowhere"
    ):  # the policy is read last
        DistillationTrainer(
            "nowhere", CombinedReward([judge]), config, processing_class=make_tokenizer(), **data
        )
