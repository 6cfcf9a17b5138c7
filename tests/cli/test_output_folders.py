"""Whatever is refused, killed, begun anew or done twice: nothing of the user's is deleted, replaced or mixed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import safetensors
import yaml

from nonpareil.cli.main import main
from nonpareil.markers import MARKER

QUICK = {"evaluate_after": "false", "max_steps": 2, "save_steps": 1}


def snapshot(folder: Path) -> dict[str, bytes | str]:
    """Every file's content and link's target below a folder; our own lock and list aside, and Python's cache."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file() and path.name not in (".lock", MARKER) and path.suffix != ".pyc":
            found[name] = path.read_bytes()
    return found


@pytest.fixture
def inputs(files):
    """All that commands read, one of each kind: adapter, folder of prompts, template, stored groups, ..."""
    (files / "adapter").mkdir()
    base = {"base_model_name_or_path": str(files / "policy"), "peft_type": "LORA"}
    (files / "adapter" / "adapter_config.json").write_text(json.dumps(base))
    (files / "prompts").mkdir()
    shutil.copy(files / "train.jsonl", files / "prompts" / "train.jsonl")
    (files / "judge.txt").write_text("{prompt} {a} {b}")
    (files / "own.py").write_text("from nonpareil.methods.rloo import RLOO\n\nclass Own(RLOO):\n    pass\n")
    (files / "groups" / "data").mkdir(parents=True)
    (files / "groups" / "manifest.json").write_text("{}")
    (files / "c.yaml").write_text(f"temperature: 1.0\nmodel_name_or_path: {files}/policy\n")
    (files / "compare.yaml").write_text(
        yaml.safe_dump(
            {
                "model_name_or_path": str(files / "policy"),
                "dataset_name": str(files / "train.jsonl"),
                "eval_dataset_name": str(files / "test.jsonl"),
                "reward_funcs": [f"{files}/rewards.py:good"],
                "gold_reward": str(files / "rm"),
                "max_completion_length": 6,
                "budget": {"completions": 60},
                "training": {"per_device_train_batch_size": 4},
                "methods": {"copy": {"command": ["{python}", str(files / "own.py"), "{output_dir}"]}},
            }
        )
    )
    return files


JUDGE = {"judge_model": "j", "judge_base_url": "http://127.0.0.1:9/v1"}
INPUTS: dict[str, list[tuple[str, dict[str, str]]]] = {
    "sample": [
        ("policy", {}),
        ("policy", {"model_name_or_path": "adapter"}),
        ("adapter", {"model_name_or_path": "adapter"}),
        ("train.jsonl", {}),
        ("prompts", {"dataset_name": "prompts"}),
        ("rewards.py", {}),
        ("rm", {"reward_model_name_or_path": "rm"}),
        ("rm", {"reward_funcs": "rm"}),
        ("rm", {"reward_endpoints": "vllm+http://127.0.0.1:9#{files}/rm"}),
        ("policy", {"engine": "openai", "base_url": "http://127.0.0.1:9/v1", "tokenizer_name_or_path": "policy"}),
        ("judge.txt", {**JUDGE, "judge_template": "judge.txt"}),
        ("c.yaml", {"config": "c.yaml"}),
    ],
    "distill": [
        ("policy", {}),
        ("test.jsonl", {}),
        ("rewards.py", {}),
        ("rm", {"unseen_reward": "rm"}),
        ("groups", {"groups": "groups", "dataset_name": None, "method": "sft_bon", "n": "4"}),
        ("c.yaml", {"config": "c.yaml"}),
        ("own.py", {"method": "{files}/own.py:Own"}),
    ],
    "evaluate": [
        ("policy", {}),
        ("adapter", {"reference_model_name_or_path": "adapter"}),
        ("test.jsonl", {}),
        ("rm", {"unseen_reward": "rm"}),
    ],
}  # fmt: skip


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize(
    ("command", "place", "changes"), [(c, *case) for c, all_ in INPUTS.items() for case in all_]
)
def test_an_output_folder_that_is_an_input(nonpareil, inputs, monkeypatch, command, place, changes, link):
    """With `overwrite` and without, by its own name and by a link's."""
    monkeypatch.chdir(inputs)
    changes = {k: v and v.replace("{files}", str(inputs)) for k, v in changes.items()}
    output = inputs / place
    if link:
        output = inputs / "link"
        output.symlink_to(inputs / place)
    before = snapshot(inputs)
    for overwrite in ("false", "true"):
        status, _, error = nonpareil(command, "--overwrite", overwrite, **{"output_dir": output, **changes})
        assert status == 2, error
        assert "output_dir=" in error
        assert "Traceback" not in error
        assert snapshot(inputs) == before


