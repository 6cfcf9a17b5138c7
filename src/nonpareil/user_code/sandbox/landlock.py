"""Which files a program may open: the kernel's Landlock, from Linux 5.13 on. What is not named is refused."""

import ctypes
import os
import struct
from collections.abc import Iterable

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every machine
_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_REMOVE_FILE, _MAKE_REG, _TRUNCATE = 1 << 5, 1 << 8, 1 << 14
_FIRST_RIGHTS = (1 << 13) - 1
_LATER_RIGHTS = {2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
"""By the version that brought them: moving between folders, truncating, ioctl of devices."""
_TCP, _SCOPES = 0b11, 0b11
"""Bind and connect (version 4); abstract Unix sockets and signals outside (version 6)."""

READ = _READ_FILE | _READ_DIR
PLAIN_FILES = READ | _WRITE_FILE | _REMOVE_FILE | _MAKE_REG | _TRUNCATE
"""Of a folder: its plain files may be made, written and removed; no folders, links, sockets or devices."""


def version() -> int:
    """The version of Landlock that the kernel has; 0 where it has none, or it is not switched on."""
    return max(0, ctypes.CDLL(None, use_errno=True).syscall(_CREATE_RULESET, None, 0, 1))


def restrict(rights: Iterable[tuple[str, int]]) -> None:
    """Let this process open what is named here and nothing else, for good; a path that is not there is left out.

    Its privileges must have been given up (no_new_privs).

    Raises:
        OSError: the kernel refuses.
    """
    has = version()
    handled = _FIRST_RIGHTS | sum(right for since, right in _LATER_RIGHTS.items() if has >= since)
    attributes = struct.pack("=QQQ", handled, _TCP if has >= 4 else 0, _SCOPES if has >= 6 else 0)
    size = 24 if has >= 6 else 16 if has >= 4 else 8
    rules = _checked(_CREATE_RULESET, attributes, size, 0)
    try:
        for path, right in rights:
            _allow(rules, path, right & handled)
        _checked(_RESTRICT_SELF, rules, 0)
    finally:
        os.close(rules)


def _allow(rules: int, path: str, right: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not os.path.isdir(path):  # of a file, only what files have
            right &= _READ_FILE | _WRITE_FILE | _TRUNCATE
        _checked(_ADD_RULE, rules, 1, struct.pack("=Qi", right, place), 0)
    finally:
        os.close(place)


def _checked(number: int, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"Landlock: {os.strerror(ctypes.get_errno())}")
    return int(result)
