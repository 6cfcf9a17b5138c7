"""Closed streams, full disks and narrow locales: one line, no traceback, and nothing lost. Real processes."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nonpareil.cli import main as entry
from nonpareil.cli.machine import failure_of
from nonpareil.commands import curve

COMMAND = [sys.executable, "-m", "nonpareil"]


def shell(line: str, **settings) -> subprocess.CompletedProcess[str]:
    words = " ".join(COMMAND)
    return subprocess.run(
        ["bash", "-c", line.replace("NONPAREIL", words)],
        capture_output=True,
        text=True,
        check=False,
        **settings,
    )


def test_output_that_nobody_reads_is_one_line():
    done = shell("set -o pipefail; NONPAREIL --help | true")
    assert done.returncode in (0, 1)  # 0 where all was written before the reader left
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert not done.stderr or done.stderr.startswith("nonpareil: ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_output_that_does_not_fit_is_a_failure():
    done = shell("NONPAREIL --help >/dev/full")
    assert done.returncode == 1
    assert done.stderr.startswith("nonpareil: ")
    assert "No space left on device; free some space" in done.stderr
    assert done.stderr.count("\n") == 1


def test_streams_that_are_closed_stay_out_of_the_way_of_files(tmp_path):
    """The next file opened would get their numbers, and what is printed would land in it."""
    code = (
        "import os, sys; from nonpareil.cli.main import main; main(['--version']);"
        "f = os.open('kept.txt', os.O_CREAT | os.O_WRONLY); print('noise', flush=True);"
        "print('x', file=sys.stderr);"
        "sys.exit(f)"
    )
    done = shell(f'{sys.executable} -c "{code}" <&- >&- 2>&-', cwd=tmp_path)
    assert done.returncode > 2
    assert (tmp_path / "kept.txt").read_text() == ""


def test_a_word_that_is_no_text_is_refused(tmp_path):
    done = shell("NONPAREIL curve --groups $'caf\\xe9'")
    assert done.returncode == 2
    assert "'caf\\udce9' is no text in this machine's encoding" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_locale_without_letters(files):
    """Prompts and completions hold any letter; a path that the machine cannot name is refused in one line."""
    (files / "rewards.py").write_text(
        "def length(completions, **columns):\n    return [len(c) for c in completions]\n"
    )
    (files / "p.jsonl").write_text(
        json.dumps({"prompt": "café \u4f60", "a": "é"}, ensure_ascii=False), encoding="utf-8"
    )
    narrow = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    line = (
        "NONPAREIL sample --model_name_or_path policy --reward_funcs rewards.py:length --num_generations 2 "
        "--max_completion_length 4 --inspect true"
    )
    done = shell(f"{line} --dataset_name p.jsonl --output_dir out", cwd=files, env=narrow)
    assert done.returncode == 0, done.stderr
    (files / "run.yaml").write_text("output_dir: sortie-é\ndataset_name: p.jsonl\n", encoding="utf-8")
    done = shell(f"{line} --config run.yaml", cwd=files, env=narrow)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert "PYTHONUTF8=1" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "out/a"),
            "'out/a': No space left on device; free some",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "out"),
            "'out': Permission denied; give a place that",
        ),
        (
            OSError(errno.EFBIG, "File too large"),
            "File too large; raise the limit on a file's size (ulimit -f)",
        ),
        (MemoryError(), "this machine's memory is full; lower max_tokens_per_batch"),
        (
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity"
            ),
            "the device's memory is full (OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB); lower "
            "max_tokens_per_batch, in a training also give gradient_checkpointing=true",
        ),
        (
            RuntimeError("[enforce fail] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
            "the device's memory is full (RuntimeError: [enforce fail] err == 0. DefaultCPUAllocator: can't",
        ),
    ],
)
def test_what_a_machine_lacks_is_one_line(error, says):
    assert failure_of(error).startswith(says)


def test_what_nobody_expected_is_one_line_and_can_still_be_found(monkeypatch, capsys):
    def fails(options):
        raise KeyError("a bug\nof \x1b[31mours")

    monkeypatch.setattr(curve, "COMMAND", replace(curve.COMMAND, run=fails))
    assert entry.main(["curve"]) == 1
    message = capsys.readouterr().err
    assert message.startswith("nonpareil: unexpected KeyError: ")
    assert message.count("\n") == 1
    assert "\x1b" not in message
    kept = Path(message.split("its traceback is in ")[1].split(";")[0])
    assert 'raise KeyError("a bug' in kept.read_text()
    kept.unlink()


def test_a_command_that_ends_well_is_left_alone(monkeypatch, capsys):
    ends = replace(
        curve.COMMAND, run=lambda options: {"a": "é"}, show=lambda result: None, as_json=lambda result: result
    )
    monkeypatch.setattr(curve, "COMMAND", ends)
    assert entry.main(["curve", "--json"]) == 0
    assert capsys.readouterr().out == '{"a": "\\u00e9"}\n'
