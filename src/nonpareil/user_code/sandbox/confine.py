"""What a program is kept from, and within: applied to its process before a line of it runs."""

import ctypes
import functools
import os
import resource
import struct
import sys
import sysconfig

from nonpareil.user_code.sandbox import landlock, seccomp

FILE_BYTES = 8 << 20
"""Of one file that a program writes; also of what it may write to a pipe that is a file."""
OPEN_FILES = 64
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
CAPABILITIES_VERSION = 0x20080522
DEVICES = (("/dev/null", landlock.PLAIN_FILES), ("/dev/zero", landlock.READ), ("/dev/urandom", landlock.READ))
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache")
ZONES = ("/usr/share/zoneinfo", "/etc/localtime")


def missing_cuts() -> list[str]:
    """What cannot be cut off on this machine, each with its reason; empty where programs can be confined."""
    reasons = []
    if landlock.version() == 0:
        reasons.append("files (no Landlock: it needs Linux 5.13 and to be switched on)")
    if no_filter := seccomp.unavailable():
        reasons.append(f"network and other processes ({no_filter})")
    return reasons


def environment() -> dict[str, str]:
    """Of all programs: of the user's where libraries are and no more; one thread for numpy, one order of sets."""
    own = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "PYTHONHOME") if name in os.environ}
    return {**own, **threads, **kept}


def end_with_parent(parent: int) -> None:
    """This process is killed when its parent ends.

    Raises:
        ProcessLookupError: it has ended already.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, 9, 0, 0, 0)
    if os.getppid() != parent:
        raise ProcessLookupError("the parent has ended")


def confine(folder: str, memory_mb: int, cpu_seconds: int, allow_unsandboxed: bool) -> None:
    """Take from this process, for good, all but Python's own files, the folder's plain files, and its limits.

    Raises:
        OSError: a cut that the kernel refuses, unless `allow_unsandboxed`: then only the others hold.
    """
    os.umask(0o077)
    memory = memory_mb << 20
    for name, limit in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(name)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(name, (limit, limit))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    header, none = struct.pack("=Ii", CAPABILITIES_VERSION, 0), bytes(24)
    libc.capset(header, none)  # root without its powers: the owner of files, and no more
    for cut in (lambda: landlock.restrict([(folder, landlock.PLAIN_FILES), *readable()]), seccomp.set_filter):
        try:
            cut()
        except (OSError, KeyError):  # KeyError: a machine whose system calls are not listed
            if not allow_unsandboxed:
                raise


@functools.cache
def readable() -> tuple[tuple[str, int], ...]:
    """Python's library, the packages beside it, the system's libraries. Worked out once, before any fork."""
    own = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    own |= {f"{prefix}/{sys.platlibdir}" for prefix in (sys.base_prefix, sys.prefix)}
    own |= {place for place in sys.path if place.endswith(("site-packages", "dist-packages"))}
    paths = sorted({*own, f"{sys.base_prefix}/lib", *LIBRARIES, *ZONES})
    return (*DEVICES, *((path, landlock.READ) for path in paths))
