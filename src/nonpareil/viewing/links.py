"""Addresses of pages: on a server by their parts, in a folder of files by name."""

from collections.abc import Mapping
from urllib.parse import quote, urlencode

from nonpareil.viewing.query import GroupQuery


class Links:
    """Of the pages that a server gives."""

    static = False

    def asset(self, name: str) -> str:
        """The style sheet or the script."""
        return f"/static/{name}"

    def home(self) -> str:
        """The list of what is shown."""
        return "/"

    def overview(self, source: int, reward: str | None = None) -> str:
        """What a folder of groups is worth."""
        return f"/groups/{source}" + _asking(reward=reward)

    def table(self, source: int, query: GroupQuery | None = None, **changes: object) -> str:
        """A folder's table."""
        return f"/groups/{source}/table" + _behind("" if query is None else query.address(**changes))

    def group(
        self, source: int, shard: str, row: int, query: GroupQuery | None = None, **more: object
    ) -> str | None:
        """One group's page; `more` is asked of it beside the table's query."""
        asked = "&".join(
            filter(None, ("" if query is None else query.address(page=1), urlencode(_given(more))))
        )
        return f"/groups/{source}/group/{quote(shard, safe='')}/{row}" + _behind(asked)

    def run(self, run: int) -> str:
        """A training run's page."""
        return f"/runs/{run}"

    def samples(self, run: int, step: int | None = None) -> str:
        """The completions of a step, by default of the last."""
        return f"/runs/{run}/samples" + _asking(step=step)

    def compare(self, **asked: object) -> str:
        """Several folders or runs side by side."""
        return "/compare" + _asking(**asked)


class FileLinks(Links):
    """Of a folder of files: an overview, a table and the groups that were chosen."""

    static = True

    def __init__(self, names: Mapping[tuple[str, int], str]):
        """`names`: the file of each chosen group, by its shard and row."""
        self.names = names

    def asset(self, name: str) -> str:
        """Beside the pages."""
        return name

    def home(self) -> str:
        """The overview."""
        return "index.html"

    def overview(self, source: int, reward: str | None = None) -> str:
        """There is one."""
        return "index.html"

    def table(self, source: int, query: GroupQuery | None = None, **changes: object) -> str:
        """There is one, in one order."""
        return "groups.html"

    def group(
        self, source: int, shard: str, row: int, query: GroupQuery | None = None, **more: object
    ) -> str | None:
        """None for a group that was not chosen."""
        return self.names.get((shard, row))


def _given(asked: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in asked.items() if value is not None}


def _asking(**asked: object) -> str:
    return _behind(urlencode(_given(asked)))


def _behind(asked: str) -> str:
    return f"?{asked}" if asked else ""
