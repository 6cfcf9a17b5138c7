"""What others wrote stays text wherever it is shown: it moves no cursor, forges no line, and ends no run."""

import json
import os
import pty
import re
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import yaml

from nonpareil.cli.main import main
from nonpareil.files import write_json
from tests.cli.conftest import WORDS
from tests.hostile_server import answering, body
from tests.rewards.servers import chat, serve

FORGED = "nonpareil: all is well"
ACTS = (
    f"\x1b]0;own\x07\x1b[2J\r\x9b31m\u202e\u2028\n{FORGED}\t"
    "[/b][red]:bomb: $x^$ <script>alert(1)</script>|`` --- _y_"
)
NAME = ACTS.replace("/", "")
"""The same as the name of a folder or file."""
CODE = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)")
SHOWN_BY_US = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]|\x1b\[[12]?[AK]|\r")
"""What rich and tqdm themselves send to a terminal."""


def assert_tame(text: str, *, tty: bool = False, page: bool = False) -> None:
    """Nothing in it acts on a terminal, and no line of it is forged."""
    text = SHOWN_BY_US.sub("", text) if tty else text
    allowed = "\n\t" if page else "\n"
    bad = {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in allowed}
    assert not bad, (bad, text)
    assert page or not [line for line in text.split("\n") if line.startswith(FORGED)], text


@pytest.fixture
def hostile(files: Path) -> Path:
    """Everything of a run, with names and texts that act."""
    here = files / NAME
    here.mkdir()
    for name in ("policy", "rm"):
        (files / name).rename(here / name)
    for name in ("train", "test"):
        rows = [{"prompt": f"the film was {word} {ACTS}", "note": ACTS} for word in WORDS[:6]]
        (here / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (here / "rewards.py").write_text(
        f"TEXT = {ACTS!r}\n"
        "def good(completions, **columns):\n    return [float(len(text)) for text in completions]\n"
        "def half(completions, **columns):\n"
        "    return [TEXT if len(text) % 2 else float(len(text)) for text in completions]\n"
    )
    return here


def settings(here: Path, command: str, **changes: Any) -> list[str]:
    given: dict[str, Any] = {
        "model_name_or_path": here / "policy",
        "dataset_name": here / ("test.jsonl" if command == "evaluate" else "train.jsonl"),
        "reward_funcs": f"{here}/rewards.py:good",
        "max_completion_length": 4,
        "output_dir": here / f"out {NAME}",
        **changes,
    }
    return [command, *(word for name, value in given.items() for word in (f"--{name}", str(value)))]


def run(argv: list[str], capfd: pytest.CaptureFixture[str], status: int = 0) -> str:
    """Exit status and both outputs are checked; gives stdout."""
    code = main(argv)
    out, err = capfd.readouterr()
    assert_tame(out)
    assert_tame(err)
    assert "Traceback" not in err
    assert code == status, err
    return out


def test_sample_curve_and_export(hostile, capfd):
    groups = hostile / f"out {NAME}"
    out = run([*settings(hostile, "sample", num_generations=4, inspect=True), "--json"], capfd)
    assert json.loads(out.splitlines()[-1])["output_dir"] == str(groups)
    assert_tame((groups / "manifest.json").read_text())
    out = run(["curve", "--groups", str(groups), "--json"], capfd)
    assert json.loads(out)["curve"] == str(groups / "curve" / "curve.json")
    run(
        ["export", "--groups", str(groups), "--format", "preference", "--output", str(hostile / "p.jsonl")],
        capfd,
    )


def test_reasons_of_rewards(hostile, capfd):
    half = settings(hostile, "sample", num_generations=4, reward_funcs=f"{hostile}/rewards.py:half")
    run(half, capfd)
    assert_tame((hostile / f"out {NAME}" / "manifest.json").read_text())


def test_distill_its_page_and_its_card(hostile, capfd):
    argv = settings(
        hostile, "distill", eval_dataset_name=hostile / "test.jsonl", max_steps=1, report_to="none",
        per_device_train_batch_size=2, num_generations_eval=2, num_reference_samples_eval=4, disable_tqdm="true",
    )  # fmt: skip
    run(argv, capfd)
    folder = hostile / f"out {NAME}"
    page = (folder / "evaluation" / "report.html").read_text()
    assert_tame(page, page=True)
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)" in page, "the prompts are shown"
    assert_tame((folder / "evaluation" / "report.json").read_text())
    card = (folder / "README.md").read_text()
    assert_tame(card)
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["best-of-n", "jbond", "nonpareil"],
    }
    assert not re.search(r"(?<!\\)<script>", CODE.sub("", text.split("```python")[0]))
    named = re.search(r'pipeline\("text-generation", model=(.*)\)', text)
    assert named is not None
    assert eval(named.group(1)) == folder.name


