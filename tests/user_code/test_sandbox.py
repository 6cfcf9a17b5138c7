"""The sandbox: programs that mean harm reach nothing, end in time and leave nothing behind."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nonpareil.errors import ConfigError, RewardError
from nonpareil.user_code.sandbox import Sandbox, landlock, run_program
from nonpareil.user_code.sandbox.bases import PREFIX, held_folder
from nonpareil.user_code.sandbox.bases import sweep as sweep_folders
from nonpareil.user_code.sandbox.client import SOURCE
from nonpareil.user_code.sandbox.confine import missing_cuts
from nonpareil.user_code.sandbox.supervise import sweep
from tests.user_code.hostile import PROGRAMS

pytestmark = pytest.mark.skipif(bool(missing_cuts()), reason=f"cannot be cut off here: {missing_cuts()}")

ENDLESS = {
    "never ends": "timeout",
    "sleeps": "timeout",
    "ignores signals": "timeout",
    "never ends in C": "timeout",
    "goes on at exit": "timeout",
    "a thread goes on": "timeout",
    "closes all and goes on": "timeout",
    "eats memory by threads": "threads",
    "fills the disk with files": "files",
    "fills its output": "output",
    "fills its errors": "output",
}
"""Why each is stopped that does not end by itself."""
LATER = ("never ends in C", "goes on at exit", "a thread goes on", "fills its errors", "deep recursion in C")
"""What costs a second or more, and is much like another."""
TIMEOUT = 0.5


def children_of(process: int) -> list[int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    return [child for child, parent in parents.items() if parent == process]


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(true: object, seconds: float = 30.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():  # type: ignore[operator]
            return True
        time.sleep(0.02)
    return False


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(timeout=TIMEOUT, memory_mb=512) as made:
        yield made


def hold_out(sandbox: Sandbox, names: list[str], folder: Path) -> None:
    """Run these programs, several at once, and look at what each was and left."""
    mark = folder / "mark"
    mark.write_text("a secret")
    mark.chmod(0o600)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        places = {"{mark}": str(mark), "{home}": str(folder), "{port}": str(listener.getsockname()[1])}

        def run(name: str) -> None:
            source = PROGRAMS[name]
            for place, value in places.items():
                source = source.replace(place, value)
            ran = sandbox.run(source)
            # A busy machine may not let a program reach its other limit in time.
            assert ran.stopped in (ENDLESS.get(name, ""), "timeout"), (name, ran.stderr[-300:])
            assert ran.code != 0, name
            assert "a secret" not in ran.stdout, name

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(run, names))
        listener.settimeout(0.01)
        with pytest.raises(TimeoutError):
            listener.accept()
    assert mark.read_text() == "a secret"
    assert mark.stat().st_mode & 0o777 == 0o600
    assert os.listdir(folder) == ["mark"]
    server = sandbox._server._process.pid  # type: ignore[union-attr]
    assert wait_until(lambda: not any(map(is_alive, children_of(server))))
    assert os.listdir(sandbox._server.base) == []  # type: ignore[union-attr]


def test_programs_that_mean_harm_reach_nothing_and_end(sandbox: Sandbox, tmp_path: Path) -> None:
    assert set(ENDLESS) | set(LATER) <= set(PROGRAMS)
    hold_out(sandbox, [name for name in PROGRAMS if name not in LATER], tmp_path)


@pytest.mark.slow
def test_more_programs_that_mean_harm(sandbox: Sandbox, tmp_path: Path) -> None:
    hold_out(sandbox, list(LATER), tmp_path)


def test_a_program_runs_as_python_runs_it(sandbox: Sandbox) -> None:
    ran = sandbox.run(
        "import sys\nprint(input() * 2)\nprint('x', file=sys.stderr)\nsys.exit(3)", stdin="ab\n"
    )
    assert (ran.stdout, ran.stderr, ran.code, ran.stopped) == ("abab\n", "x\n", 3, "")
    ran = sandbox.run("def f():\n    return 1 / 0\nf()")
    assert ran.code == 1
    assert ran.stderr.endswith("ZeroDivisionError: division by zero\n")
    assert sandbox.run("import sys\nsys.exit('no')").code == 1
    threads = (
        "import atexit, threading as t\natexit.register(print, 2)\nt.Thread(target=print, args=(1,)).start()"
    )
    assert sandbox.run(threads).stdout == "1\n2\n"


def test_a_program_sees_no_environment_and_an_empty_folder(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "a secret")
    source = """
import os, random
open('x', 'w').write('1')
print(os.listdir('.') == ['x'] == os.listdir(os.environ['HOME']), sorted(os.environ), random.random())
"""
    with Sandbox(timeout=5) as fresh:
        first, second = fresh.run(source), fresh.run(source)
    assert first.stdout.startswith("True ")
    assert "HF_TOKEN" not in first.stdout
    assert first.stdout == second.stdout  # the same numbers, and nothing of the first one's folder
    assert not sandbox.run("import os; print(os.path.exists('x'))").stdout.startswith("True")


def test_a_program_that_is_kept_waiting_is_not_called_endless() -> None:
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3 * os.cpu_count())]  # type: ignore[operator]
    try:
        with Sandbox(timeout=1.0, workers=1) as sandbox:
            ran = sandbox.run("import time\nwhile time.process_time() < 0.6: pass\nprint('done')")
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert ran.stdout == "done\n"


def test_nothing_is_left_when_the_job_is_killed(tmp_path: Path) -> None:
    script = """
