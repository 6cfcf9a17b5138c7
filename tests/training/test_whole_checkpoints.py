"""A checkpoint of which any file is cut, changed or missing is not resumed from; those before it are."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from nonpareil.errors import ConfigError, DataError
from nonpareil.training.checkpoints.files import (
    discard,
    fault_of,
    last_whole_checkpoint,
    read_list,
)
from nonpareil.training.checkpoints.resume import resume_setting
from tests.tiny import prompts_of
from tests.training.conftest import StopAfter, assert_same, make_trainer, metrics, weights

STEPS = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
FILES = [
    *("checkpoint.json", "trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth"),
    "sampling.json",
    *("model.safetensors", "anchor.safetensors", "config.json", "generation_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "training_args.bin"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """checkpoint-2 and checkpoint-4 of a run of four steps."""
    folder = tmp_path_factory.mktemp("made")
    make_trainer(folder, **STEPS).train()
    assert sorted(path.name for path in (folder / "checkpoint-4").iterdir()) == sorted(FILES)
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy to harm, which has moved."""
    return Path(shutil.copytree(made, tmp_path / "run"))


def harm(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "flipped":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])


@pytest.mark.parametrize("how", ["missing", "empty", "cut", "flipped"])
@pytest.mark.parametrize("file", FILES)
def test_any_harm_to_any_file_is_noticed(file: str, how: str, run: Path) -> None:
    assert last_whole_checkpoint(run) == run / "checkpoint-4"
    harm(run / "checkpoint-4" / file, how)
    told: list[tuple[str, str]] = []
    found = last_whole_checkpoint(run, lambda folder, fault: told.append((folder.name, fault)))
    assert found == run / "checkpoint-2"
    ((name, fault),) = told
    assert name == "checkpoint-4"
    assert file in fault


def test_a_copied_checkpoint_may_have_any_name(made: Path, run: Path, tmp_path: Path) -> None:
    (run / "checkpoint-2").rename(tmp_path / "kept")
    make_trainer(tmp_path / "other", **STEPS).train(resume_from_checkpoint=tmp_path / "kept")
    ended = [
        load_file(folder / "checkpoint-4" / "model.safetensors") for folder in (tmp_path / "other", made)
    ]
    assert_same(*ended)


