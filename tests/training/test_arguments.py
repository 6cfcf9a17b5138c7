"""What the trainer is given from Python, refused in our error types before any work."""

from typing import Any

import datasets
import pytest
import torch
from transformers import TrainingArguments

from nonpareil.errors import ConfigError, DataError, ModelError, NonpareilError
from nonpareil.records import Prompt
from nonpareil.training.config import DistillationConfig
from nonpareil.training.trainer import DistillationTrainer
from tests.tiny import make_model, make_tokenizer
from tests.training.conftest import make_trainer

PROMPTS = [Prompt("a", "good film", [1, 10, 8], {})]
STREAM = datasets.Dataset.from_list([{"prompt": "good film"}]).to_iterable_dataset()


def reward(completions: list[str], **columns: Any) -> list[float]:
    return [1.0] * len(completions)


def on_meta() -> Any:
    with torch.device("meta"):
        return make_model()


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"train_dataset": ["good film"]}, DataError, r"train_dataset\[0\] is a str.*a column 'prompt'"),
        (
            {"train_dataset": [{"question": "x"}]},
            DataError,
            r"train_dataset has no column 'prompt'.*rename 'question'",
        ),
        ({"train_dataset": [*PROMPTS, {"prompt": "x"}]}, DataError, r"train_dataset\[1\] is a dict"),
        (
            {"train_dataset": [{"prompt": "x"}, {"prompt": ""}]},
            DataError,
            r"train_dataset, row 1 .* is empty",
        ),
        (
            {"train_dataset": {"train": PROMPTS}},
            DataError,
            r"a dict \(train\).*train_dataset=data\['train'\]",
        ),
        (
            {"eval_dataset": datasets.DatasetDict({"a": datasets.Dataset.from_list([{"prompt": "x"}])})},
            DataError,
            r"eval_dataset is a DatasetDict \(a\), and one dataset is read",
        ),
        ({"train_dataset": STREAM}, DataError, r"train_dataset is a stream.*give max_steps"),
        ({"eval_dataset": STREAM}, DataError, r"eval_dataset is a stream.*stream.take"),
        ({"train_dataset": datasets.Dataset.from_list([])}, ConfigError, r"train_dataset is empty"),
        ({"eval_dataset": "good film"}, DataError, r"eval_dataset is a str"),
        ({"groups": "a-folder"}, DataError, r"groups and train_dataset are both given"),
        ({"groups": [PROMPTS[0]], "train_dataset": None}, DataError, r"groups\[0\] is a Prompt, not a Group"),
        ({"train_dataset": [Prompt("a", "x", [1, 99], {})]}, DataError, r"token id 99, and the model has"),
        ({"train_dataset": [Prompt("a", "x", [1, -1], {})]}, DataError, r"token id -1"),
        ({"train_dataset": [Prompt("a", "x", [1.5], {})]}, DataError, r"token id 1.5, a float"),  # type: ignore[list-item]
        ({"peft_config": "x"}, ConfigError, r"peft_config is a str; give a peft.LoraConfig"),
        ({"args": "plain"}, ConfigError, r"args is a TrainingArguments; give a DistillationConfig"),
        ({"callbacks": "x"}, ConfigError, r"callbacks is a str; give a list of TrainerCallbacks"),
        ({"callbacks": [3]}, ConfigError, r"callbacks\[0\] is a int"),
        ({"optimizers": 3}, ConfigError, r"optimizers=3 must be a pair"),
        ({"optimizers": (3, None)}, ConfigError, r"optimizers\[0\] is a int"),
        ({"optimizers": (None, 3)}, ConfigError, r"optimizers\[1\] is a int"),
        ({"processing_class": "x"}, ConfigError, r"processing_class is a str"),
        ({"quantization_config": object()}, ConfigError, r"quantization_config .*give load_in_4bit=True"),
        ({"model": 3}, ModelError, r"model is a int"),
        ({"model": "meta"}, ModelError, r"is on the meta device; load it with from_pretrained"),
    ],
)
def test_each_argument_of_another_kind_is_refused(
    tmp_path: Any, given: dict[str, Any], error: type[NonpareilError], says: str
) -> None:
    common: dict[str, Any] = {"output_dir": str(tmp_path), "report_to": "none", "use_cpu": True}
    args: Any = DistillationConfig(**common, max_completion_length=4)
    usual: dict[str, Any] = {
        "model": make_model(),
        "args": args,
        "train_dataset": PROMPTS,
        "processing_class": make_tokenizer(),
    }
    if given.get("args") == "plain":
        given = {"args": TrainingArguments(**common)}
    if given.get("model") == "meta":
        given = {"model": on_meta()}
    with pytest.raises(error, match=says):
        DistillationTrainer(reward_funcs=reward, **{**usual, **given})


@pytest.mark.parametrize("held_out", [None, [], datasets.Dataset.from_list([])])
@pytest.mark.parametrize("asked", [{"eval_strategy": "epoch"}, {"eval_on_start": True}], ids=str)
def test_evaluation_in_training_without_prompts_is_refused_before_a_model_is_read(
    tmp_path: Any, asked: dict[str, Any], held_out: Any
) -> None:
    args = DistillationConfig(str(tmp_path), report_to="none", use_cpu=True, max_completion_length=4, **asked)
    with pytest.raises(
        ConfigError, match=rf"eval_dataset is empty, and {next(iter(asked))}=.* evaluates on it"
    ):
        DistillationTrainer("nowhere", reward, args, PROMPTS, held_out, processing_class=make_tokenizer())


def test_a_best_model_may_go_by_one_of_several_rewards(tmp_path: Any) -> None:
    def other(completions: list[str], **columns: Any) -> list[float]:
        return [float(len(text)) for text in completions]

    def given(metric: str, *rewards: Any) -> dict[str, Any]:
        looks = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
        looks |= {"load_best_model_at_end": True, "metric_for_best_model": metric, "max_steps": 2}
        return {
            "reward": list(rewards),
            "eval_dataset": PROMPTS,
            "prompts": [*PROMPTS, Prompt("b", "b", [1, 7], {})],
            **looks,
        }

    with pytest.raises(
        ConfigError, match=r"'rewards/others/mean' must be one of .*, rewards/other/mean: the trainer"
    ):
        make_trainer(tmp_path, **given("rewards/others/mean", reward, other))
    with pytest.raises(ConfigError, match=r"must be one of reward, completions/mean_length: the trainer"):
        make_trainer(tmp_path, **given("rewards/other/mean", other))
    trainer = make_trainer(tmp_path, **given("eval_rewards/other/mean", reward, other))
    trainer.train()
    seen = [line["eval_rewards/other/mean"] for line in trainer.state.log_history if "eval_reward" in line]
    assert trainer.state.best_metric == max(seen)
