"""What a training says on its way: what rewards log, completions in files and on the console, and boards."""

import json
import socket
import sqlite3
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from nonpareil.errors import ConfigError, RewardError
from nonpareil.records import Prompt
from nonpareil.training.step.completions import as_text, completions_table, write_completions
from tests.tiny import GOOD
from tests.training.conftest import PROMPTS, goodness, make_trainer, metrics, stored_groups

REWARD = f"""
def told(completion_ids, prompts, trainer_state, log_extra, log_metric):
    log_extra("length", [len(ids) for ids in completion_ids])
    log_extra("note", [{{"good": ids.count({GOOD})}} for ids in completion_ids])
    step, most = trainer_state.global_step, trainer_state.max_steps
    log_metric("progress", step / most)
    log_metric("seen", len(trainer_state.log_history))
    return [ids.count({GOOD}) + 0.1 * len(ids) + step for ids in completion_ids]
"""
CHAT = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "the film"}]


def logged_files(folder: Path) -> list[list[dict[str, Any]]]:
    return [pq.read_table(file).to_pylist() for file in sorted((folder / "completions").iterdir())]


@pytest.mark.parametrize("timeout", [None, 60])
def test_rewards_know_the_step_and_log_beside_their_scores(tmp_path: Path, timeout: float | None) -> None:
    (tmp_path / "told.py").write_text(REWARD)
    trainer = make_trainer(
        tmp_path / "run",
        reward=f"{tmp_path / 'told.py'}:told",
        max_steps=3,
        reward_timeout=timeout,
        eval_dataset=PROMPTS[:2],
        eval_strategy="steps",
        eval_steps=3,
    )
    trainer.train()
    last = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["eval_progress"] for line in last if "eval_reward" in line] == [1.0]
    lines = metrics(tmp_path / "run")
    assert [line["progress"] for line in lines] == pytest.approx([0, 1 / 3, 2 / 3])
    assert [line["seen"] for line in lines] == [0, 1, 2]
    for step, rows in enumerate(logged_files(tmp_path / "run")):
        assert rows
        for row in rows:
            good = json.loads(row["note"])["good"]
            assert row["told"] == pytest.approx(good + 0.1 * row["length"] + step)
    trainer.reward.release()


@pytest.mark.parametrize("name", ["reward", "loss", "rewards/clashes/mean"])
def test_a_metric_of_a_name_that_is_taken_is_refused(tmp_path: Path, name: str) -> None:
    def clashes(completion_ids: list[list[int]], log_metric: Any) -> list[float]:
        log_metric(name, 1.0)
        return goodness(completion_ids)

    with pytest.raises(RewardError, match=f"a metric '{name}' .log_metric., which the training has itself"):
        make_trainer(tmp_path, reward=clashes, max_steps=1).train()


def test_scores_that_change_with_the_step_are_not_compared_with_stored_ones(tmp_path: Path) -> None:
    def changing(completion_ids: list[list[int]], trainer_state: Any) -> list[float]:
        return goodness(completion_ids)

    groups = stored_groups(4, reward=changing)
    with pytest.raises(
        ConfigError, match="'changing' reads trainer_state, and VBON would compare its scores"
    ):
        make_trainer(tmp_path, reward=changing, groups=groups, method="vbon", n=2)
    make_trainer(tmp_path, reward=changing, groups=groups, method="sft_bon", n=2)  # which scores nothing anew


