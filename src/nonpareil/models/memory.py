"""Keep freed memory for the next tensor of its size (CPU, glibc), and free what is done with."""

import ctypes
import gc
import sys

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


def free_memory() -> None:
    """Let go of what nothing refers to, and of the accelerator's cache, where torch was imported at all."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
