"""A model's code at work: as a program of its own, or as a solution that answers its tests' calls."""

import __future__

import ast
import atexit
import contextlib
import sys
import threading
import traceback
import types
from typing import Any

from nonpareil.user_code.sandbox.completions import program_of
from nonpareil.user_code.sandbox.wire import Peer

SOLUTION = "solution"
"""The module's name. It is not `__main__`: what the code would do as a program is no part of a solution."""


def run_alone(source: str) -> int:
    """A program as `python program.py` would run it; returns its exit status."""
    module = new_module("__main__")
    status = 0
    try:
        exec(compile(source, "<program>", "exec", dont_inherit=True), vars(module))
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:  # noqa: BLE001  (whatever a program raises is its end)
        traceback.print_exc()
        status = 1
    with contextlib.suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]  # waits for its threads, as Python's end does
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):
            stream.flush()
    return status & 0xFF


def answer_calls(solution: dict[str, Any], channel: int) -> None:
    """Run the solution in an answer, and answer its tests until they end.

    Each statement is run for what it defines: one that raises (a usage example that reads input, a wrong assertion)
    leaves what the others define.
    """
    module = new_module(SOLUTION)
    with contextlib.suppress(BaseException):
        for text in program_of(**solution):
            run_statements(text, vars(module))
    Peer(channel, lambda *asked: True, vars(module)).serve()


def new_module(name: str) -> types.ModuleType:
    """A module that imports find by name (dataclasses and pickles look it up)."""
    module = types.ModuleType(name)
    module.__builtins__ = __builtins__  # type: ignore[attr-defined]
    sys.modules[name] = module
    return module


def run_statements(source: str, space: dict[str, Any]) -> None:
    """Run each statement on its own for what it defines, in `space`; what one raises is its own affair."""
    tree = ast.parse(source)
    flags = 0
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            for name in node.names:
                flags |= getattr(__future__, name.name).compiler_flag
        if not isinstance(node, ast.Assert) and not _is_print(node):  # these define nothing
            with contextlib.suppress(BaseException):
                alone = ast.Module([node], [])
                exec(compile(alone, f"<{SOLUTION}>", "exec", flags=flags, dont_inherit=True), space)


def _is_print(node: ast.stmt) -> bool:
    call = node.value if isinstance(node, ast.Expr) else None
    return isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "print"
