"""What a comparison deletes to make it anew, and what it leaves: all that is not listed as its own."""

import json
import shutil

import pytest

from nonpareil.markers import MARKER
from tests.cli.test_compare import comparison, in_process  # noqa: F401  (fixtures)
from tests.cli.test_output_folders import snapshot

NOTES = (
    *("notes.txt", "runs/notes.txt", "runs/copy/seed-0/notes.txt", "runs/copy/seed-0/model/notes.txt"),
    *("runs/copy/seed-0/evaluation/notes.txt", "runs/copy/seed-0/evaluation/final/notes.txt"),
    *("runs/copy/seed-0/evaluation/final/policy/notes.txt", "reference/notes.txt"),
)


@pytest.fixture
def compared(comparison, files):  # noqa: F811
    """A finished comparison with notes of the user's everywhere."""
    status, _, error = comparison(seeds=[0])
    assert status == 0, error
    for name in NOTES:
        (files / "out" / name).write_text("mine")
    return files / "out"


def test_runs_made_anew_leave_the_users_files(comparison, compared):  # noqa: F811
    first = json.loads((compared / "runs/copy/seed-0/settings.json").read_text())
    status, _, error = comparison("--overwrite", seeds=[0], max_completion_length=5)
    assert status == 0, error
    assert "trained already" in error
    status, _, error = comparison(
        "--overwrite",
        seeds=[0],
        max_completion_length=5,
        methods={"copy": {"command": [*comparison.copy[:-1], "7"]}},
    )
    assert status == 0, error
    assert "trained already" not in error
    assert json.loads((compared / "runs/copy/seed-0/settings.json").read_text()) != first
    moved = "runs/copy/seed-0/model/notes.txt"
    left = snapshot(compared)
    assert [name for name in NOTES if left.get(name) != b"mine"] == [moved]
    assert left["runs/copy/seed-0/model-kept-1/notes.txt"] == b"mine"
    assert "is now in" in error


@pytest.mark.parametrize("changes", [{"eval_dataset_name": "nowhere.jsonl"}, {"gold_reward": "nowhere.py:f"}])
def test_a_comparison_that_is_refused_has_deleted_nothing(comparison, compared, files, changes):  # noqa: F811
    before = snapshot(files / "out")
    methods = {"copy": {"command": [*comparison.copy, "anew"]}}
    assert comparison("--overwrite", seeds=[0], methods=methods, **changes)[0] in (1, 2)
    assert snapshot(files / "out") == before


def test_all_stale_things_are_found_before_one_is_deleted(comparison, compared, files):  # noqa: F811
    """The settings of an evaluation that cannot be read are found behind a run that would be made anew."""
    (compared / "evaluation.json").unlink()
    (compared / "evaluation.json").write_text("{")
    before = snapshot(compared)
    methods = {"copy": {"command": [*comparison.copy, "anew"]}}
    status, _, error = comparison("--overwrite", seeds=[0], methods=methods)
    assert status == 2
    assert "holds 'evaluation.json', which was changed since" in error
    assert snapshot(compared) == before


def test_a_folder_of_other_things_is_not_mixed_with(comparison, files):  # noqa: F811
    (files / "out").mkdir()
    (files / "out" / "comparison.json").write_text("mine")
    for words in ((), ("--overwrite",)):
        status, _, error = comparison(*words, seeds=[0])
        assert status == 2
        assert "holds 'comparison.json', which is not among the files" in error
    assert snapshot(files / "out") == {"comparison.json": b"mine"}


def test_what_a_killed_command_left_is_kept_beside(comparison, files):  # noqa: F811
    model = files / "out/runs/copy/seed-0/model"
    model.mkdir(parents=True)
    (model / "thesis.tex").write_text("mine")
    status, _, error = comparison(seeds=[0])
    assert status == 0, error
    assert (model.with_name("model-kept-1") / "thesis.tex").read_text() == "mine"
    assert not (model / "thesis.tex").exists()


def test_a_run_killed_before_its_first_checkpoint_begins_anew(comparison, in_process, files):  # noqa: F811
    model = files / "out/runs/jbond/seed-0/model"
    settings = {"methods": {"jbond": {"max_steps": 2}}, "seeds": [0]}
    assert comparison(**settings)[0] == 0
    for name in ("done.json", "settings.json"):
        (model.parent / name).unlink()
    for checkpoint in model.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    (model / "notes.txt").write_text("mine")
    before = (model / MARKER).read_text()
    status, _, error = comparison(**settings)
    assert status == 0, error
    assert in_process[1][-2:] == ["--overwrite", "true"]
    assert (model / "notes.txt").read_text() == "mine"
    assert (model / MARKER).read_text() != before