@pytest.mark.parametrize("command", ["sample", "distill", "evaluate"])
@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("", "holds"),
        ("policy/tuned", "lies in model_name_or_path"),
        ("work", "is or holds the working directory"),
        ("home", "is or holds a home"),
    ],
)
def test_nothing_is_deleted_around_an_input_nor_at_home(nonpareil, files, monkeypatch, command, place, told):
    for name in ("work", "home", "work/deeper"):
        (files / name).mkdir()
    monkeypatch.chdir(files / "work" / "deeper")
    monkeypatch.setenv("HOME", str(files / "home"))
    before = snapshot(files)
    status, _, error = nonpareil(command, "--overwrite", "true", output_dir=files / place)
    assert status == 2
    assert told in error
    assert "overwrite would delete there; name another place" in error
    assert snapshot(files) == before


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
@pytest.mark.parametrize(
    "place", ["policy", "train.jsonl", "test.jsonl", "rewards.py", "rm", "own.py", "compare.yaml"]
)
def test_a_comparison_over_its_inputs(inputs, capsys, place, overwrite):
    before = snapshot(inputs)
    words = ["--config", str(inputs / "compare.yaml"), "--output_dir", str(inputs / place), *overwrite]
    assert main(["compare", *words]) == 2
    assert "output_dir=" in capsys.readouterr().err
    assert snapshot(inputs) == before


_BETWEEN = ["--model_name_or_path", "a", "--reference_model_name_or_path", "b", "--strength", "1"]


def test_outputs_that_cannot_be_written_to(nonpareil, inputs, capsys):
    """One line, before anything is read."""
    assert nonpareil("sample", output_dir=inputs / "drawn")[0] == 0
    for place in ("/proc/x", "/dev/null/x", inputs / ("a" * 300)):
        for command in ("sample", "distill", "evaluate"):
            status, _, error = nonpareil(command, output_dir=place, reward_funcs="nowhere.py:none")
            assert (status, error.count("\n")) == (2, 1), error
            assert "output_dir=" in error
            assert "cannot be written to" in error or "longer than 255 bytes" in error
        for words in (
            ["curve", "--groups", inputs / "drawn", "--output_dir", place],
            ["export", "--groups", inputs / "drawn", "--output", f"{place}.jsonl"],
            ["compare", "--config", inputs / "compare.yaml", "--output_dir", place],
            ["interpolate", *_BETWEEN, "--output_dir", place],
        ):
            assert main([str(word) for word in words]) == 2
            error = capsys.readouterr().err
            assert error.count("\n") == 1, error
            assert "cannot be written to" in error or "longer than 255 bytes" in error


# --- Nothing is deleted by a command that is refused


def truncate(weights: Path) -> None:
    weights.write_bytes(weights.read_bytes()[:200])


LATER = {
    "prompts": {"dataset_name": "nowhere.jsonl"},
    "reward": {"reward_funcs": "{files}/rewards.py:goood"},
    "reward model": {"reward_funcs": None, "reward_model_name_or_path": "{files}/policy"},
    "weights": {"model_name_or_path": "{files}/damaged"},
    "prompt too long": {"max_completion_length": "1000"},
}


@pytest.mark.parametrize("command", ["sample", "distill", "evaluate"])
def test_a_command_that_is_refused_later_has_deleted_nothing(nonpareil, files, command):
    first = {"sample": {}, "distill": QUICK, "evaluate": {"num_generations": 3}}[command]
    assert nonpareil(command, **{"output_dir": files / "out", **first})[0] == 0
    shutil.copytree(files / "policy", files / "damaged")
    truncate(files / "damaged" / "model.safetensors")
    before = snapshot(files)
    assert len(before) > 20
    for reason, changes in LATER.items():
        changes = {k: v and v.replace("{files}", str(files)) for k, v in changes.items()}
        status, error = 1, reason
        with suppress(safetensors.SafetensorError):
            status, _, error = nonpareil(command, "--overwrite", "true", **{**first, **changes})
        assert status in (1, 2), reason
        assert snapshot(files) == before, (reason, error)


