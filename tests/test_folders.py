"""Who may write to a folder, and what of it is ours: with real files, links and processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nonpareil.errors import ConfigError
from nonpareil.files import write_bytes, write_json
from nonpareil.folders import delete_listed, discard, is_vacant, writing, writing_file
from nonpareil.markers import MARKER


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With two files of ours, one of them in a folder, and a note of the user's beside each."""
    with writing(tmp_path / "out", "distill"):
        write_bytes(tmp_path / "out" / "a.json", b"ours")
        write_bytes(tmp_path / "out" / "deep" / "b.json", b"ours")
    for path in (tmp_path / "out" / "notes.txt", tmp_path / "out" / "deep" / "notes.txt"):
        path.write_text("mine")
    return tmp_path / "out"


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.name.startswith("."))


def delete(folder: Path) -> list[str]:
    with writing(folder, "distill") as held:
        held.delete()
    return names(folder)


# --- What is ours


def test_only_listed_files_are_deleted(folder):
    assert delete(folder) == ["deep", "deep/notes.txt", "notes.txt"]


def test_folders_left_empty_go_too(folder):
    (folder / "deep" / "notes.txt").unlink()
    assert delete(folder) == ["notes.txt"]


def test_a_file_that_was_changed_or_replaced_stays(folder):
    with (folder / "a.json").open("a") as file:
        file.write(" and mine")
    (folder / "theirs.json").write_text("mine")
    os.replace(folder / "theirs.json", folder / "deep" / "b.json")
    assert delete(folder) == ["a.json", "deep", "deep/b.json", "deep/notes.txt", "notes.txt"]


def test_a_file_changed_to_the_same_size_stays(folder):
    (folder / "a.json").write_text("mine")
    assert "a.json" in delete(folder)


def test_a_copy_of_a_folder_is_ours_without_the_times_of_its_files(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, copy_function=shutil.copyfile)
    (copy / "deep" / "b.json").write_bytes(b"mine")
    assert delete(copy) == ["deep", "deep/b.json", "deep/notes.txt", "notes.txt"]


def test_links_are_not_followed(folder, tmp_path):
    """Neither a file's, nor a folder's on the way, even where what they lead to is just as it was listed."""
    (folder / "deep" / "b.json").rename(tmp_path / "b.json")
    (folder / "deep" / "b.json").symlink_to(tmp_path / "b.json")
    assert "deep/b.json" in delete(folder)
    assert (tmp_path / "b.json").read_bytes() == b"ours"

    with writing(folder, "distill"):
        write_bytes(folder / "more" / "c.json", b"ours")
    (folder / "more").rename(tmp_path / "more")
    (folder / "more").symlink_to(tmp_path / "more")
    delete(folder)
    assert (tmp_path / "more" / "c.json").read_bytes() == b"ours"
    assert (folder / "more").is_symlink()


def test_a_folder_that_is_a_link_is_the_one_it_points_to(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    assert delete(tmp_path / "link") == ["deep", "deep/notes.txt", "notes.txt"]
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("name", ["../precious.txt", "{parent}/precious.txt", "deep/../../precious.txt"])
def test_a_list_reaches_nothing_outside(folder, tmp_path, name):
    """A list that came with a downloaded folder, say."""
    precious = tmp_path / "precious.txt"
    precious.write_text("mine")
    status = precious.stat()
    marker = json.loads((folder / MARKER).read_text())
    marker["files"][name.format(parent=tmp_path)] = f"{status.st_size}:{status.st_mtime_ns}"
    write_json(folder / MARKER, marker)
    delete(folder)
    assert precious.read_text() == "mine"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"command": 1}',
        '{"command": "distill", "files": [], "open": {}, "staged": []}',
        '{"command": "distill", "files": {}, "open": {}, "staged": [".."]}',
        '{"command": "distill", "files": {}, "open": {}, "staged": [".nonpareil-/../.."]}',
    ],
)
def test_a_damaged_list_is_refused(folder, content):
    (folder / MARKER).write_text(content)
    with pytest.raises(ConfigError, match="is damaged, so what is ours there is unknown"):
        delete(folder)
    assert len(names(folder)) == 5


def test_a_list_behind_a_link_is_no_list(folder, tmp_path):
    (folder / MARKER).rename(tmp_path / "list.json")
    (folder / MARKER).symlink_to(tmp_path / "list.json")
    with pytest.raises(ConfigError, match="is damaged"):
        delete(folder)


