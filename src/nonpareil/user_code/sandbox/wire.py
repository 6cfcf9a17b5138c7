"""What passes between a program and its tests, which are two processes: plain data, and handles to the rest.

Numbers, texts, lists, dicts and their like are copied, and are plain on arrival whatever class they were of.
Anything else stays where it is: the other side gets a `Handle`, which calls it and reads its attributes over there.
So a test compares plain values of its own process with plain values of its own process, and no code of the program
takes part in that; nor does the program ever see a value that a test expects.
"""

import builtins
import collections
import datetime
import decimal
import fractions
import json
import operator
import os
import types
from collections.abc import Callable
from typing import Any

from nonpareil.user_code.sandbox.handles import Handle

MOST_BYTES = 64 << 20
"""Of one message."""
_NAMED: dict[str, tuple[type, Callable[[Any], tuple[Any, ...]]]] = {
    "range": (range, lambda v: (v.start, v.stop, v.step)),
    "bytearray": (bytearray, lambda v: (bytes(v),)),
    "Counter": (collections.Counter, lambda v: (dict(v),)),
    "OrderedDict": (collections.OrderedDict, lambda v: (list(v.items()),)),
    "deque": (collections.deque, lambda v: (list(v), v.maxlen)),
    "Decimal": (decimal.Decimal, lambda v: (str(v),)),
    "Fraction": (fractions.Fraction, lambda v: (v.numerator, v.denominator)),
    "date": (datetime.date, lambda v: (v.year, v.month, v.day)),
    "timedelta": (datetime.timedelta, lambda v: (v.days, v.seconds, v.microseconds)),
}
_BY_TYPE = {kind: (name, parts) for name, (kind, parts) in _NAMED.items()}
_GROUPS: dict[str, Callable[[Any], Any]] = {"l": list, "t": tuple, "s": set, "f": frozenset}
_MUTABLE = (list, dict, set, bytearray, collections.deque)
_OPERATIONS: dict[str, Callable[..., Any]] = {
    **{"get": getattr, "set": setattr, "len": len, "iter": iter, "next": next, "str": str, "repr": repr},
    **{"bool": bool, "item": operator.getitem, "put": operator.setitem, "same": operator.eq},
    "call": lambda target, args, kwargs: target(*args, **kwargs),
}
"""What a handle can ask for. No arithmetic and no comparison with plain values: they would tell the other side what
is expected of it, and take its word for the result."""


class OtherSideGone(BaseException):
    """The other process ended, or sent what is no message. No `except Exception` of a test holds it up."""