# --- A distillation anew


def distilled(nonpareil, files, *words, **changes):
    return nonpareil("distill", *words, **{"output_dir": files / "out", **QUICK, **changes})


def test_overwrite_deletes_what_we_wrote_and_nothing_else(nonpareil, files):
    out = files / "out"
    assert distilled(nonpareil, files, evaluate_after="true", max_steps=3)[0] == 0
    written = snapshot(out)
    (files / "precious").mkdir()
    (files / "precious" / "thesis.tex").write_text("mine")
    mine = ["notes.txt", "checkpoint-1/notes.txt", "checkpoint-9/model.safetensors", "evaluation/notes.txt"]
    mine += ["evaluation/policy/data/notes.txt", "completions/notes.txt", "config.yaml"]
    for name in mine:
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("mine")
    (out / "link").symlink_to(files / "precious")
    assert distilled(nonpareil, files)[0] == 2
    assert {**snapshot(out), **written} == snapshot(out)

    status, _, error = distilled(nonpareil, files, "--overwrite", "true")
    assert status == 0, error
    left = snapshot(out)
    # The new checkpoint-1 is a folder of its own; what lay in the old one is kept beside it.
    kept = [name.replace("checkpoint-1/", "checkpoint-1.old/") for name in mine]
    assert [left[name] for name in kept] == [b"mine"] * len(mine)
    assert (files / "precious" / "thesis.tex").read_text() == "mine"
    assert {name for name in left if name.startswith(("evaluation", "checkpoint"))} <= {
        *kept,
        *(name for name in written if name.startswith(("checkpoint-1/", "checkpoint-2/"))),
    }, "the old run's evaluation and third checkpoint are gone"
    assert json.loads(left["trainer_state.json"])["global_step"] == 2


@pytest.mark.parametrize(
    "name", ["README.md", "config.json", "model.safetensors", "checkpoint-1/model.safetensors"]
)
@pytest.mark.parametrize("how", ["changed", "put there"])
def test_what_the_user_changed_or_put_in_our_place_is_refused_by_name(nonpareil, files, name, how):
    out = files / "out"
    assert distilled(nonpareil, files, max_steps=1)[0] == 0
    path = out / name
    if how == "changed":
        path.write_bytes(path.read_bytes() + b"\n")
    else:
        path.unlink()
        path.write_text("mine")
    before = snapshot(out)
    status, _, error = distilled(nonpareil, files, "--overwrite", "true")
    assert status == 2
    assert f"holds '{name}', which was changed since" in error
    assert snapshot(out) == before


@pytest.mark.parametrize("words", [(), ("--overwrite", "true"), ("--resume_from_checkpoint", "true")])
def test_a_folder_without_our_list_is_left_alone(nonpareil, files, words):
    """A stranger's model, or a run of an older version."""
    shutil.copytree(files / "policy", files / "stranger")
    (files / "stranger" / "metrics.jsonl").write_text("{}\n")
    before = snapshot(files / "stranger")
    status, _, error = distilled(nonpareil, files, *words, output_dir=files / "stranger")
    assert status == 2
    assert f"has no {MARKER}" in error
    assert "delete all of it yourself" in error
    assert snapshot(files / "stranger") == before
    assert not (files / "stranger" / ".lock").exists()


def test_rollouts_are_not_overwritten_by_a_distillation(nonpareil, files):
    assert nonpareil("sample")[0] == 0
    before = snapshot(files / "out")
    status, _, error = distilled(nonpareil, files, "--overwrite", "true")
    assert status == 2
    assert "was written by `nonpareil sample`" in error
    assert snapshot(files / "out") == before


