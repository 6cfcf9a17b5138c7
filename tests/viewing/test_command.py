"""`nonpareil view` as a user starts it: a real process, its address, its end, and what it refuses."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

import nonpareil
from nonpareil.commands.view.command import COMMAND
from nonpareil.errors import ConfigError, DataError
from nonpareil.options.view import ViewOptions
from tests.viewing.made import training_run, two_shards

for package in ("duckdb", "fastapi", "uvicorn"):
    pytest.importorskip(package, reason="the pages need the extra view")

COMMAND_LINE = [sys.executable, "-m", "nonpareil", "view"]


def environment() -> dict[str, str]:
    paths = [str(Path(nonpareil.__file__).parents[1]), *sys.path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def test_pages_are_served_until_ctrl_c(tmp_path):
    groups = two_shards(tmp_path / "groups")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    process = subprocess.Popen(
        [*COMMAND_LINE, "--groups", str(groups), "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=tmp_path,
    )
    try:
        said = process.stderr.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+/", said)
        assert address, said
        page = httpx.get(address[0] + "groups/0/table", timeout=60, trust_env=False)
        assert "4 groups" in page.text
    finally:
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=30)[1]
    assert (process.returncode, rest) == (0, "")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before  # nothing was written


def test_a_bundle_is_written_once_and_again(tmp_path):
    groups = two_shards(tmp_path / "groups")
    options = {"groups": [str(groups)], "bundle": str(tmp_path / "out"), "bundle_groups": 3}
    result = COMMAND.run(ViewOptions(**options))
    assert result == {"bundle": str(tmp_path / "out"), "groups": 3}
    result = COMMAND.run(ViewOptions(**{**options, "bundle_groups": 1}, overwrite=True))
    assert len(list((tmp_path / "out").glob("group-*.html"))) == 1
    (tmp_path / "out" / "index.html").write_text("mine")
    with pytest.raises(ConfigError, match=r"index\.html"):
        COMMAND.run(ViewOptions(**options))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "groups is missing"),
        ({"groups": ["nothing"]}, "groups='nothing': nothing is there"),
        ({"groups": ["run"]}, "groups='run' holds no groups"),
        ({"groups": ["groups", "groups"]}, "names a folder twice"),
        ({"runs": ["groups"]}, "runs='groups' is no training run"),
        ({"runs": ["groups/data/shard-00000.parquet"]}, "is no folder"),
        ({"groups": ["groups"], "host": "no.such.host.invalid"}, "host='no.such.host.invalid' is no address"),
        ({"groups": ["groups"], "runs": ["run"], "bundle": "out"}, "bundle holds one folder of groups"),
        ({"groups": ["groups"], "bundle": "groups"}, "bundle='groups' is what groups names"),
        ({"groups": ["groups"], "bundle": "out", "bundle_query": "sort=x"}, "no field is called 'x'"),
        ({"groups": ["groups"], "bundle_groups": 3}, "bundle_groups=3 is not read without bundle"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_a_line(tmp_path, monkeypatch, options, says):
    monkeypatch.chdir(tmp_path)
    two_shards(tmp_path / "groups")
    training_run(tmp_path / "run", 1)
    with pytest.raises((ConfigError, DataError)) as refused:
        COMMAND.run(ViewOptions(**options))
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_port_in_use_is_refused(tmp_path):
    groups = two_shards(tmp_path / "groups")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            ConfigError, match=f"port={port} of host='127.0.0.1' cannot be had: .*another port"
        ):
            COMMAND.run(ViewOptions(groups=[str(groups)], port=port))
