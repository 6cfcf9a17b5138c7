"""`nonpareil sample --engine ray` on a real local Ray: the same groups as from one process, whatever is killed.

The reward functions below run in Ray's workers, so they leave their marks in files.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from nonpareil.commands.policies import ray as jobs_ray
from nonpareil.commands.policies.local import LocalPolicy
from nonpareil.errors import ConfigError, RewardError
from nonpareil.options.sample import SampleOptions
from nonpareil.rollouts import ray as engine

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]
REWARDS = """
import os, signal, time
from pathlib import Path

here = Path(__file__).parent

def slow(completions, **columns):
    time.sleep(0.3)
    with (here / "began.txt").open("a") as log:
        log.write(f"{time.time()}\\n")
    return [None if "good" in text else float(len(text)) for text in completions]

def deadly(completions, id, **columns):
    if (here / "armed").exists() and id[0] == 4:
        (here / "armed").rename(here / "fired")
        os.kill(os.getpid(), signal.SIGKILL)
    return slow(completions)

def few(completions, id, **columns):
    return [1.0] if id[0] == 4 else [1.0] * len(completions)
"""


@pytest.fixture(scope="module")
def cluster():
    """A local Ray that the commands find running: starting one for each test would take most of the time."""
    ray = pytest.importorskip("ray")
    environment = dict(os.environ)
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        yield ray
    finally:
        ray.shutdown()
        os.environ.clear()
        os.environ.update(environment)


@pytest.fixture
def sample(nonpareil, files):
    """Run `nonpareil sample`; with `ray` on two workers, else in this process."""
    (files / "own.py").write_text(REWARDS)

    def run(folder: str, reward: str, *, ray: bool = False, **changes):
        if ray:
            changes |= {"engine": "ray", "num_workers": changes.get("num_workers", 2)}
        changes = {"shard_size": 2, "reward_funcs": f"{files}/own.py:{reward}", **changes}
        return nonpareil("sample", output_dir=files / folder, **changes)

    return run


def contents(folder: Path) -> list:
    """Every shard's schema, metadata and columns, and the manifest."""
    tables = [pq.read_table(path) for path in sorted((folder / "data").glob("shard-*.parquet"))]
    assert len(tables) == 6
    shards = [(table.schema, table.schema.metadata, table.to_pydict()) for table in tables]
    return [*shards, (folder / "manifest.json").read_bytes()]


def test_the_same_groups_as_in_one_process_as_they_come(sample, files, cluster):
    rewards = {"reward_model_name_or_path": files / "rm", "reward_weights": "1.0 0.5", "reward_timeout": 60}
    assert sample("alone", "slow", **rewards)[0] == 0
    (files / "began.txt").unlink()
    status, _, err = sample("spread", "slow", ray=True, **rewards)
    assert status == 0, err
    assert contents(files / "spread") == contents(files / "alone")
    assert '"returned None"' in (files / "spread" / "manifest.json").read_text()
    # Streamed: the first shards lie on disk before the last ones are scored.
    began = sorted(map(float, (files / "began.txt").read_text().split()))
    written = sorted(path.stat().st_mtime for path in (files / "spread" / "data").glob("shard-*.parquet"))
    assert len(began) == len(written) == 6
    assert written[0] < began[-2]
    assert written[2] < began[-1]
    # Nothing is left to do, for either engine.
    for ray in (False, True):
        assert " (0 shards drawn now)" in sample("spread", "slow", ray=ray, **rewards)[2]


def test_kill_9_of_a_worker(sample, files, cluster):
    assert sample("alone", "deadly")[0] == 0
    (files / "armed").touch()
    status, _, err = sample("spread", "deadly", ray=True)
    assert (status, (files / "fired").exists()) == (0, True), err
    assert contents(files / "spread") == contents(files / "alone")


