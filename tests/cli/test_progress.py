"""What a user sees of a long command while it runs: in a log, and on a terminal, which real processes have."""

import fcntl
import os
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from nonpareil.cli.main import main

COMMAND = [sys.executable, "-m", "nonpareil"]
DRAWING = (
    "--max_completion_length",
    "6",
    "--num_generations",
    "4",
    "--max_prompts",
    "6",
    "--shard_size",
    "2",
)
TRAINING = (
    *("--method", "jbond", "--max_completion_length", "4"),
    *("--per_device_train_batch_size", "2", "--evaluate_after", "false"),
)


@pytest.fixture
def in_log(capfd):
    """The lines that a command writes to a log."""

    def run(*words: str) -> list[str]:
        assert main([*words]) == 0
        return capfd.readouterr().err.splitlines()

    return run


def on_terminal(*words: str) -> str:
    """All that a command writes to a terminal."""
    terminal, side = os.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    running = subprocess.Popen([*COMMAND, *words], stdin=side, stdout=side, stderr=side)
    os.close(side)
    shown = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # the command has ended, and with it the terminal's other side
            part = b""
        if not part:
            break
        shown += part
    os.close(terminal)
    text = shown.decode(errors="replace")
    assert running.wait() == 0, text
    return text


def test_a_log_of_sample_says_what_is_done_and_what_is_left(tmp_path, in_log):
    out = str(tmp_path / "out")
    lines = in_log("sample", *DRAWING, "--output_dir", out)
    assert lines[0] == f"nonpareil: 6 prompts, 4 completions of each, into {out}"
    assert lines[1] == "6 groups to draw"
    assert [line.split()[1] for line in lines if line.startswith("draw ")] == ["2/6", "4/6", "6/6"]
    (Path(out) / "data" / "shard-00001.parquet").unlink()
    again = in_log("sample", *DRAWING, "--output_dir", out)
    assert "nonpareil: 2 of 3 shards are drawn; the others follow" in again
    assert [line.split()[1] for line in again if line.startswith("draw ")] == ["2/2"], (
        "the others count no more"
    )


def test_a_log_of_distill_has_a_line_for_each_phase_of_its_first_step(tmp_path, in_log):
    out = ("--output_dir", str(tmp_path / "out"), "--save_steps", "1")
    first = in_log("distill", *TRAINING, *out, "--max_steps", "2")
    phases = [line for line in first if re.match(r"nonpareil: step \d+: (draw|score|train)", line)]
    assert phases == [
        "nonpareil: step 1: draw 3 completions for each of 2 prompts",
        "nonpareil: step 1: score 6 completions",
        "nonpareil: step 1: train",
    ]


@pytest.mark.slow
def test_a_terminal_shows_what_a_step_is_at_and_counts_no_resumed_step(tmp_path):
    out = ("--output_dir", str(tmp_path / "out"), "--save_steps", "2", "--disable_tqdm", "false")
    shown = on_terminal("distill", *TRAINING, *out, "--max_steps", "2")
    at = [shown.index(phase) for phase in ("draw 0/4", "draw 4/4", "score: ", "train: ")]
    assert at == sorted(at)
    assert "nonpareil: step 1: " not in shown
    again = on_terminal("distill", *TRAINING, *out, "--max_steps", "3", "--resume_from_checkpoint", "true")
    assert "| 2/3 [00:00<?" in again, "shown as done when it begins, and without a rate"


@pytest.mark.slow
def test_a_terminal_shows_a_bar_of_what_is_left_to_draw(tmp_path):
    shown = on_terminal("sample", *DRAWING, "--output_dir", str(tmp_path / "out"))
    at = [shown.index(text) for text in ("6 prompts, 4 completions of each", "0/6", "6/6")]
    assert at == sorted(at)
