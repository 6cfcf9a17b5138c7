"""Shapes in the maths are checked while testing; this must come before anything imports nonpareil."""

import os

import jaxtyping
import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # each of several workers has one thread; before torch counts them
    os.environ.setdefault("OMP_NUM_THREADS", "1")

jaxtyping.install_import_hook("nonpareil.maths", "beartype.beartype")


def pytest_configure(config: pytest.Config) -> None:
    """Of vLLM only the test that is about it compiles, which takes 12 seconds of a CPU for every engine."""
    if config.option.markexpr == "vllm":
        os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