def test_what_is_in_the_way_is_named(folder):
    with writing(folder, "distill") as held:
        held.refuse_foreign(["*.json", "deep/*.json"])
        with pytest.raises(
            ConfigError, match=r"holds 'notes.txt', which is not among the files that nonpareil"
        ):
            held.refuse_foreign(["*.txt"])
        (folder / "a.json").write_text("mine now")
        with pytest.raises(ConfigError, match=r"holds 'a.json', which was changed since .* move it away"):
            held.refuse_foreign(["*.json"])


def test_a_folder_of_another_command_is_refused(folder):
    with (
        writing(folder, "sample") as held,
        pytest.raises(ConfigError, match="written by `nonpareil distill`"),
    ):
        held.refuse_other_command()
    with pytest.raises(ConfigError, match="written by `nonpareil distill`"):
        delete_listed(folder, "sample")
    assert len(names(folder)) == 5


def test_a_listed_folder_goes_whole_where_nothing_else_is_in_it(folder):
    delete_listed(folder, "distill")
    assert names(folder) == ["deep", "deep/notes.txt", "notes.txt"]
    (folder / "deep" / "notes.txt").unlink()
    (folder / "deep").rmdir()
    (folder / "notes.txt").unlink()
    delete_listed(folder, "distill")
    assert not folder.exists()


def test_a_file_of_an_earlier_run_is_discarded_only_if_ours(folder):
    with writing(folder, "distill"):
        discard(folder / "notes.txt")
        discard(folder / "a.json")
    assert "notes.txt" in names(folder)
    assert "a.json" not in names(folder)


# --- What others write for us


def test_what_appears_at_a_place_meanwhile_is_listed(folder):
    with writing(folder, "distill") as held:
        with held.adding("deep"):
            (folder / "deep" / "weights.bin").write_text("ours")
            (folder / "elsewhere.txt").write_text("mine")
        assert held.is_ours(folder / "deep" / "weights.bin")
        assert not held.is_ours(folder / "deep" / "notes.txt")
    assert delete(folder) == ["deep", "deep/notes.txt", "elsewhere.txt", "notes.txt"]


def test_a_growing_file_is_ours_at_its_end(folder):
    with writing(folder, "distill") as held, held.adding("log.jsonl"):
        for line in ("1\n", "2\n"):
            with (folder / "log.jsonl").open("a") as file:
                file.write(line)
    assert "log.jsonl" not in delete(folder)


def test_staged_files_come_whole_and_never_over_what_is_not_ours(folder):
    with writing(folder, "distill") as held:
        with held.staged() as staging:
            (staging / "inner").mkdir()
            (staging / "inner" / "c.json").write_text("ours")
            assert "inner/c.json" not in names(folder)
        assert (folder / "inner" / "c.json").read_text() == "ours"
        with (
            pytest.raises(
                ConfigError, match=r"notes.txt is not ours to replace; what was to be saved there lies in"
            ),
            held.staged() as staging,
        ):
            (staging / "notes.txt").write_text("ours")
    assert (folder / "notes.txt").read_text() == "mine"
    (saved,) = folder.glob("saved-*/notes.txt")
    assert saved.read_text() == "ours"


KILLED = """
import os, sys
from pathlib import Path
from nonpareil import folders, markers
from nonpareil.files import write_bytes
folder = Path(sys.argv[1])
with folders.writing(folder, "distill") as held:
    {body}
"""
KILL = "os.kill(os.getpid(), 9)"


