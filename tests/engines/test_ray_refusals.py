"""What `--engine ray` refuses before Ray is started, or without Ray at all."""

import sys
from types import SimpleNamespace

import pytest

from nonpareil.errors import ConfigError
from nonpareil.rollouts.ray import RayPool


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


@pytest.mark.parametrize(
    ("cpus", "gpus", "room"),
    [(1, 0, 5), (2, 0, 2), (3, 0, 1), (4, 0, 0), (1, 1, 2), (1, 0.6, 2), (1, 0.5, 3)],
)
def test_a_worker_lies_on_one_node(cpus, gpus, room):
    """Ray would wait for ever for 4 CPUs, of which there are 5, but 3 at most on one node."""
    nodes = [{"CPU": 3.0, "GPU": 2.0}, {"CPU": 2.0}, {"memory": 1.0}]
    alive = [{"Alive": True, "Resources": resources} for resources in nodes]
    gone = {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}
    cluster = SimpleNamespace(nodes=lambda: [*alive, gone])
    if room:
        assert RayPool(None, cpus, gpus)._workers(cluster) == room
    with pytest.raises(ConfigError, match=f"5 CPUs and 2 GPUs on 3 nodes, room for {room}"):
        RayPool(room + 1, cpus, gpus)._workers(cluster)


def test_ray_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r'pip install "nonpareil\[ray\]"'):
        RayPool().check()
