"""A checkpoint is taken up by the training it belongs to: other settings are refused by name, or taken and told."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from nonpareil.errors import ConfigError
from nonpareil.training import DistillationConfig
from nonpareil.training.checkpoints.identity import MAY_CHANGE
from tests.tiny import GOOD, make_model, prompts_of
from tests.training.conftest import (
    PROMPTS,
    ending_model,
    goodness,
    make_trainer,
    metrics,
    slow_goodness,
    stored_groups,
)

NAMES = DistillationConfig.__dataclass_fields__
CHECKPOINTING = (
    "activation_checkpointing" if "activation_checkpointing" in NAMES else "gradient_checkpointing"
)
"""transformers 5.24 keeps the older name for a while, and moves its value to the newer."""
STEPS = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "linear"}


def weighed(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    return [float(ids.count(GOOD)) for ids in completion_ids]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    make_trainer(folder, **STEPS).train()
    shutil.rmtree(folder / "checkpoint-4")
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def resume(folder: Path, **changes: Any) -> Any:
    trainer = make_trainer(folder, **{**STEPS, **changes})
    trainer.train(resume_from_checkpoint=True)
    return trainer


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"learning_rate": 1e-1}, r"learning_rate: 0\.01 there, 0\.1 now"),
    ({"temperature": 0.5}, r"temperature: 1\.0 there, 0\.5 now"),
    ({"seed": 8}, r"seed: 7 there, 8 now"),
    ({"data_seed": 8}, r"data_seed: None there, 8 now"),
    ({"method": "rloo"}, r"method: 'jbond' there, 'rloo' now"),
    ({"kl_coef": 0.2}, r"kl_coef: 0\.1 there, 0\.2 now"),
    ({"jeffreys_weight": 0.7}, r"jeffreys_weight: 0\.5 there, 0\.7 now"),
    ({"anchor_ema_rate": 0.2}, r"anchor_ema_rate: 0\.1 there, 0\.2 now"),
    ({"anchor_ema_rate": None, "anchor_refresh_steps": 2}, r"anchor_refresh_steps: 0 there, 2 now"),
    ({"max_completion_length": 5}, r"max_completion_length: 6 there, 5 now"),
    ({"per_device_train_batch_size": 2}, r"per_device_train_batch_size x processes\): 4 there, 2 now"),
    ({"gradient_accumulation_steps": 2}, r"gradient_accumulation_steps: 1 there, 2 now"),
    ({"weight_decay": 0.1}, r"weight_decay: 0\.0 there, 0\.1 now"),
    ({"adam_beta2": 0.9}, r"adam_beta2: 0\.999 there, 0\.9 now"),
    ({"optim": "sgd"}, r"optim: 'adamw_torch\w*' there, 'sgd' now"),
    ({"max_grad_norm": 0.5}, r"max_grad_norm: 1\.0 there, 0\.5 now"),
    ({"lr_scheduler_type": "cosine"}, r"lr_scheduler_type: 'linear' there, 'cosine' now"),
    ({"warmup_steps": 1}, r"warmup_steps: 0\S* there, 1 now"),
    ({"bf16": True}, r"bf16: False there, True now"),
    ({"dataloader_drop_last": True}, r"dataloader_drop_last: False there, True now"),
    ({"frozen_parameters": ["embed_tokens"]}, r"frozen_parameters: None there, \['embed_tokens'\] now"),
    ({"use_peft": True}, r"use_peft: False there, True now"),
    ({"reward": slow_goodness}, r"reward\.names: \['goodness'\] there, \['slow_goodness'\] now"),
    ({"reward": [goodness, weighed]}, r"reward\.weighed\.source: None there, "),
    ({"reward": goodness, "reward_weights": [2.0]}, r"reward\.reward_weights: \[1\.0\] there, \[2\.0\] now"),
    ({"prompts": PROMPTS[:5]}, r"prompts\.count: 6 there, 5 now"),
    ({"prompts": [*PROMPTS[:5], *prompts_of([1, 9])]}, r"prompts\.sha256: '\w{16}' there, '\w{16}' now"),
    (
        {"prompts": [dataclasses.replace(p, columns={"answer": i}) for i, p in enumerate(PROMPTS)]},
        r"prompts\.columns_sha256: ",
    ),
]


@pytest.mark.parametrize(("change", "says"), REFUSED, ids=[str(next(iter(c))) for c, _ in REFUSED])
def test_what_would_be_another_training_is_refused_by_name(
    change: dict[str, Any], says: str, run: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with pytest.raises(
        ConfigError, match=rf"checkpoint-2 is of a training with other settings:(.|\n)*{says}"
    ):
        resume(run, **change)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_checkpoint_of_another_way_of_training_is_refused_in_one_line(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever else differs: what is there cannot be gone on from with any setting."""
    monkeypatch.setattr("nonpareil.training.checkpoints.identity.TRAINING_VERSION", 3)
    with pytest.raises(
        ConfigError, match=r"checkpoint-2 is of an earlier version of Nonpareil.*begin anew"
    ) as e:
        resume(run, learning_rate=1e-1)
    assert "\n" not in str(e.value)


def test_every_difference_is_named_at_once(run: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        resume(run, learning_rate=1e-1, seed=8, reward=weighed)
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:-1]] == [
        *("learning_rate", "seed", "reward.names", "reward.goodness.kind", "reward.goodness.function"),
        *(
            "reward.goodness.source",
            "reward.weighed.kind",
            "reward.weighed.function",
            "reward.weighed.source",
        ),
    ]