def test_kill_9_of_the_driver_and_run_again(sample, files, cluster, nonpareil):
    assert sample("alone", "slow")[0] == 0
    folder = files / "spread"
    flags = {"reward_funcs": f"{files}/own.py:slow", "shard_size": 2, "output_dir": folder}
    argv = nonpareil.flags("sample", **flags, engine="ray", num_workers=1)
    driver = subprocess.Popen(
        [sys.executable, "-m", "nonpareil.cli.main", *argv], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    family = []
    try:
        data, deadline = folder / "data", time.monotonic() + 300
        while len(list(data.glob("shard-*.parquet"))) < 2:
            assert time.monotonic() < deadline, "no shards"
            assert driver.poll() is None, driver.stderr.read().decode()
            time.sleep(0.02)
        family = psutil.Process(driver.pid).children(recursive=True)
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in data.glob("shard-*.parquet")}
        assert 2 <= len(before) < 6
        status, _, err = sample("spread", "slow", ray=True, num_workers=1)
        assert status == 0, err
        assert f"({6 - len(before)} shards drawn now)" in err
        assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before
        assert contents(folder) == contents(files / "alone")
    finally:
        driver.kill()
        # Ray ends its processes itself when the driver is gone, two agents of it only after some seconds.
        _, alive = psutil.wait_procs(family, timeout=5)
        for process in alive:
            process.kill()
    assert len(family) > 3


def test_a_worker_that_fails_for_good_ends_the_run_with_its_own_words(sample, files, cluster):
    status, _, err = sample("spread", "few", ray=True)
    assert status == 1
    assert err.splitlines()[-1].startswith(
        "nonpareil: reward function 'few' returned 1 values for 8 completions"
    )
    assert "Traceback" not in err
    # What was finished stays, and another reward, in this process, goes on from there.
    assert sample("spread", "slow")[0] == 0
    assert sample("alone", "slow")[0] == 0
    read = [pq.read_table(files / name / "data")["rewards/slow"].to_pylist() for name in ("spread", "alone")]
    assert read[0] == read[1]


def test_a_worker_with_another_policy_is_refused(files):
    options = SampleOptions(model_name_or_path=str(files / "policy"))
    info = LocalPolicy(options.model_name_or_path, None, options.dtype).info()
    assert jobs_ray._EngineOfWorker(options, info, None)().describe()["engine"] == "transformers"
    with pytest.raises(ConfigError, match=r"another policy than the run:\n  fingerprint: 'other' where"):
        jobs_ray._EngineOfWorker(options, {**info, "fingerprint": "other"}, None)()


def test_more_workers_than_there_is_room_for(sample, files, cluster):
    status, _, err = sample("spread", "slow", ray=True, num_workers=3)
    assert status == 2
    assert "num_workers=3" in err
    assert "2 CPUs and 0 GPUs on 1 nodes, room for 2" in err


def dies(task):
    with open(task, "a") as log:
        log.write("died\n")
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_task_that_kills_every_worker_ends_the_run(tmp_path, cluster):
    with pytest.raises(
        ConfigError,
        match="a Ray worker kept dying, most likely for want of memory; it was started again 3 times",
    ):
        list(engine.RayPool(1).map(dies, [str(tmp_path / "log")]))
    assert (tmp_path / "log").read_text().split() == ["died"] * 4


def refuses(task):
    raise RewardError(f"not {task}")


def test_errors_of_a_worker_are_raised_as_they_were(cluster):
    with pytest.raises(RewardError, match=r"^not this$"):
        list(engine.RayPool(1).map(refuses, ["this"]))
    assert list(engine.RayPool(1).map(refuses, [])) == []


def test_what_cannot_be_sent_or_reached_is_refused_before_ray_starts(tmp_path, sample):
    pytest.importorskip("ray")
    with (tmp_path / "open").open("w") as file, pytest.raises(ConfigError, match=r"cannot be sent .*by path"):
        list(engine.RayPool(1).map(lambda task: file.write(task), ["x"]))
    status, _, err = sample("spread", "slow", ray=True, ray_address="localhost:1")
    assert (status, "ray_address='localhost:1': nobody answers there" in err) == (2, True)
    status, _, err = sample("spread", "slow", ray=True, ray_address="localhost")
    assert (status, "neither auto nor host:port" in err) == (2, True)
    assert not (tmp_path / "spread").exists()


def test_settings_of_ray_are_refused_by_the_other_engine(sample):
    status, _, err = sample("spread", "slow", num_workers=2)
    assert status == 2
    assert "num_workers=2 is not read with engine=transformers; give engine=ray, or remove num_workers" in err
