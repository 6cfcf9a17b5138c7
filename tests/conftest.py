"""Shapes in the maths are checked while testing; this must come before anything imports nonpareil."""

import gc
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


@pytest.fixture(scope="module", autouse=True)
def cheap_collections() -> None:
    """Models are let go with a whole garbage collection; what was there before a file need not be looked through.

    Otherwise each takes a quarter of a second for all that torch, transformers and thousands of tests are, a third
    of a small training with its evaluation.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> None:
    """Tests kill processes and never the machine, so what is not yet on the disk is read all the same.

    A training with its evaluation asks a hundred times to wait, half a second in all.
    """
    os.fsync = lambda descriptor: None