def test_only_checkpoints_of_ours_are_deleted_for_newer_ones(nonpareil, files):
    out = files / "out"
    assert distilled(nonpareil, files, max_steps=1)[0] == 0
    shutil.copytree(out / "checkpoint-1", out / "checkpoint-7")
    (out / "checkpoint-0").mkdir()
    (out / "checkpoint-0" / "notes.txt").write_text("mine")
    before = {k: v for k, v in snapshot(out).items() if k.startswith(("checkpoint-7", "checkpoint-0"))}
    assert len(before) > 5
    status, _, error = distilled(nonpareil, files, "--overwrite", "true", max_steps=4, save_total_limit=2)
    assert status == 0, error
    assert sorted(p.name for p in out.glob("checkpoint-*")) == [f"checkpoint-{n}" for n in (0, 3, 4, 7)]
    left = snapshot(out)
    assert {name: left[name] for name in before} == before
    status, _, error = distilled(nonpareil, files, "--resume_from_checkpoint", "true", max_steps=6)
    assert status == 2, "it would be taken up, as the newest"
    assert "holds 'checkpoint-7/" in error


def test_a_run_goes_on_in_a_copy_that_lost_its_times(nonpareil, files):
    assert distilled(nonpareil, files, max_steps=1)[0] == 0
    moved = files / "moved"
    shutil.copytree(files / "out", moved, copy_function=shutil.copyfile)
    resume = ("--resume_from_checkpoint", "true")
    status, _, error = distilled(nonpareil, files, *resume, max_steps=2, output_dir=moved)
    assert status == 0, error
    status, _, error = distilled(nonpareil, files, *resume, max_steps=2, output_dir=moved, learning_rate=1)
    assert status == 2
    assert "learning_rate: " in error