class Peer:
    """One end of the channel: what it lent, and what it may be asked to do with it.

    `allowed(operation, target, arguments)` says whether this side does what it is asked.
    """

    def __init__(
        self, channel: int, allowed: Callable[..., bool], names: dict[str, Any] | None = None
    ) -> None:
        """`channel`: the descriptor of a stream socket. `names`: what the other side may look up by name."""
        self._channel, self._allowed, self._names = channel, allowed, names
        self._lent: list[Any] = []
        self.is_gone = False

    def look_up(self, name: str) -> tuple[bool, str, Any]:
        """Whether the other side has something of that name; the module's name where it is one; else what it is."""
        found, module, value = self._ask("name", name, [])
        return bool(found), str(module), value

    def ask(self, operation: str, number: int, *arguments: Any) -> Any:
        """Have the other side do something with what it lent; its exception is raised here, as a built-in one."""
        return self._ask(operation, number, [self._packed(argument) for argument in arguments], arguments)

    def serve(self) -> None:
        """Answer until the other side ends."""
        while True:
            self._answer(self._receive())

    def _ask(self, operation: str, target: Any, packed: list[Any], given: tuple[Any, ...] = ()) -> Any:
        self._send(["?", operation, target, packed])
        while (message := self._receive())[0] == "?":
            self._answer(message)  # it calls back
        try:
            if message[0] == "!":
                raise _raised(message[1], message[2])
            result = self._unpacked(message[1])
            for place, changed in message[2] if operation == "call" else ():
                _restore(given[0][place], self._unpacked(changed))
        except (IndexError, KeyError, TypeError, ValueError, AttributeError) as error:
            if getattr(error, "from_other_side", False):
                raise
            self.is_gone = True
            raise OtherSideGone("no message") from error
        return result

    def _answer(self, message: list[Any]) -> None:
        try:
            _, operation, target, packed = message
            if operation == "name" and self._names is not None:
                value = self._names.get(target)
                module = value.__name__ if isinstance(value, types.ModuleType) else ""
                answer = ["=", self._packed((target in self._names, module, None if module else value)), []]
            else:
                arguments = [self._unpacked(argument) for argument in packed]
                answer = self._done(operation, self._lent[target], arguments)
        except OtherSideGone:
            raise
        except BaseException as error:  # noqa: BLE001  (whatever a program raises is its answer)
            answer = ["!", [kind.__name__ for kind in type(error).__mro__], _said(error)]
        self._send(answer)

    def _done(self, operation: str, target: Any, arguments: list[Any]) -> list[Any]:
        if not self._allowed(operation, target, arguments):
            raise AttributeError(f"a test's {type(target).__name__} is not there to be used so")
        mutable = {}
        if operation == "call":
            mutable = {
                at: self._packed(value)
                for at, value in enumerate(arguments[0])
                if isinstance(value, _MUTABLE)
            }
        result = self._packed(_OPERATIONS[operation](target, *arguments))
        after = {at: self._packed(arguments[0][at]) for at in mutable}
        return ["=", result, [[at, after[at]] for at in mutable if after[at] != mutable[at]]]

    def _packed(self, value: Any) -> Any:
        kind = type(value)
        if value is None or kind in (bool, str, float):
            return value
        if isinstance(value, int):  # decimal digits of a large one would be refused
            return int(value) if abs(value) < 1 << 63 else ["i", hex(value)]
        if kind in _BY_TYPE:
            name, parts = _BY_TYPE[kind]
            return ["n", name, [self._packed(part) for part in parts(value)]]
        for tag, group in _GROUPS.items():
            if isinstance(value, group):  # type: ignore[arg-type]
                return [tag, [self._packed(each) for each in value]]
        if isinstance(value, dict):
            return ["d", [[self._packed(key), self._packed(each)] for key, each in value.items()]]
        if isinstance(value, str | float):
            return str.__str__(value) if isinstance(value, str) else float(value)
        if isinstance(value, bytes):
            return ["b", value.hex()]
        if isinstance(value, complex):
            return ["c", [value.real, value.imag]]
        if isinstance(value, Handle) and object.__getattribute__(value, "_peer") is self:
            return ["yours", object.__getattribute__(value, "_number")]
        if kind.__module__ == "numpy" and getattr(value, "shape", None) == ():
            return self._packed(value.item())
        return ["mine", self._lend(value)]

    def _lend(self, value: Any) -> int:
        for number in range(len(self._lent) - 1, max(-1, len(self._lent) - 64), -1):
            if self._lent[number] is value:
                return number
        self._lent.append(value)
        return len(self._lent) - 1

    def _unpacked(self, packed: Any) -> Any:
        if not isinstance(packed, list):
            return packed
        tag, content = packed[0], packed[1]
        if tag in _GROUPS:
            return _GROUPS[tag]([self._unpacked(each) for each in content])
        if tag == "d":
            return {self._unpacked(key): self._unpacked(value) for key, value in content}
        if tag == "n":
            return _NAMED[content][0](*map(self._unpacked, packed[2]))
        if tag == "i":
            return int(content, 16)
        if tag == "b":
            return bytes.fromhex(content)
        if tag == "c":
            return complex(*content)
        return self._lent[content] if tag == "yours" else Handle(self, int(content))

    def _send(self, message: list[Any]) -> None:
        content = json.dumps(message).encode()
        content = len(content).to_bytes(4, "big") + content
        try:
            while content:
                content = content[os.write(self._channel, content) :]
        except OSError as error:
            self.is_gone = True
            raise OtherSideGone("it ended") from error

    def _receive(self) -> list[Any]:
        size = int.from_bytes(self._read(4), "big")
        try:
            if size > MOST_BYTES:
                raise ValueError(f"a message of {size} bytes")
            message = json.loads(self._read(size))
            if not (isinstance(message, list) and len(message) >= 3 and message[0] in ("?", "=", "!")):
                raise ValueError("no message")
            return message
        except (ValueError, RecursionError) as error:
            self.is_gone = True
            raise OtherSideGone(str(error)) from error

    def _read(self, size: int) -> bytes:
        parts, missing = [], size
        while missing:
            try:
                part = os.read(self._channel, min(missing, 1 << 20))
            except OSError:
                part = b""
            if not part:
                self.is_gone = True
                raise OtherSideGone("it ended")
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)


def _restore(old: Any, new: Any) -> None:
    """What the other side did to an argument, done to the original; parts stay the same objects where they can."""
    if isinstance(old, list) and isinstance(new, list):
        for place, value in enumerate(new):
            if place < len(old) and type(old[place]) is type(value) and isinstance(value, list | dict):
                _restore(old[place], value)
                new[place] = old[place]
        old[:] = new
    elif isinstance(old, dict | set) and isinstance(new, dict | set):
        old.clear()
        old.update(new)
    elif isinstance(old, bytearray | collections.deque):
        old.clear()
        old.extend(new)


def _raised(names: list[str], said: str) -> Exception:
    """The nearest built-in exception; never one that ends a process."""
    kinds = [getattr(builtins, str(name), None) for name in names]
    known = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Exception)]
    try:
        error = known[0](said) if known else RuntimeError(f"{names[0]}: {said}")
    except (TypeError, IndexError):  # a UnicodeDecodeError takes five arguments
        error = Exception(f"{names}: {said}")
    error.from_other_side = True  # type: ignore[attr-defined]
    return error


def _said(error: BaseException) -> str:
    try:
        return str(error)[:1000]
    except BaseException:  # noqa: BLE001  (its message is the program's code)
        return ""
