"""What a process holds of another's object: a handle, which calls it and reads it over there."""

from collections.abc import Iterator
from typing import Any


class Handle:
    """What the other process has: called and read there."""

    __slots__ = ("_number", "_peer")

    def __init__(self, peer: Any, number: int) -> None:
        """`peer`: our end of the channel (`wire.Peer`). `number`: the other side's, of what it lent."""
        object.__setattr__(self, "_peer", peer)
        object.__setattr__(self, "_number", number)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__name__":  # protocols such as numpy's, that would read memory
            raise AttributeError(name)
        return _ask(self, "get", name)

    def __setattr__(self, name: str, value: Any) -> None:
        _ask(self, "set", name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it over there."""
        return _ask(self, "call", list(args), kwargs)

    def __iter__(self) -> Iterator[Any]:
        return _ask(self, "iter")

    def __next__(self) -> Any:
        return _ask(self, "next")

    def __getitem__(self, key: Any) -> Any:
        return _ask(self, "item", key)

    def __setitem__(self, key: Any, value: Any) -> None:
        _ask(self, "put", key, value)

    def __len__(self) -> int:
        return _ask(self, "len")

    def __bool__(self) -> bool:
        return bool(_ask(self, "bool"))

    def __str__(self) -> str:
        return str(_ask(self, "str"))

    def __repr__(self) -> str:
        return str(_ask(self, "repr"))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Handle) and bool(_ask(self, "same", other))

    def __hash__(self) -> int:
        return hash(object.__getattribute__(self, "_number"))


def _ask(handle: Handle, operation: str, *arguments: Any) -> Any:
    peer = object.__getattribute__(handle, "_peer")
    return peer.ask(operation, object.__getattribute__(handle, "_number"), *arguments)
