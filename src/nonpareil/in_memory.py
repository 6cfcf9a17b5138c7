"""What Python gives in the place of a name: options hold the name, and with it the object that is meant."""

from typing import Any, Self


class InMemory(str):
    """A name, by which pages and messages call it, and the object itself: a reward, or prompts.

    Options, their checks and reports see text; whoever would look the name up takes `value` instead.
    """

    value: Any

    def __new__(cls, name: str, value: Any) -> Self:
        """`name` holds no path, so that it leads to no file."""
        made = super().__new__(cls, name)
        made.value = value
        return made

    def __getnewargs__(self) -> tuple[str, Any]:  # type: ignore[override]
        """For copies."""
        return str(self), self.value

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """The object is no setting that a copy of settings would change."""
        return self
