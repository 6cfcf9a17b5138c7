"""Keep freed memory for the next tensor of its size (CPU, glibc), and free what is done with."""

import ctypes
import gc
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_CGROUP = Path("/sys/fs/cgroup/memory.max")
"""A container's limit, which the machine's own memory says nothing of."""
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Stop the C allocator from handing every large tensor's memory back to the system; True where it could.

    By default glibc maps each allocation over 32 MiB anew and unmaps it when freed, so that every large
    temporary (logits above all) is paid for again in page faults (`benchmarks/allocator.py`).
    The process keeps its peak memory until it ends.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library, such as musl
        return False
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 2**28}
    accepted = [mallopt(name, value) for name, value in settings.items()]  # each is to be tried
    return all(accepted)


def memory_of(device: "torch.device") -> int | None:
    """Bytes that a device has in all, whoever holds them now; None where it does not say."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type != "cpu":
        return None
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # another system
        return None
    try:
        return min(machine, int(_CGROUP.read_text(encoding="ascii")))
    except (OSError, ValueError):  # no such limit: `max`
        return machine


def free_memory() -> None:
    """Let go of what nothing refers to, and of the accelerator's cache, where torch was imported at all."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