def test_evaluate_with_a_title(hostile, capfd):
    argv = settings(
        hostile, "evaluate", reference_model_name_or_path=hostile / "policy", num_reference_samples=4,
        num_generations=2, title=ACTS, unseen_reward=f"{hostile}/rewards.py:half",
    )  # fmt: skip
    run(argv, capfd)
    page = (hostile / f"out {NAME}" / "report.html").read_text()
    assert_tame(page, page=True)
    assert "<script>" not in page


@pytest.mark.parametrize(
    "argv",
    [
        [ACTS],
        ["sample", f"--{ACTS}", "1"],
        ["sample", "--num_generations", ACTS],
        ["sample", "--config", ACTS],
        ["curve", "--groups", ACTS],
        ["export", "--groups", ACTS, "--output", ACTS],
        ["compare", "--config", ACTS],
    ],
)
def test_wrong_words_are_told_tamely(argv, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        status = main(argv)
    except SystemExit as stop:  # of argparse
        status = int(str(stop.code))
    out, err = capfd.readouterr()
    assert status in (1, 2)
    assert_tame(out)
    assert_tame(err)
    assert FORGED in err


@pytest.mark.parametrize(
    "key", ["model_name_or_path", "dataset_name", "reward_funcs", "reward_model_name_or_path"]
)
def test_names_that_are_not_there_are_told_tamely(hostile, capfd, key):
    assert main(settings(hostile, "sample", **{key: str(hostile / ACTS)})) in (1, 2)
    out, err = capfd.readouterr()
    assert_tame(out)
    assert_tame(err)


@pytest.mark.parametrize("status", [200, 400])
def test_words_of_servers(hostile, capfd, status):
    said = json.dumps(
        {"error": {"message": ACTS + "\ud83d"}, "choices": [{"text": ACTS, "finish_reason": ACTS}]}
    )
    with answering(body(said.encode(), status)) as url:
        changes = {"engine": "openai", "base_url": url, "model_name_or_path": ACTS, "max_retries": 0}
        assert main(settings(hostile, "sample", **changes)) == 1
        assert main(settings(hostile, "sample", reward_funcs="", reward_endpoints=f"json+{url}/#r")) in (1, 2)
    out, err = capfd.readouterr()
    assert_tame(out)
    assert_tame(err)
    assert FORGED in err


def test_reasons_and_verdicts_of_servers(hostile, capfd):
    def answer(request: dict[str, Any]) -> Any:
        if "messages" in request:
            return chat("A" if "good" in str(request) else ACTS + "\ud83d")
        count = len(request["prompts"])
        return {"scores": [None, 1.0, 2.0, 3.0][:count] * (count // 4), "reasons": [ACTS + "\ud83d"] * count}

    with serve(answer) as server:
        argv = settings(hostile, "sample", num_generations=4, reward_funcs="", judge_model=ACTS)
        place = argv.index("--reward_funcs")
        del argv[place : place + 2]
        argv += ["--judge_base_url", server.url, "--judge_cache", str(hostile / "judge.jsonl")]
        argv += ["--reward_endpoints", f"json+{server.url}/#r"]
        assert main(argv) in (0, 1)
    out, err = capfd.readouterr()
    assert_tame(out)
    assert_tame(err)
    assert_tame((hostile / "judge.jsonl").read_text() if (hostile / "judge.jsonl").exists() else "")
    assert_tame((hostile / f"out {NAME}" / "manifest.json").read_text())


@pytest.mark.parametrize("command", [pytest.param("curve", marks=pytest.mark.slow), "sample"])
def test_a_terminal_is_not_moved(hostile, command):
    """rich draws otherwise on a terminal: a process of its own, on a pseudo-terminal."""
    groups = hostile / "out [/b]"  # a folder within a folder
    argv = settings(hostile, "sample", num_generations=4, output_dir=groups)
    if command == "curve":
        main(argv)
        argv = ["curve", "--groups", str(groups)]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "nonpareil", *argv], stdout=theirs, stderr=theirs, stdin=theirs,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "500"},
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the other side is closed
            break
        if not piece:
            break
        seen += piece
    os.close(ours)
    assert process.wait() == 0, seen
    assert_tame(seen.decode(), tty=True)
    assert "[/b]" in seen.decode() or command == "curve", "it tells no path"


def test_json_on_disk_holds_any_text(tmp_path):
    value = {ACTS: ["half \ud83d", "\U000e0041 ü 電影", "a b"]}
    path = write_json(tmp_path / "x.json", value)
    assert json.loads(path.read_text()) == value
    assert_tame(path.read_text())
    assert "ü 電影" in path.read_text()
