"""benchmarks/serve.py, in short: a real server before a stand-in upstream, both processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

for name in ("fastapi", "uvicorn", "prometheus_client"):
    pytest.importorskip(name)

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_it_measures_both_sides(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "benchmarks/serve.py",
        "--smoke",
        "--groups",
        "--write",
        str(tmp_path / "r.json"),
    ]
    paths = os.pathsep.join((str(ROOT / "src"), os.environ.get("PYTHONPATH", "")))
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "r.json").read_text())
    assert 0 < found["share_of_throughput"] < 1.5
    assert found["alone"]["p50"] > 0.04  # four tokens of 10 ms
    assert found["server_cpu_ms"] > 0
