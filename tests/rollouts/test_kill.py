"""kill -9 a real process in the middle, then run again."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rollouts.conftest import roll

ROOT = Path(__file__).resolve().parents[2]
# The process kills itself so that the moment is exact: while the third file is being put in its place.
DIES = """
import os, signal, sys
from pathlib import Path
from tests.rollouts.conftest import combined, roll

folder, rewards_first = Path(sys.argv[1]), sys.argv[2] == "score"
if rewards_first:
    roll(folder, reward=None)
replace, shards = os.replace, 0

def dying(source, target):
    global shards
    shards += str(target).endswith(".parquet")
    if shards == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

os.replace = dying
roll(folder)
"""


@pytest.mark.parametrize("phase", ["draw", "score"])
def test_kill_9_and_run_again(tmp_path, rollouts, phase):
    folder = tmp_path / "killed"
    done = subprocess.run(
        [sys.executable, "-c", DIES, str(folder), phase],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
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
