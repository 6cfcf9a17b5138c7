"""kill -9 a real process in the middle, then run again."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rollouts.conftest import roll

ROOT = Path(__file__).resolve().parents[2]
# A copy of the process kills itself so that the moment is exact: while the third file is being put in its place.
DIES = """
import os, signal, sys
from pathlib import Path
from tests.rollouts.conftest import roll

def die(folder, phase):
    if phase == "score":
        roll(folder, reward=None)
    replace, shards = os.replace, 0

    def dying(source, target):
        nonlocal shards
        shards += str(target).endswith(".parquet")
        if shards == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = dying
    roll(folder)

for phase in ("draw", "score"):
    child = os.fork()  # forked, it need not import torch again
    if child == 0:
        try:
            die(Path(sys.argv[1]) / phase, phase)
        finally:
            os._exit(1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders, `draw` and `score`, each of a run that was killed there."""
    folder = tmp_path_factory.mktemp("killed")
    done = subprocess.run(
        [sys.executable, "-c", DIES, str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.split() == [str(-signal.SIGKILL)] * 2, done.stderr
    return folder


@pytest.mark.parametrize("phase", ["draw", "score"])
def test_kill_9_and_run_again(killed, rollouts, phase):
    folder = killed / phase
    data = folder / "data"
    names = [f"shard-{i:05d}.parquet" for i in range(4 if phase == "score" else 2)]
    assert sorted(path.name for path in data.glob("*.parquet")) == names
    assert len(list(data.glob(".shard-00002*.tmp"))) == 1
    finished = {
        data / name: ((data / name).read_bytes(), (data / name).stat().st_mtime_ns) for name in names[:2]
    }

    result = roll(folder)
    assert (result.shards_drawn, result.shards_scored) == ((2, 4) if phase == "draw" else (0, 2))
    assert not list(data.glob(".*"))
    groups = result.groups()
    assert len({group.prompt_id for group in groups}) == len(groups) == 8
    assert groups == rollouts.groups()
    assert result.manifest["counts"] == rollouts.manifest["counts"]
    if phase == "score":  # scored before the kill, so not written again
        assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in finished} == finished