def test_every_setting_is_refused_unless_it_is_on_the_list() -> None:
    """What may change is the exception; a setting that is new in transformers is not taken unseen."""
    known = {field.name for field in dataclasses.fields(DistillationConfig)}
    of_newer_versions = {"dataloader_in_order", "dataloader_multiprocessing_context"}
    of_newer_versions |= {"activation_checkpointing", "activation_checkpointing_kwargs"}
    assert MAY_CHANGE - known <= {"processes"} | of_newer_versions
    assert not MAY_CHANGE & {
        "learning_rate",
        "seed",
        "method",
        "temperature",
        "n",
        "bf16",
        "optim",
        "data_seed",
    }


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"max_tokens_per_batch": 30}, "max_tokens_per_batch: 16384 there, 30 now: taken"),
        ({"gradient_checkpointing": True}, f"{CHECKPOINTING}: False there, True now: taken"),
        ({"save_total_limit": 1}, "save_total_limit: None there, 1 now: taken"),
        ({"logging_steps": 2}, "logging_steps: 1 there, 2 now: taken"),
        ({"max_train_seconds": 600.0}, "max_train_seconds: None there, 600.0 now: taken"),
    ],
)
def test_what_may_change_is_taken_and_told(
    change: dict[str, Any], says: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = resume(run, **change)
    assert trainer.state.global_step == 4
    told = said_beside_progress(capsys)
    alias = "gradient_checkpointing" if CHECKPOINTING != "gradient_checkpointing" else "no alias"
    assert [line for line in told if alias not in line] == [f"nonpareil: resume: {says}"]


def said_beside_progress(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Our lines; the first step's phases are told of every run."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("nonpareil: ")]
    return [line for line in lines if not line.startswith("nonpareil: step 3: ")]


def test_the_same_training_needs_no_word(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    resume(run)
    assert said_beside_progress(capsys) == []


def test_more_steps_follow_the_schedule_of_as_many_from_there(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_trainer(tmp_path / "whole", **{**STEPS, "max_steps": 8}).train()
    meant = [line["learning_rate"] for line in metrics(tmp_path / "whole")]
    rates_used: list[float] = []

    class Rates(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            rates_used.append(kwargs["optimizer"].param_groups[0]["lr"])

    resume(run, max_steps=8, callbacks=[Rates()])
    assert rates_used == pytest.approx(meant[2:])
    rates = [line["learning_rate"] for line in metrics(run)]
    assert rates[:2] == pytest.approx([0.01, 0.0075])
    assert rates[2:] == pytest.approx(meant[2:])
    assert rates[2] == pytest.approx(0.01 * 6 / 8)
    said = capsys.readouterr().err
    assert "max_steps: 4 there, 8 now: taken; from here the learning rate follows the schedule" in said


def test_more_epochs_than_a_finished_run_had_are_trained(tmp_path: Path) -> None:
    """Its last rate was 0, and the first of its further steps must not have it."""
    epochs = {**STEPS, "max_steps": -1}
    make_trainer(tmp_path, num_train_epochs=1, **epochs).train()
    trainer = make_trainer(tmp_path, num_train_epochs=2, **epochs)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 4
    assert [line["learning_rate"] for line in metrics(tmp_path)][2:] == pytest.approx([0.005, 0.0025])


def test_fewer_steps_than_were_done_are_refused(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"checkpoint-2 is at step 2, and 1 are asked for \(max_steps"):
        resume(run, max_steps=1)


def test_another_model_is_refused_where_it_would_be_the_reference(tmp_path: Path, run: Path) -> None:
    bond = {"method": "bond", "n": 2, "num_generations": 2, "num_reference_samples": 3}
    make_trainer(tmp_path / "bond", **bond, **STEPS).train()
    with pytest.raises(ConfigError, match=r"model: 'sha256-2:\w+' there, 'sha256-2:\w+' now"):
        resume(tmp_path / "bond", model=ending_model(seed=3), **bond)
    lora = {"use_peft": True, "lora_r": 4}
    make_trainer(tmp_path / "lora", **lora, **STEPS).train()
    with pytest.raises(ConfigError, match=r"model: 'sha256-2:\w+' there"):
        resume(tmp_path / "lora", model=ending_model(seed=3), **lora)
    with pytest.raises(ConfigError, match=r"lora_r: 4 there, 2 now"):
        resume(tmp_path / "lora", use_peft=True, lora_r=2)
    # With a moving anchor all weights are in the checkpoint.
    trainer = resume(run, model=ending_model(seed=3))
    whole = make_trainer(tmp_path / "whole", **STEPS)
    whole.train()
    ours, theirs = (
        load_file(path / "checkpoint-4" / "model.safetensors") for path in (run, tmp_path / "whole")
    )
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert trainer.state.global_step == 4


def test_other_groups_are_refused(tmp_path: Path) -> None:
    settings = {"method": "sft_bon", "n": 2, **STEPS}
    make_trainer(tmp_path, groups=stored_groups(4), **settings).train()
    with pytest.raises(ConfigError, match=r"groups: '\w{16}' there, '\w{16}' now"):
        make_trainer(tmp_path, groups=stored_groups(3), **settings).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"per_device_train_batch_size": 7, "dataloader_drop_last": True},
            r"no step would be taken: 6 prompts",
        ),
        ({"max_steps": -1, "num_train_epochs": 0}, r"num_train_epochs=0 must be above 0"),
        ({"max_steps": 0}, r"max_steps=0 must be at least 1"),
    ],
)
def test_a_training_without_a_step_is_refused(settings: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        make_trainer(tmp_path, model=make_model(), **settings)
