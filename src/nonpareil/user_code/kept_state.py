"""`kept_state()`: a process stays as it is while a user's code runs in it.

One function for each part of it (working directory and umask, environment, modules, limits, signals, random
generators, torch's modes), which remembers it, and gives it back at the end. The streams are in `streams`.
"""

import builtins
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import Any

from nonpareil.user_code.streams import streams

Keeper = Callable[[], AbstractContextManager[Any]]

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals whose handler may raise to end what runs, a reward's own code as well."""
SIGNALS = tuple(map(int, signal.valid_signals()))
PATCHED = (builtins, os, shutil, subprocess, sys)
"""Modules whose functions some verifiers take away before they run a program."""
LIMITS = ("AS", "CPU", "CORE", "DATA", "FSIZE", "NOFILE", "STACK")

_lock = threading.RLock()
_depth = 0
_outermost: ExitStack | None = None
_interruption: list[BaseException] = []


def interruption() -> BaseException | None:
    """What a signal's handler raised into the code that runs now: Ctrl-C, and not a `raise` of that code's own."""
    return _interruption[-1] if _interruption else None


@contextmanager
def kept_state(keepers: tuple[Keeper, ...] | None = None) -> Iterator[None]:
    """Give back what the code inside changes of this process; what it prints goes to stderr.

    Re-entrant, and shared by what runs at the same time: the first to enter keeps, the last to leave gives back.
    An interruption that the code inside swallowed is raised again.
    """
    global _depth, _outermost
    with _lock:
        if _depth == 0:
            _interruption.clear()
            with ExitStack() as entering:
                for keeper in keepers or WHILE_CALLING:
                    entering.enter_context(keeper())
                _outermost = entering.pop_all()
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0 and _outermost is not None:
                _outermost.close()
                _outermost = None
                if stopped := interruption():
                    _interruption.clear()
                    raise stopped


@contextmanager
def _folder() -> Iterator[None]:
    """The working directory, by its file descriptor: a folder that was moved is still it; and the umask."""
    mask = os.umask(0o077)
    os.umask(mask)
    here = None
    with suppress(OSError):  # a folder that is gone, or may not be read
        here = os.open(".", os.O_RDONLY)
    try:
        yield
    finally:
        os.umask(mask)
        if here is not None:
            with suppress(OSError):
                os.fchdir(here)
                os.close(here)


@contextmanager
def _environment() -> Iterator[None]:
    before = dict(os.environ)
    try:
        yield
    finally:
        if dict(os.environ) != before:
            os.environ.clear()
            os.environ.update(before)


@contextmanager
def _modules() -> Iterator[None]:
    """The functions of common modules, the import path, the limits of recursion and of logging."""
    saved = [(module, dict(vars(module))) for module in PATCHED]
    imported, path = dict(sys.modules), list(sys.path)
    depth, silenced = sys.getrecursionlimit(), logging.root.manager.disable
    try:
        yield
    finally:
        for module, names in saved:
            for name, value in names.items():
                if vars(module).get(name, saved) is not value:
                    setattr(module, name, value)
        for name in [name for name, module in sys.modules.items() if module is None]:
            if imported.get(name) is not None:
                sys.modules[name] = imported[name]
            elif name not in imported:
                del sys.modules[name]
        sys.path[:] = path
        sys.setrecursionlimit(depth)
        logging.disable(silenced)


@contextmanager
def _limits() -> Iterator[None]:
    names = [getattr(resource, f"RLIMIT_{name}") for name in LIMITS if hasattr(resource, f"RLIMIT_{name}")]
    before = {name: resource.getrlimit(name) for name in names}
    try:
        yield
    finally:
        for name, limit in before.items():
            with suppress(ValueError, OSError):  # a hard limit that was lowered stays so
                if resource.getrlimit(name) != limit:
                    resource.setrlimit(name, limit)


@contextmanager
def _signals() -> Iterator[None]:
    """Handlers and the alarm; what a handler raises is noted, to be told from the code's own exceptions."""
    if threading.current_thread() is not threading.main_thread():
        yield  # handlers are changed and run by the main thread alone
        return
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    outside: dict[int, Any] = {number: each for number, each in handlers.items() if each is not None}
    timer = signal.getitimer(signal.ITIMER_REAL)

    def noting(number: int, frame: Any) -> None:
        signal.signal(number, outside[number])  # a handler may set its successor
        try:
            outside[number](number, frame)
        except BaseException as raised:
            _interruption.append(raised)
            raise
        finally:
            outside[number] = signal.getsignal(number)
            watch(number)

    def watch(number: int) -> None:
        if callable(outside[number]):
            signal.signal(number, noting)

    for number in STOPPING:
        if number in outside:
            watch(number)
    try:
        yield
    finally:
        if timer == (0.0, 0.0):
            signal.setitimer(signal.ITIMER_REAL, 0.0)
        for each, handler in outside.items():
            if signal.getsignal(each) != handler:
                signal.signal(each, handler)


@contextmanager
def _random() -> Iterator[None]:
    """The states of Python's, numpy's and torch's global generators, where the module has been imported."""
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    state = random.getstate()
    of_numpy = numpy.random.get_state() if numpy else None
    with ExitStack() as generators:
        if torch:
            devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
            generators.enter_context(torch.random.fork_rng(devices))
        try:
            yield
        finally:
            random.setstate(state)
            if numpy:
                numpy.random.set_state(of_numpy)


@contextmanager
def _torch() -> Iterator[None]:
    """torch's modes, each as a pair of the functions that read and set it."""
    torch = sys.modules.get("torch")
    modes: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = []
    if torch:
        modes = [
            (torch.get_default_dtype, torch.set_default_dtype),
            (torch.is_grad_enabled, torch.set_grad_enabled),
            (torch.get_num_threads, torch.set_num_threads),
            (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
            # A default device that was not set reads as the CPU, and setting it would slow every call.
            (
                torch.get_default_device,
                lambda old: torch.set_default_device(None if old.type == "cpu" else old),
            ),
            (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        ]
    before = [read() for read, _ in modes]
    try:
        yield
    finally:
        for (read, write), value in zip(modes, before, strict=True):
            if read() != value:
                write(value)


@contextmanager
def no_exit() -> Iterator[None]:
    """`os._exit` leaves with `SystemExit` where it would end this very process, by whatever status it likes."""
    process, leave = os.getpid(), os._exit

    def exit_or_raise(status: int) -> Any:
        if os.getpid() != process or _depth == 0:
            leave(status)
        raise SystemExit(f"os._exit({status})")

    os._exit = exit_or_raise
    try:
        yield
    finally:
        os._exit = leave


WHILE_IMPORTING: tuple[Keeper, ...] = (_folder, _signals, _random, _torch, streams, no_exit)
"""A module may set environment and paths for its own later use, as any import does."""
WHILE_CALLING: tuple[Keeper, ...] = (*WHILE_IMPORTING, _environment, _modules, _limits)
IN_A_WORKER: tuple[Keeper, ...] = tuple(keeper for keeper in WHILE_CALLING if keeper is not no_exit)
"""A process of its own may end."""