def run_killed(folder: Path, body: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED.format(body=body), str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize(
    ("body", "left"),
    [
        # Listed, and killed before it gets its name: the old one is still ours.
        ("rename = os.replace; "
         f"os.replace = lambda a, b: {KILL} if b.name == 'a.json' else rename(a, b); "
         "write_bytes(folder / 'a.json', b'newer')", []),
        # Just named.
        (f"write_bytes(folder / 'c.json', b'new'); {KILL}", []),
        # Amid what another library writes: its files are ours, and a note put there since is not.
        ("a = held.adding('cp'); a.__enter__(); (folder / 'cp').mkdir(); "
         f"(folder / 'cp' / 'model.safetensors').write_text('half'); {KILL}", ["cp", "cp/notes.txt"]),
        # Amid what is staged.
        (f"a = held.staged(); (a.__enter__() / 'model.safetensors').write_text('half'); {KILL}", []),
        # Amid deleting.
        (f"Path.unlink = lambda *_, **__: {KILL}; held.delete()", []),
    ],
)  # fmt: skip
def test_a_kill_leaves_nothing_of_ours_unlisted(folder, body, left):
    run_killed(folder, body)
    if left:
        (folder / "cp" / "notes.txt").write_text("mine")
    assert delete(folder) == sorted(["deep", "deep/notes.txt", "notes.txt", *left])
    assert {path.name for path in folder.iterdir() if path.name[0] == "."} - {".lock", MARKER} <= {
        path.name for path in folder.glob(".a.json.*.tmp")
    }


# --- One writer at a time


def test_a_second_writer_is_refused_until_the_first_is_dead(tmp_path):
    holder = (
        "import sys, time; from nonpareil.folders import writing\n"
        "with writing(sys.argv[1], 'distill'): print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    refused = pytest.raises(ConfigError, match=r"out' is being written to by another process")
    with refused, writing(tmp_path / "out", "distill"):
        pass
    process.kill()
    process.wait()
    with writing(tmp_path / "out", "distill"):
        pass


def test_the_same_process_is_a_second_writer_too(tmp_path):
    refused = pytest.raises(ConfigError, match="another process")
    with writing(tmp_path, "sample"), refused, writing(tmp_path, "sample"):
        pass


def link(lock: Path, target: Path) -> None:
    lock.symlink_to(target)


def pipe(lock: Path, target: Path) -> None:
    os.mkfifo(lock)


def directory(lock: Path, target: Path) -> None:
    lock.mkdir()


@pytest.mark.parametrize("make", [link, pipe, directory])
def test_a_lock_that_is_no_plain_file_is_refused(tmp_path, make):
    (tmp_path / "thesis.tex").write_text("mine")
    (tmp_path / "out").mkdir()
    make(tmp_path / "out" / ".lock", tmp_path / "thesis.tex")
    refused = pytest.raises(ConfigError, match=r"\.lock in it must be a plain file; remove it")
    with refused, writing(tmp_path / "out", "distill"):
        pass
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_a_lock_that_was_taken_away_is_not_taken_for_one(tmp_path):
    """A process that opened it just before locks the file that is there now, as any third one will."""
    import fcntl

    (tmp_path / "out").mkdir()
    real, taken = fcntl.flock, []

    def taken_away(descriptor, how):
        real(descriptor, how)
        if not taken:
            taken.append(True)
            (tmp_path / "out" / ".lock").unlink()

    fcntl.flock = taken_away
    try:
        with writing(tmp_path / "out", "distill") as held:
            assert os.path.samestat(os.fstat(held.lock), (tmp_path / "out" / ".lock").stat())
    finally:
        fcntl.flock = real


def test_nothing_written_leaves_nothing_behind(tmp_path):
    with writing(tmp_path / "new" / "out", "distill"):
        assert is_vacant(tmp_path / "new" / "out")
    assert not (tmp_path / "new").exists()
    (tmp_path / "notes.txt").write_text("mine")
    with writing(tmp_path, "distill"):
        pass
    assert names(tmp_path) == ["notes.txt"]
    assert not (tmp_path / ".lock").exists()


@pytest.mark.parametrize(
    "place", ["/proc/x", "/dev/null/x", "{tmp}/" + "a" * 300, "{tmp}/file", "{tmp}/a\0b", "{tmp}/dangling"]
)
def test_a_place_that_cannot_be_written_to(tmp_path, place):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with (
        pytest.raises(
            ConfigError, match=r"output_dir=.*(cannot be written to: .*; name another|is a file; give)"
        ),
        writing(place.format(tmp=tmp_path), "distill"),
    ):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "file"]


# --- A single file


def test_a_single_file_has_its_list_beside_it(tmp_path):
    path = tmp_path / "new" / "pairs.jsonl"
    with writing_file(path, "export", option="output"):
        write_bytes(path, b"ours")
    with writing_file(path, "export", option="output") as held:
        held.refuse_foreign([path.name])
        path.write_text("mine")
        with pytest.raises(ConfigError, match=r"output=.*'pairs.jsonl', which was changed"):
            held.refuse_foreign([path.name])
    with (
        pytest.raises(ConfigError, match="is a directory"),
        writing_file(tmp_path, "export", option="output"),
    ):
        pass
    for place in ("/proc/x.jsonl", "/dev/null/x.jsonl", tmp_path / ("a" * 300 + ".jsonl")):
        refused = pytest.raises(ConfigError, match=r"output=.*cannot be written to")
        with refused, writing_file(Path(place), "export", option="output"):
            pass
