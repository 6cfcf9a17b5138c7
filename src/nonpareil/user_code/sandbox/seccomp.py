"""Which system calls a program may make: a filter of the kernel (seccomp), for x86-64 and 64-bit ARM.

A list of what is refused, with EPERM: other processes (made, run, seen, signalled), sockets, memory beyond its
limit, the rights of files, the machine. What a kernel newer than this list knows is refused too, as if it were not
there.
"""

import ctypes
import errno
import os
import platform
import struct

PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
LAST_KNOWN = 451
"""cachestat (Linux 6.5): the newest call whose meaning this list has weighed."""

_REFUSED = {  # name: (x86-64, 64-bit ARM); None where the machine has no such call
    **{"fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281)},
    **{"socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201)},
    **{"accept": (43, 202), "accept4": (288, 242), "ptrace": (101, 117), "kcmp": (312, 272)},
    **{"process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "process_madvise": (440, 440)},
    **{"process_mrelease": (448, 448), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438)},
    **{"pidfd_send_signal": (424, 424), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138)},
    **{"rt_tgsigqueueinfo": (297, 240), "setpriority": (141, 140), "ioprio_set": (251, 30)},
    **{"sched_setscheduler": (144, 119), "sched_setparam": (142, 118), "sched_setattr": (314, 274)},
    **{"sched_setaffinity": (203, 122), "migrate_pages": (256, 238), "move_pages": (279, 239)},
    **{"io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427)},
    **{"bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282)},
    **{"keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218)},
    **{"mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51)},
    **{"unshare": (272, 97), "setns": (308, 268), "open_tree": (428, 428), "move_mount": (429, 429)},
    **{"fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433)},
    **{"mount_setattr": (442, 442), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265)},
    **{"fanotify_init": (300, 262), "memfd_create": (319, 279), "memfd_secret": (447, 447)},
    **{"shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190)},
    **{"msgget": (68, 186), "mq_open": (240, 180), "chmod": (90, None), "fchmod": (91, 52)},
    **{"fchmodat": (268, 53), "chown": (92, None), "fchown": (93, 55), "lchown": (94, None)},
    **{"fchownat": (260, 54), "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7)},
    **{"link": (86, None), "linkat": (265, 37), "symlink": (88, None), "symlinkat": (266, 36)},
    **{"mknod": (133, None), "mknodat": (259, 33), "swapon": (167, 224), "swapoff": (168, 225)},
    **{"reboot": (169, 142), "init_module": (175, 105), "finit_module": (313, 273)},
    **{"delete_module": (176, 106), "kexec_load": (246, 104), "kexec_file_load": (320, 294)},
    **{"acct": (163, 89), "quotactl": (179, 60), "quotactl_fd": (443, 443), "settimeofday": (164, 170)},
    **{"clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171)},
    **{"sethostname": (170, 161), "setdomainname": (171, 162), "iopl": (172, None), "ioperm": (173, None)},
    **{"syslog": (103, 116), "personality": (135, 92), "modify_ldt": (154, None), "vhangup": (153, 58)},
}
_CLONE, _CLONE3, _KILL, _TGKILL = (56, 220), (435, 435), (62, 129), (234, 131)
_PRCTL, _PRLIMIT, _SOCKETPAIR = (157, 167), (302, 261), (53, 199)
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""The machine's column above, and the number by which a filter knows its system calls."""

CLONE_THREAD, SOCK_STREAM, SOCK_TYPES = 0x10000, 1, 0xF
PR_SET_PDEATHSIG, PR_SET_MM, PR_SET_PTRACER = 1, 35, 0x59616D61

_LOAD, _EQUAL, _GREATER, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x54, 0x06
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _MACHINE, _ARGUMENTS = 0, 4, 16
"""Offsets in what a filter is shown of a call; arguments are 8 bytes each, low half first."""


def unavailable() -> str | None:
    """Why no filter can be set here; None where one can."""
    if platform.system() != "Linux" or platform.machine() not in _MACHINES or struct.calcsize("P") != 8:
        return f"no filter of system calls for {platform.system()} on {platform.machine()}"
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, None, 0, 0)  # refused for its missing filter, where known
    return None if ctypes.get_errno() == errno.EFAULT else "the kernel lets no filter of system calls be set"


def set_filter() -> None:
    """Set the filter for this process and for good. Its privileges must have been given up (no_new_privs).

    Raises:
        OSError: the kernel refuses it.
    """
    code = b"".join(_instructions(*_MACHINES[platform.machine()], os.getpid()))
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "seccomp")


def _instructions(column: int, machine: int, pid: int) -> list[bytes]:
    refuse, absent = _do(_RETURN, _ERRNO | errno.EPERM), _do(_RETURN, _ERRNO | errno.ENOSYS)
    lines = [
        _do(_LOAD, _MACHINE),
        *(_do(_EQUAL, machine, 1, 0), _do(_RETURN, _KILL_PROCESS)),  # 32-bit calls have other numbers
        _do(_LOAD, _NUMBER),
        *(_do(_GREATER, LAST_KNOWN, 0, 1), absent),  # x32's numbers among them
        *(
            _do(_EQUAL, _CLONE3[column], 0, 1),
            absent,
        ),  # its flags are in memory; libc then makes threads by clone
    ]
    for numbers in _REFUSED.values():
        if (number := numbers[column]) is not None:
            lines += [_do(_EQUAL, number, 0, 1), refuse]
    lines += _unless(_CLONE[column], 0, [_do(_ANY_BIT, CLONE_THREAD, 1, 0), refuse])
    for call in (_KILL, _TGKILL):  # 0 and -1 are the signals to many
        lines += _unless(call[column], 0, [_do(_EQUAL, pid, 1, 0), refuse])
    lines += _unless(_PRLIMIT[column], 0, [_do(_EQUAL, 0, 2, 0), _do(_EQUAL, pid, 1, 0), refuse])
    for what in (PR_SET_PDEATHSIG, PR_SET_MM, PR_SET_PTRACER):
        lines += _unless(_PRCTL[column], 0, [_do(_EQUAL, what, 0, 1), refuse])
    # A datagram could be sent to any socket that has a name.
    stream = [_do(_AND, SOCK_TYPES), _do(_EQUAL, SOCK_STREAM, 1, 0), refuse]
    lines += _unless(_SOCKETPAIR[column], 1, stream)
    return [*lines, _do(_RETURN, _ALLOW)]


def _unless(number: int, argument: int, check: list[bytes]) -> list[bytes]:
    """For this call, look at one of its arguments; the number is loaded again for what follows."""
    load = _do(_LOAD, _ARGUMENTS + 8 * argument)
    return [_do(_EQUAL, number, 0, len(check) + 2), load, *check, _do(_LOAD, _NUMBER)]


def _do(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value & 0xFFFFFFFF)