def test_prompts_are_kept_as_messages(tmp_path: Path) -> None:
    chats = [
        Prompt("chat", CHAT, [1, 7, 8]),
        Prompt("named", [{**CHAT[1], "name": "Ann", "tool_calls": [{"id": 1}]}], [1, 7]),  # type: ignore[list-item,dict-item]
    ]
    make_trainer(tmp_path / "chats", prompts=chats, per_device_train_batch_size=2, max_steps=1).train()
    by_name = {len(row["prompt"]): row["prompt"] for row in logged_files(tmp_path / "chats")[0]}
    assert [{k: v for k, v in turn.items() if v is not None} for turn in by_name[2]] == CHAT
    assert by_name[1] == [{**CHAT[1], "name": "Ann", "tool_calls": '[{"id": 1}]'}]

    write_completions(tmp_path, 1, [{"step": 1, "prompt": p, "reward": None} for p in ("a text", CHAT)])
    mixed = logged_files(tmp_path)[0]
    assert mixed[0]["prompt"] == [{"role": None, "content": "a text"}]
    assert mixed[1]["prompt"] == CHAT

    from datasets import load_dataset

    # An earlier version's file beside them: text, of a folder that is taken up again.
    write_completions(tmp_path / "old", 1, [{"step": 1, "prompt": str(CHAT), "reward": 0.5}])
    for folder, kept in ((tmp_path, CHAT), (tmp_path / "old", str(CHAT))):
        file = str(folder / "completions" / "completions_00001.parquet")
        assert load_dataset("parquet", data_files=file, split="train")[-1]["prompt"] == kept


def test_a_few_completions_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_trainer(tmp_path / "one", max_steps=2, logging_steps=2, num_completions_to_print=2).train()
    shown = capsys.readouterr().err
    assert "Step 2: 2 of 2 completions" in shown
    assert all(word in shown for word in ("prompt", "completion", "goodness", "advantage"))
    assert "Step 1" not in shown
    make_trainer(tmp_path / "two", max_steps=1).train()
    assert "Step 1" not in capsys.readouterr().err, "by default none, where nobody is at the terminal"
    with pytest.raises(ConfigError, match="num_completions_to_print=3 is not read without log_completions"):
        make_trainer(tmp_path / "three", log_completions=False, num_completions_to_print=3)


def test_the_table_is_narrow_and_shows_text_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    row = {"step": 7, "prompt": CHAT, "completion": "[red]\x1b[31m " + "word " * 500, "drawn_by": "policy"}
    rows = [{**row, "fine": 0.123456, "advantage": None}, {**row, "drawn_by": "anchor"}]
    text = as_text(completions_table(rows, 7, 3, seed=0))
    assert max(map(len, text.splitlines())) <= 140
    assert "Step 7: 1 of 1 completions" in text
    assert "user: the film" in text
    assert "[red]\\x1b[31m" in text
    assert "0.123" in text
    assert "advantage" not in text, "this method has none"
    assert len(text.splitlines()) < 30


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Addresses beyond this machine that were asked for."""
    asked: list[Any] = []
    connect = socket.socket.connect

    def watched(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and not str(address[0]).startswith(("127.", "::1", "localhost")):
            asked.append(address)
            raise OSError("no network")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", watched)
    return asked


def test_trackio_gets_metrics_and_completions_in_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: list[Any]
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    trainer = make_trainer(
        tmp_path / "run", max_steps=2, report_to="trackio", project="films", trackio_space_id=None
    )
    trainer.train()
    database = next((tmp_path / "trackio").rglob("films*.db"))
    with sqlite3.connect(database) as connection:
        kept = [json.loads(row[0]) for row in connection.execute("select metrics from metrics")]
    rewards = [line["train/reward"] for line in kept if "train/reward" in line]
    assert rewards == pytest.approx([line["reward"] for line in metrics(tmp_path / "run")])
    assert sum("completions" in line for line in kept) == 2
    assert no_network == []


def test_wandb_works_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: list[Any]) -> None:
    wandb = pytest.importorskip("wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    make_trainer(tmp_path / "run", max_steps=2, report_to="wandb").train()
    summary = dict(wandb.run.summary)
    wandb.finish()
    assert summary["train/reward"] == pytest.approx(metrics(tmp_path / "run")[-1]["reward"])
    assert summary["completions"]["nrows"] == 2 * 3
    assert list(tmp_path.rglob("*.wandb"))
    assert no_network == []