def test_training_goes_back_to_the_one_before_and_says_so(
    made: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    harm(run / "checkpoint-4" / "trainer_state.json", "empty")
    trainer = make_trainer(run, **STEPS)
    trainer.train(resume_from_checkpoint=True)
    said = capsys.readouterr().err
    assert "checkpoint-4: trainer_state.json has 0 bytes of" in said
    assert "going back to checkpoint-2" in said
    assert trainer.state.global_step == 4
    assert fault_of(run / "checkpoint-4") is None
    whole = make_trainer(made.parent / "whole", **STEPS)
    whole.train()
    assert_same(weights(trainer.model), weights(whole.model))
    assert metrics(run) == metrics(made)
    assert sorted(path.name for path in run.iterdir()) == sorted(path.name for path in made.iterdir())


def test_where_all_are_broken_one_error_tells_what_of_each(run: Path) -> None:
    harm(run / "checkpoint-4" / "optimizer.pt", "cut")
    harm(run / "checkpoint-2" / "config.json", "missing")
    says = (
        r"start without it \(checkpoint-4: optimizer\.pt has .* of .*; checkpoint-2: config\.json is missing"
    )
    with pytest.raises(DataError, match=says):
        make_trainer(run, **STEPS).train(resume_from_checkpoint=True)


def test_a_path_must_be_a_whole_checkpoint(run: Path) -> None:
    harm(run / "checkpoint-4" / "model.safetensors", "cut")
    trainer = make_trainer(run, **STEPS)
    for path, error, says in [
        (
            run / "checkpoint-4",
            DataError,
            r"no whole checkpoint: model\.safetensors has .* are: checkpoint-2",
        ),
        (run, DataError, r"checkpoint\.json, written last, is missing; in .* these are: checkpoint-2"),
        (run / "checkpoint-3", ConfigError, r"no such folder; give a checkpoint's, or true for the last one"),
        (run / "metrics.jsonl", ConfigError, r"no such folder"),
    ]:
        with pytest.raises(error, match=says):
            trainer.train(resume_from_checkpoint=str(path))
    trainer.train(resume_from_checkpoint=run / "checkpoint-2")
    assert trainer.state.global_step == 4


@pytest.mark.parametrize("value", [None, False, "false", "False", "none", "null", ""])
def test_no_is_no(value: Any) -> None:
    assert resume_setting(value) is False


def test_true_is_the_last_and_all_else_a_path(tmp_path: Path) -> None:
    assert [resume_setting(value) for value in (True, "true", "True", " TRUE ")] == [True] * 4
    assert resume_setting("out/checkpoint-2") == Path("out/checkpoint-2")
    for value in (True, "true"):
        with pytest.raises(DataError, match=r"resume_from_checkpoint=true, but .* holds no whole checkpoint"):
            make_trainer(tmp_path / "none").train(resume_from_checkpoint=value)
    with pytest.raises(ConfigError, match=r"resume_from_checkpoint='tru': no such folder"):
        make_trainer(tmp_path / "none").train(resume_from_checkpoint="tru")


def test_a_checkpoint_of_the_model_alone_is_not_resumed_from(tmp_path: Path) -> None:
    make_trainer(tmp_path, **STEPS, save_only_model=True).train()
    with pytest.raises(DataError, match=r"holds no optimizer\.pt: save_only_model"):
        make_trainer(tmp_path, **STEPS).train(resume_from_checkpoint=True)


# --- What is deleted


def test_what_is_not_ours_stays_where_a_checkpoint_goes(run: Path) -> None:
    (run / "checkpoint-2" / "notes.txt").write_text("mine")
    discard(run / "checkpoint-2")
    assert [path.name for path in sorted(run.glob("checkpoint-*"))] == ["checkpoint-2.old", "checkpoint-4"]
    assert [path.name for path in (run / "checkpoint-2.old").iterdir()] == ["notes.txt"]


def test_a_link_is_not_followed(run: Path, tmp_path: Path) -> None:
    shutil.move(run / "checkpoint-4", tmp_path / "elsewhere")
    (run / "checkpoint-4").symlink_to(tmp_path / "elsewhere")
    discard(run / "checkpoint-4")
    assert (run / "checkpoint-4.old").is_symlink()
    assert sorted(path.name for path in (tmp_path / "elsewhere").iterdir()) == sorted(FILES)


def test_a_list_that_names_files_outside_deletes_none(run: Path) -> None:
    checkpoint, outside = run / "checkpoint-2", run / "metrics.jsonl"
    harmed = read_list(checkpoint)
    assert harmed is not None
    harmed["files"] |= {key: {"bytes": 1, "sha256": "0"} for key in ("../metrics.jsonl", str(outside))}
    digest = hashlib.sha256(json.dumps(harmed, sort_keys=True).encode()).hexdigest()
    (checkpoint / "checkpoint.json").write_text(json.dumps({"list": harmed, "sha256": digest}))
    assert read_list(checkpoint) is not None
    discard(checkpoint)
    assert outside.is_file()
    assert not checkpoint.exists()


def test_a_folder_of_another_making_is_neither_resumed_from_nor_deleted(run: Path) -> None:
    """As an older version left it, without a list."""
    (run / "checkpoint-4" / "checkpoint.json").unlink()
    make_trainer(run, **STEPS, save_total_limit=1).train(resume_from_checkpoint=True)
    assert {path.name for path in run.glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-4.old"}
    assert {path.name for path in (run / "checkpoint-4.old").iterdir()} == {*FILES} - {"checkpoint.json"}
    assert fault_of(run / "checkpoint-4") is None


def test_the_best_checkpoint_stays_and_is_known_by_where_it_lies(tmp_path: Path) -> None:
    settings = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "load_best_model_at_end": True,
        "save_total_limit": 2,
    }
    settings |= {"metric_for_best_model": "reward", "greater_is_better": True, **STEPS, "save_steps": 1}
    trainer = make_trainer(tmp_path, eval_dataset=prompts_of([1, 9], [1, 12, 7]), **settings)
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert best.parent == tmp_path
    assert fault_of(best) is None
    stored = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())
    assert stored["best_model_checkpoint"] == str(best)
    assert not [path for path in tmp_path.iterdir() if path.name.endswith((".partial", ".old"))]


# --- A disk that is full


def test_a_checkpoint_that_cannot_be_written_leaves_those_before(run: Path, made: Path) -> None:
    """/dev/full takes the optimizer's state: a real disk that is full, for one file."""
    save = make_trainer(run, **STEPS)
    begun = save._save_optimizer_and_scheduler

    def full(folder: str) -> None:
        os.symlink("/dev/full", Path(folder) / "optimizer.pt")
        begun(folder)

    save._save_optimizer_and_scheduler = full  # type: ignore[method-assign]
    with pytest.raises(DataError, match=r"checkpoint-4 could not be written: \S+.*") as caught:
        save.train(resume_from_checkpoint=run / "checkpoint-2")
    assert "\n" not in str(caught.value)
    assert fault_of(run / "checkpoint-2") is None
    assert fault_of(run / "checkpoint-4") is None, "the one of the run before, which was to be replaced"
    assert sorted(path.name for path in run.iterdir()) == sorted(path.name for path in made.iterdir())


def test_stop_and_other_saves_follow_what_is_asked_now(tmp_path: Path) -> None:
    """transformers would go on saving as often as the checkpoint says."""
    make_trainer(tmp_path, callbacks=[StopAfter(2)], **STEPS).train()
    make_trainer(tmp_path, **{**STEPS, "save_steps": 1}).train(resume_from_checkpoint=True)
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {f"checkpoint-{n}" for n in (2, 3, 4)}
