"""What `--engine ray` refuses before Ray is started, or without Ray at all."""

import sys

import pytest

from nonpareil.engines.ray import RayPool
from nonpareil.errors import ConfigError


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_workers": 0}, "num_workers=0 must be at least 1"),
        ({"cpus_per_worker": 0}, "cpus_per_worker=0 must be at least 1"),
        ({"gpus_per_worker": -1}, "gpus_per_worker=-1 must be 0 or more"),
        ({"gpus_per_worker": float("nan")}, "gpus_per_worker=nan must be 0 or more"),
    ],
)
def test_numbers_that_cannot_work(settings, says):
    with pytest.raises(ConfigError, match=says):
        RayPool(**settings)


def test_ray_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r'pip install "nonpareil\[ray\]"'):
        RayPool().check()