@pytest.mark.parametrize(
    "file",
    [
        "optimizer.pt",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("config.json", "model.safetensors", "trainer_state.json")
        ),
    ],
)
def test_a_checkpoint_cut_short_is_passed_over_and_what_was_left_of_it_kept(nonpareil, files, file):
    out = files / "out"
    assert distilled(nonpareil, files)[0] == 0
    harmed = out / "checkpoint-2" / file
    whole = harmed.read_bytes()
    harmed.write_bytes(whole[: len(whole) // 2])
    status, _, error = distilled(nonpareil, files, "--resume_from_checkpoint", "true")
    assert status == 0, error
    assert f"checkpoint-2: {file} has " in error
    assert "going back to checkpoint-1" in error
    assert harmed.read_bytes() != whole[: len(whole) // 2]
    assert [path.name for path in (out / "checkpoint-2.old").iterdir()] == [file]


@pytest.mark.parametrize("words", [("--overwrite", "true"), ("--resume_from_checkpoint", "true")])
@pytest.mark.parametrize("name", ["checkpoint-2.partial/notes", "checkpoint-2.partial/checkpoint-2/notes"])
def test_what_lies_where_a_checkpoint_is_written_first_is_refused(nonpareil, files, words, name):
    assert distilled(nonpareil, files, max_steps=1)[0] == 0
    mine = files / "out" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    before = snapshot(files / "out")
    status, _, error = distilled(nonpareil, files, *words)
    assert status == 2
    assert f"holds '{name}', which is not among" in error
    assert snapshot(files / "out") == before


def test_an_evaluation_is_not_mixed_with_rollouts(nonpareil, files):
    assert nonpareil("sample")[0] == 0
    before = snapshot(files / "out")
    status, _, error = nonpareil("evaluate", "--overwrite", "true", num_generations=4)
    assert status == 2
    assert "was written by `nonpareil sample`" in error
    assert snapshot(files / "out") == before


def test_what_tensorboard_writes_is_ours(nonpareil, files):
    (files / "out" / "runs").mkdir(parents=True)
    assert distilled(nonpareil, files, report_to="tensorboard")[0] == 2, "a folder of others"
    shutil.rmtree(files / "out")
    assert distilled(nonpareil, files, report_to="tensorboard")[0] == 0
    (events,) = (files / "out" / "runs").rglob("*tfevents*")
    theirs = events.with_name("events.out.tfevents.1.elsewhere.1.0")
    theirs.write_text("mine")
    assert distilled(nonpareil, files, "--overwrite", "true")[0] == 0
    assert not events.exists()
    assert theirs.read_text() == "mine"


# --- Rollouts, exports, curves


def test_groups_that_are_not_listed_as_ours_are_not_overwritten(nonpareil, files):
    assert nonpareil("sample")[0] == 0
    shard = files / "out" / "data" / "shard-00001.parquet"
    content = shard.read_bytes()
    for damage in (lambda: (files / "out" / MARKER).unlink(), lambda: shard.write_bytes(content + b"x")):
        damage()
        before = snapshot(files / "out")
        status, _, error = nonpareil("sample", "--overwrite", "true", num_generations=2)
        assert status == 2
        assert "older versions listed none" in error
        assert snapshot(files / "out") == before
        shutil.rmtree(files / "out")
        assert nonpareil("sample")[0] == 0


def test_an_export_replaces_only_an_export(nonpareil, files, capsys):
    assert nonpareil("sample", output_dir=files / "groups")[0] == 0

    def export(output, *words):
        status = main(["export", "--groups", str(files / "groups"), "--output", str(output), *words])
        return status, capsys.readouterr().err

    output = files / "pairs.parquet"
    assert export(output)[0] == 0
    assert export(output)[0] == 2
    first = output.read_bytes()
    assert export(output, "--overwrite", "true", "--format", "sft")[0] == 0
    assert output.read_bytes() != first
    output.write_text("mine")
    (files / "mine.parquet").write_text("mine")
    (files / "link.parquet").symlink_to(files / "mine.parquet")
    before = snapshot(files)
    for name in ("pairs.parquet", "mine.parquet", "link.parquet"):
        status, error = export(files / name, "--overwrite", "true")
        assert status == 2
        assert f"holds '{name}', which " in error
    for name in ("groups/data/shard-00000.parquet", "groups/data/pairs.parquet", "groups"):
        status, error = export(files / name, "--overwrite", "true")
        assert status == 2
        assert "output=" in error
    assert snapshot(files) == before


def test_a_curve_replaces_only_a_curve(nonpareil, files, capsys):
    assert nonpareil("sample", output_dir=files / "groups")[0] == 0
    words = ["curve", "--groups", str(files / "groups")]
    assert [main(words), main(words)] == [0, 0]
    picture = files / "groups" / "curve" / "curve.png"
    picture.write_text("mine")
    assert main(words) == 2
    assert "holds 'curve.png', which was changed since" in capsys.readouterr().err
    assert picture.read_text() == "mine"
    assert main([*words, "--output_dir", str(files / "groups")]) == 2
    assert "is what groups names" in capsys.readouterr().err


def test_an_evaluation_replaces_only_its_own_report(nonpareil, files):
    assert nonpareil("evaluate", num_generations=3)[0] == 0
    page = files / "out" / "report.html"
    page.write_text("mine")
    before = snapshot(files)
    status, _, error = nonpareil("evaluate", "--overwrite", "true", num_generations=2)
    assert status == 2
    assert "holds 'report.html', which was changed since" in error
    assert snapshot(files) == before


# --- Two at once

SLOW = """
import time
from contextlib import suppress
from pathlib import Path

def slow(completions, **columns):
    Path("training").touch()
    time.sleep(600)
"""


def test_two_distillations_in_one_folder_and_a_kill(nonpareil, files, tmp_path):
    """The second is refused while the first lives, and begins where it was killed."""
    (files / "slow.py").write_text(SLOW)
    words = nonpareil.flags("distill", reward_funcs=f"{files}/slow.py:slow", **QUICK)
    first = subprocess.Popen([sys.executable, "-m", "nonpareil", *map(str, words)], cwd=tmp_path)
    try:
        end = time.monotonic() + 60
        while not (tmp_path / "training").exists():
            assert first.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        before = snapshot(files / "out")
        for more in ((), ("--overwrite", "true"), ("--resume_from_checkpoint", "true")):
            status, _, error = distilled(nonpareil, files, *more)
            assert status == 2
            assert "is being written to by another distillation" in error
        status, _, error = nonpareil("evaluate")
        assert status == 2
        assert "is being written to by another process" in error
        assert snapshot(files / "out") == before
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    status, _, error = distilled(nonpareil, files, "--overwrite", "true")
    assert status == 0, error
    assert len((files / "out" / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_lock_file_that_is_a_link(nonpareil, files):
    (files / "thesis.tex").write_text("mine")
    (files / "out").mkdir()
    (files / "out" / ".lock").symlink_to(files / "thesis.tex")
    for command in ("sample", "distill", "evaluate"):
        status, _, error = nonpareil(command)
        assert status == 2
        assert ".lock in it must be a plain file" in error
    assert (files / "thesis.tex").read_text() == "mine"
