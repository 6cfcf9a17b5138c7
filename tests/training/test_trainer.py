"""What a run leaves behind, that it learns, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

from nonpareil.errors import ConfigError, DataError
from nonpareil.training import DistillationConfig, DistillationTrainer
from tests.tiny import GOOD, VOCABULARY, forced_logits, make_model, make_tokenizer, prompts_of
from tests.training.conftest import PROMPTS, goodness, make_trainer, metrics, weights

NAMES = {
    "step",
    "loss",
    "reward",
    "reward_std",
    "rewards/goodness/mean",
    "rewards/goodness/std",
    "rewards/failed_ratio",
    "anchor_reward",
    "kl_to_anchor",
    "entropy",
    "completions/mean_length",
    "completions/clipped_ratio",
    "num_tokens",
    "jbond/penalty_rate",
    "learning_rate",
    "grad_norm",
}


@pytest.mark.parametrize(
    ("settings", "fixed"),
    [
        ({"anchor_ema_rate": 0.5}, False),
        ({"method": "bond", "n": 2, "num_generations": 2, "num_reference_samples": 3}, True),
        ({"anchor_ema_rate": None, "anchor_refresh_steps": 1}, False),
        ({"method": "rloo", "num_generations": 2}, True),
    ],
)
def test_kl_is_to_the_reference_or_not_there(settings: dict[str, Any], fixed: bool, tmp_path: Path) -> None:
    """What is logged of each step is the mean log-ratio of its draws, under a name that says against what."""
    trainer = make_trainer(
        tmp_path, max_steps=3, learning_rate=5e-2, lr_scheduler_type="constant", **settings
    )
    ratios = []
    draw = trainer.step_sampler.draw

    def seen(*args: Any) -> Any:
        drawn = draw(*args)
        ratios.append(drawn.draws.log_ratio.mean().item())
        return drawn

    trainer.step_sampler.draw = seen
    trainer.train()
    lines = metrics(tmp_path)
    assert [line["kl_to_anchor"] for line in lines] == pytest.approx(ratios, abs=1e-7)
    assert ratios[0] == pytest.approx(0, abs=1e-5)
    assert [line.get("kl") for line in lines] == (
        [line["kl_to_anchor"] for line in lines] if fixed else [None] * 3
    )


def says_good(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    return [float(ids.count(GOOD)) for ids in completion_ids]


def test_the_rewarded_word_becomes_frequent(tmp_path: Path) -> None:
    words = torch.randint(6, len(VOCABULARY), (64, 3), generator=torch.Generator().manual_seed(0)).tolist()
    prompts = prompts_of(*words)

    def frequency(model: torch.nn.Module) -> float:
        probs = [forced_logits(model, p.token_ids, [GOOD])[0].softmax(-1)[GOOD] for p in prompts]
        return torch.stack(probs).mean().item()

    trainer = make_trainer(
        tmp_path,
        reward=says_good,
        prompts=prompts,
        per_device_train_batch_size=64,
        max_steps=30,
        anchor_ema_rate=0.3,
        lr_scheduler_type="constant",
        learning_rate=5e-3,
        kl_coef=0.0,
    )
    before, reward_before = frequency(trainer.model.eval()), trainer.evaluate(prompts)["eval_reward"]
    trainer.train()
    after, reward_after = frequency(trainer.model.eval()), trainer.evaluate(prompts)["eval_reward"]
    assert before < 0.1
    assert after > 2 * before + 0.1
    assert reward_after > reward_before + 1
    rewards = [line["reward"] for line in metrics(tmp_path)]
    assert sum(rewards[-5:]) > sum(rewards[:5]) + 5


def test_every_metric_is_logged_under_its_name(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=4, logging_steps=2)
    trainer.train()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "loss" in line]
    assert [line["step"] for line in logged] == [2, 4]
    for line in logged:
        assert line.keys() >= NAMES | {"step_time"}
        assert all(isinstance(line[name], int | float) for name in NAMES)
    assert 1 <= logged[0]["completions/mean_length"] <= 6
    assert 0 <= logged[0]["completions/clipped_ratio"] <= 1
    assert logged[1]["num_tokens"] > logged[0]["num_tokens"] > 0


def test_sampled_completions_are_on_disk_with_rewards_and_advantages(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, reward=[goodness, says_good], reward_weights=[1.0, 0.5], logging_steps=2)
    trainer.train()
    files = sorted((tmp_path / "completions").iterdir())
    assert [file.name for file in files] == ["completions_00002.parquet", "completions_00004.parquet"]
    table = pq.read_table(files[0])
    wanted = ["step", "prompt", "completion", "drawn_by", "goodness", "says_good", "advantage"]
    assert table.column_names == wanted
    rows = table.to_pylist()
    assert len(rows) == 3 * 2, "the second batch of the six prompts has two"
    assert {row["step"] for row in rows} == {2}
    assert [row["drawn_by"] for row in rows] == ["policy", "anchor", "anchor"] * 2
    assert {row["prompt"] for row in rows} <= {p.prompt for p in PROMPTS}
    for row in rows:
        assert row["says_good"] == row["completion"].split().count("good")
        assert row["goodness"] > row["says_good"]
        assert (row["advantage"] is None) == (row["drawn_by"] == "anchor")
    assert sum(row["advantage"] for row in rows if row["advantage"] is not None) == pytest.approx(0, abs=1e-5)


def test_completions_can_be_left_out(tmp_path: Path) -> None:
    make_trainer(tmp_path, max_steps=1, log_completions=False).train()
    assert not (tmp_path / "completions").exists()


def test_tensorboard_gets_the_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    make_trainer(tmp_path, max_steps=2, report_to="tensorboard").train()
    events = list(tmp_path.rglob("events.out.tfevents*"))
    assert events
    board = EventAccumulator(str(events[0].parent))
    board.Reload()
    points = board.Scalars("train/reward")
    assert [point.step for point in points] == [1, 2]
    logged = [line["reward"] for line in metrics(tmp_path)]
    assert [point.value for point in points] == pytest.approx(logged, rel=1e-5)


def test_the_result_is_a_plain_checkpoint(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", max_steps=2)
    start = weights(trainer.model)
    trainer.train()
    # Of a model class as it is on the hub; the biased head of the others is a test's own.
    plain = make_trainer(tmp_path / "plain", model=make_model("tied"), max_steps=2)
    plain.train()
    plain.save_model(str(tmp_path / "final"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "final")
    ids = torch.tensor([PROMPTS[0].token_ids])
    assert torch.equal(loaded.eval()(ids).logits, plain.model.eval()(ids).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "final")("good")["input_ids"] == [1, GOOD]
    assert any(not torch.equal(value, start[name]) for name, value in weights(trainer.model).items())


def test_held_out_prompts_are_looked_at_during_training(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path,
        max_steps=2,
        eval_strategy="steps",
        eval_steps=1,
        eval_dataset=prompts_of([1, 9], [1, 12, 7]),
    )
    trainer.train()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    seen = [line for line in lines if "eval_reward" in line]
    assert [line["step"] for line in seen] == [1, 2]
    assert all(1 <= line["eval_completions/mean_length"] <= 6 for line in seen)
    with pytest.raises(ConfigError, match="eval_dataset is empty"):
        trainer.evaluate([])


def test_a_model_can_be_given_by_its_path(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path / "policy")
    make_tokenizer().save_pretrained(tmp_path / "policy")
    args = DistillationConfig(
        output_dir=str(tmp_path / "run"),
        max_steps=1,
        max_completion_length=4,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = DistillationTrainer(str(tmp_path / "policy"), says_good, args, PROMPTS)
    trainer.train()
    assert trainer.model.dtype == torch.float32, "bfloat16 weights would lose small updates"
    assert len(trainer.processing_class) == len(VOCABULARY)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"top_p": 0.9}, r"top_p=0\.9 draws from a part of the vocabulary, .*Remove top_p; use temperature"),
        ({"top_k": 5}, r"top_k=5 draws from a part"),
        (
            {"repetition_penalty": 1.1},
            r"repetition_penalty=1\.1 makes each next token depend on those before",
        ),
        ({"min_p": 0.1}, r"min_p=0\.1 draws from a part"),
        ({"anchor_ema_rate": 0.0}, r"anchor_ema_rate=0\.0 must lie in \(0, 1\]"),
        ({"anchor_ema_rate": 1.5}, r"anchor_ema_rate=1\.5 must lie in \(0, 1\]"),
        ({"anchor_ema_rate": -0.1}, r"anchor_ema_rate=-0\.1 must lie"),
        ({"max_tokens_per_batch": 0}, r"max_tokens_per_batch=0 must be at least 1"),
        ({"jeffreys_weight": 1.2}, r"jeffreys_weight=1\.2 must be at least 0 and at most 1"),
        ({"kl_coef": -1.0}, r"kl_coef=-1\.0 must be at least 0"),
        ({"prompts": []}, r"train_dataset is empty; give at least one prompt"),
    ],
)
def test_settings_that_would_make_another_method_are_refused(
    setting: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=says):
        make_trainer(tmp_path, **setting)


def test_a_model_object_needs_its_tokenizer(tmp_path: Path) -> None:
    args = DistillationConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(ConfigError, match="needs its tokenizer"):
        DistillationTrainer(make_model(), says_good, args, PROMPTS)


def test_prompts_that_do_not_fit_are_refused_before_training(tmp_path: Path) -> None:
    too_long = prompts_of([7] * 60)
    for where in ("prompts", "eval_dataset"):
        with pytest.raises(DataError, match="over the model's window of 64"):
            make_trainer(tmp_path, **{where: too_long})


def test_one_process_takes_one_of_several_gpus(tmp_path, monkeypatch):
    """transformers would take all, by DataParallel, and as many times the prompts per step."""

    def finds_four(self):
        self._n_gpu, self.distributed_state = 4, None
        return torch.device("cpu")

    monkeypatch.setattr(TrainingArguments, "_setup_devices", property(finds_four))
    others = TrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=8)
    assert others.train_batch_size == 32, "what is to be avoided"
    config = DistillationConfig(output_dir=str(tmp_path), per_device_train_batch_size=8)
    assert config.train_batch_size == 8
