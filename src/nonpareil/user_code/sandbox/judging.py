"""Tests at work: in a process of their own, on a solution in another. What they found is told line by line."""

import ast
import builtins
import contextlib
import json
import os
import re
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from nonpareil.user_code.sandbox.completions import head_of
from nonpareil.user_code.sandbox.programs import new_module, run_statements
from nonpareil.user_code.sandbox.wire import OtherSideGone, Peer

TESTS = "tests"
HOLDS, FAILS = "__this_assertion_holds__", "__this_assertion_fails__"
SAID_CHARACTERS = 200
_NAME = re.compile(r"[^\W\d]\w*")
_CALLED = re.compile(r"(?<![\w.])([^\W\d]\w*)\s*\(")


class BrokenTests(Exception):
    """The tests themselves are at fault: no solution could pass them, or any could."""


class Stopped(BaseException):
    """An assertion failed and the others no longer matter. No `except Exception` of a test holds it up."""


@dataclass(frozen=True)
class Tests:
    """What a solution is to satisfy.

    Either `asserts`, each run on its own, or `program`: then its `check(candidate)` is called with what
    `entry_point` names, and each `assert` in it counts as one.
    """

    asserts: list[str] = field(default_factory=list)
    program: str = ""
    entry_point: str = ""
    """An expression over what the solution defines: a function's name, or `Solution().method`. In `asserts` it is
    called `candidate`."""
    start: str = ""
    """Code that the model was given to continue; its imports and helpers are there for solution and tests."""
    setup: list[str] = field(default_factory=list)
    """Trusted code that is run before the tests, in their process."""
    each: bool = False
    """Whether all are tried though one failed."""

    @property
    def names(self) -> list[str]:
        """What they call of the solution: the first name of `entry_point`, else any that the tests call."""
        if self.entry_point:
            return _NAME.findall(self.entry_point)[:1]
        called = [name for text in (*self.asserts, self.program) for name in _CALLED.findall(text)]
        return [name for name in dict.fromkeys(called) if not hasattr(builtins, name)] or called


def judge(tests: Tests, channel: int, verdict: int) -> None:
    """Run the tests on the solution at the other end of the channel, and write what was found to `verdict`.

    Lines of JSON: `{"total": n}`, `{"held": i}` for each that holds, and last `{"end": reason, "total": n}`, the
    reason "" where all is well, or `{"broken": reason}` where the tests are at fault. `verdict` is a descriptor
    that the solution's process never had.
    """

    def tell(**what: Any) -> None:
        os.write(verdict, json.dumps(what).encode() + b"\n")

    run = _Run(tests, Peer(channel, _may_use))
    try:
        pieces = run.prepared()
        tell(total=run.total)
        for held in run.held(pieces):
            tell(held=held)
        tell(end=run.reason(), total=run.total)
    except BrokenTests as broken:
        tell(broken=str(broken))
    except OtherSideGone:
        tell(end="the program ended before its tests did")