import threading
from nonpareil.user_code.sandbox import Sandbox
sandbox = Sandbox(timeout=600)
sandbox.run("1")
print(sandbox._server._process.pid, sandbox._server.base, flush=True)
sandbox.run("import time\\nopen('x', 'w').close()\\ntime.sleep(600)")
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        server, base = job.stdout.readline().split()
        assert wait_until(lambda: list(Path(base).glob("*/x")))
        supervisors = children_of(int(server))
        processes = [*supervisors, *(child for each in supervisors for child in children_of(each))]
        assert len(processes) == 2
        job.kill()
        job.wait()
    assert wait_until(lambda: not any(map(is_alive, [int(server), *processes])))
    assert wait_until(lambda: not Path(base).exists())


def test_an_interruption_kills_what_runs(sandbox: Sandbox) -> None:
    with Sandbox(timeout=600) as patient:
        patient.run("1")
        server = patient._server._process.pid  # type: ignore[union-attr]
        signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        signal.setitimer(signal.ITIMER_REAL, 1.0)
        with pytest.raises(KeyboardInterrupt):
            patient.run("import time; time.sleep(600)")
        assert wait_until(lambda: not any(map(is_alive, children_of(server))))
        assert patient.run("print(1)").stdout == "1\n"
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


def test_a_server_that_was_killed_is_started_again(sandbox: Sandbox) -> None:
    with Sandbox(timeout=5) as own:
        own.run("1")
        base = own._server.base  # type: ignore[union-attr]
        os.kill(own._server._process.pid, signal.SIGKILL)  # type: ignore[union-attr]
        assert own.run("print(2)").stdout == "2\n"
    assert not Path(base).exists()


def test_folders_of_killed_runs_go_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    killed = "import os; from nonpareil.user_code.sandbox.bases import *; held_folder(); os.kill(0, 9)"
    env = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(SOURCE)}
    subprocess.run([sys.executable, "-c", killed], env=env, start_new_session=True, check=False)
    (left,) = tmp_path.iterdir()
    (left / "program-1").mkdir()
    held, descriptor = held_folder()
    shared, young, linked, elsewhere = (
        tmp_path / f"{PREFIX}{name}" for name in ("shared", "young", "link", "x")
    )
    elsewhere.mkdir()
    server = subprocess.Popen(
        [sys.executable, "-c", "input()", str(shared)], stdin=subprocess.PIPE
    )  # of a version before
    for folder, mode in ((shared, 0o700), (young, 0o700), (elsewhere, 0o755)):
        folder.mkdir(exist_ok=True)
        folder.chmod(mode)
    linked.symlink_to(elsewhere)
    for folder in (left, Path(held), shared, elsewhere):
        os.utime(folder, (1, 1))
    sweep_folders()
    assert {*tmp_path.iterdir()} == {Path(held), shared, young, linked, elsewhere}
    server.communicate(b"\n")
    os.close(descriptor)
    sweep_folders()
    assert {*tmp_path.iterdir()} == {young, linked, elsewhere}


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("sys.executable", "/no/such/python", "No such file"),
        ("tempfile.tempdir", "/no/such/folder", "No such file"),
    ],
)
def test_a_sandbox_that_cannot_start_says_why(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setattr(name, value)
    with Sandbox() as own, pytest.raises(RewardError, match=f"the sandbox did not start: .*{says}.*{value}"):
        own.run("1")


def test_where_forks_cannot_be_refused_what_is_left_is_killed() -> None:
    script = """
import ctypes, os, time
from nonpareil.user_code.sandbox.supervise import sweep
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
reader, writer = os.pipe()
if os.fork() == 0:
    for _ in range(3):
        if os.fork() == 0:
            os.setsid()
            os.write(writer, b"%8d" % os.getpid())
            time.sleep(600)
    os._exit(0)
pids = [int(os.read(reader, 8)) for _ in range(3)]
sweep()
print([pid for pid in pids if os.path.exists(f"/proc/{pid}")])
"""
    assert sweep() is None  # nothing to kill
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert ran.stdout == "[]\n"


def test_a_kernel_that_cannot_cut_programs_off_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "version", lambda: 0)
    with pytest.raises(ConfigError, match=r"cut off here from files \(no Landlock.*allow_unsandboxed=true"):
        Sandbox()
    assert run_program("print(1)", allow_unsandboxed=True).stdout == "1\n"


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"timeout": 0}, "timeout=0"), ({"memory_mb": 8}, "memory_mb=8"), ({"workers": 0}, "workers=0")],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Sandbox(**settings)  # type: ignore[arg-type]
