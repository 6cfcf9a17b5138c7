"""Shapes in the maths are checked while testing; this must come before anything imports nonpareil."""

import os

import jaxtyping

if "PYTEST_XDIST_WORKER" in os.environ:  # each of several workers has one thread; before torch counts them
    os.environ.setdefault("OMP_NUM_THREADS", "1")

jaxtyping.install_import_hook("nonpareil.maths", "beartype.beartype")