class _Run:
    """The state of one run."""

    def __init__(self, tests: Tests, peer: Peer) -> None:
        self.tests, self.peer = tests, peer
        self.space = vars(new_module(TESTS))
        self.total = 0
        """Asserts to hold. Those of a program that ran to its end are the ones that it reached."""
        self.failed: dict[int, str] = {}
        """Why, by number; -1 is what lies outside all of them."""
        self._fine: set[int] = set()
        self._is_counted = bool(tests.asserts)
        self._given: set[str] = set()
        """Names that the solution gave a meaning."""

    def reason(self) -> str:
        """Why not all is well, "" where it is."""
        return next(iter(self.failed.values()), "")

    def prepared(self) -> list[types.CodeType]:
        """The tests as code; the names they need bound; their setup run."""
        tests = self.tests
        try:
            head = head_of(tests.start, tests.names)
            setup = [compile(text, "<setup>", "exec", dont_inherit=True) for text in tests.setup]
            trees = [ast.parse(text) for text in (tests.asserts or [tests.program])]
            of_setup = {name for text in tests.setup for name in _names_in(ast.parse(text))}
            wanted = of_setup.union(*map(_names_in, trees))
            pieces = self._counted(trees)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise BrokenTests(f"they do not parse: {_in_words(error)}") from error
        self._bind(wanted)
        run_statements(head, self.space)
        if tests.asserts and tests.entry_point:
            with contextlib.suppress(Exception):  # what a solution lacks, the tests will miss
                self.space["candidate"] = eval(tests.entry_point, self.space)
        try:
            for code in setup:
                exec(code, self.space)
        except (Exception, SystemExit) as error:
            if isinstance(error, NameError) or of_setup & self._given:
                self.failed[-1] = _in_words(error)  # the solution lacks what they start from, or has it wrong
                return []
            raise BrokenTests(f"their setup fails: {_in_words(error)}") from error
        return pieces

    def _counted(self, trees: list[ast.Module]) -> list[types.CodeType]:
        if self.tests.asserts:
            for at, tree in enumerate(trees, 1):
                if not _may_fail(tree):
                    raise BrokenTests(f"test {at} asserts nothing")
                if not _does_something(tree):
                    raise BrokenTests(f"test {at} defines functions, and nothing calls them")
            self.total = len(trees)
            return [compile(tree, "<tests>", "exec", dont_inherit=True) for tree in trees]
        counter = _CountedAsserts()
        tree = ast.fix_missing_locations(counter.visit(trees[0]))
        if not self._has_check(tree) and not counter.total:
            raise BrokenTests("they define neither check(candidate) nor an assertion")
        if not _may_fail(trees[0]):
            raise BrokenTests("they assert nothing")
        if self._has_check(tree) and not self.tests.entry_point:
            raise BrokenTests("they define check(candidate), and entry_point is empty")
        if not self._has_check(tree) and not _does_something(tree):
            raise BrokenTests("their assertions are in functions, and nothing calls them")
        self.total, self._is_counted = max(1, counter.total), counter.total > 0
        return [compile(tree, "<tests>", "exec", dont_inherit=True)]

    @staticmethod
    def _has_check(tree: ast.Module) -> bool:
        return any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in tree.body)

    def held(self, pieces: list[types.CodeType]) -> Iterator[int]:
        """The numbers of those that hold, as they are known to."""
        if self.tests.asserts:
            for at, code in enumerate(pieces):
                if self._does_not_raise(at, lambda code=code: exec(code, self.space)):
                    yield at
                elif not self.tests.each:
                    return
            return
        self.space[HOLDS], self.space[FAILS] = self._fine.add, self._fails
        for code in pieces:
            try:
                if self._does_not_raise(-1, lambda code=code: self._check(code)):
                    self._reached_all()
            except Stopped:
                pass
        yield from sorted(self._fine - set(self.failed))

    def _reached_all(self) -> None:
        if not self._is_counted:  # nothing but calls that raise where they must
            self._fine.add(0)
        elif not self._fine and not self.failed:
            self.failed[-1] = "no assertion was reached"
            return
        self.total = len(self._fine | set(self.failed))

    def _check(self, code: types.CodeType) -> None:
        exec(code, self.space)
        if callable(check := self.space.get("check")):
            check(eval(self.tests.entry_point, self.space))

    def _fails(self, at: int, error: Exception) -> None:
        _refuse_missing(error)
        self.failed.setdefault(at, _in_words(error))
        if not self.tests.each:
            raise Stopped

    def _does_not_raise(self, at: int, act: Any) -> bool:
        try:
            act()
        except (Exception, SystemExit) as error:  # noqa: BLE001  (a test fails by whatever it raises)
            _refuse_missing(error)
            self.failed.setdefault(at, _in_words(error))
        if self.peer.is_gone:
            raise OtherSideGone
        return at not in self.failed

    def _bind(self, wanted: set[str]) -> None:
        """Give the tests what they name: of the solution, or a module of Python's."""
        # A solution may be called `sum`; where it is not, the tests' own `sum` is not its to give.
        theirs = {name for name in wanted if not hasattr(builtins, name)} or wanted
        for name in sorted({*theirs, *_NAME.findall(self.tests.entry_point)[:1]}):
            found, module, value = self.peer.look_up(name)
            if module or not found:
                for own in (name, module):  # the module of that name, whatever the solution put in its place
                    if own and (own in sys.stdlib_module_names or own == module):
                        with contextlib.suppress(ImportError):
                            self.space[name] = __import__(own, fromlist=["*"])
                            break
            else:
                self.space[name] = value
                self._given.add(name)


class _CountedAsserts(ast.NodeTransformer):
    """Each assertion tells whether it held."""

    def __init__(self) -> None:
        self.total = 0

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        if isinstance(node.test, ast.Constant):  # `assert True` says nothing of a solution
            return node
        number, self.total = ast.Constant(self.total), self.total + 1
        holds = ast.Expr(ast.Call(ast.Name(HOLDS, ast.Load()), [number], []))
        error = ast.Name("__failed_assertion__", ast.Load())
        fails = ast.Expr(ast.Call(ast.Name(FAILS, ast.Load()), [number, error], []))
        handler = ast.ExceptHandler(ast.Name("Exception", ast.Load()), error.id, [fails])
        return ast.copy_location(ast.Try([node], [handler], [holds], []), node)


def _may_use(operation: str, target: Any, arguments: list[Any]) -> bool:
    """What a solution may do with what tests hand to it: call functions, step through iterators, use objects."""
    if operation in ("iter", "next") and isinstance(target, Iterator):
        return True
    ours = type(target).__module__ == TESTS
    if operation == "call":
        return ours or (callable(target) and not isinstance(target, type))
    return ours and not (arguments and isinstance(arguments[0], str) and arguments[0].startswith("_"))


def _names_in(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def _may_fail(tree: ast.AST) -> bool:
    """Whether it asserts something, or calls what may: a bare comparison would hold for every solution."""
    kinds = [type(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)]
    return ast.Call in kinds or any(isinstance(node, ast.Assert | ast.Raise) for node in ast.walk(tree))


def _does_something(tree: ast.Module) -> bool:
    """Whether it asserts or calls something as it is run, not only in functions (pytest's) or as a program."""
    todo: list[ast.AST] = [*tree.body]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Assert | ast.Raise | ast.Call):
            return True
        is_main = isinstance(node, ast.If) and "__name__" in _names_in(node.test)
        if not is_main and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            todo += ast.iter_child_nodes(node)
    return False


def _refuse_missing(error: BaseException) -> None:
    """A module that the tests import and this machine lacks is no failure of the solution's."""
    if isinstance(error, ModuleNotFoundError) and not getattr(error, "from_other_side", False):
        raise BrokenTests(f"they cannot be run here: {_in_words(error)}") from error


def _in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0].removesuffix(": ")[:SAID_CHARACTERS]
