"""A folder of static pages: an overview, a table and the groups that were chosen; read without a server."""

from pathlib import Path

from starlette.datastructures import QueryParams

from nonpareil import __version__
from nonpareil.errors import DataError
from nonpareil.files import write_bytes
from nonpareil.viewing.app import ASSETS, asset_bytes
from nonpareil.viewing.links import FileLinks
from nonpareil.viewing.pages import Pages
from nonpareil.viewing.query import groups_of, read_query
from nonpareil.viewing.site import Site, first_reward, group_content, overview_content, table_content

FILES = ["*.html", *ASSETS]
CURVE_SECONDS = 3600.0


def write_bundle(site: Site, folder: Path, query: str, most: int) -> int:
    """Write the pages of a site's only folder of groups; returns how many groups they show.

    `query` is what stands behind the question mark of a table's address; the first `most` groups that it asks for
    are written.

    Raises:
        DataError: a query that cannot be, or that no group answers.
    """
    source = site.groups[0]
    source.index.refresh()
    asked = read_query(QueryParams(query.removeprefix("?")), source.index)
    found = groups_of(source.index, asked, most)
    if not found.rows:
        raise DataError("no group is like that; a bundle would be empty")
    keys = [(row["shard"], row["row"]) for row in found.rows]
    links = FileLinks({key: f"group-{place:05d}.html" for place, key in enumerate(keys, start=1)})
    pages = Pages(site=site, links=links, version=__version__, has_compare=False)
    reward = asked.reward if asked.reward is not None else first_reward(source)
    contents = {
        "index.html": ("overview", overview_content(source, reward, CURVE_SECONDS)),
        "groups.html": ("table", table_content(source, asked, found)),
    }
    for name, (template, content) in contents.items():
        write_bytes(folder / name, pages.page(template, **content).encode())
    for place, key in enumerate(keys):
        around = {
            "place": place + 1,
            "count": len(keys),
            "before": keys[place - 1] if place else None,
            "after": keys[place + 1] if place + 1 < len(keys) else None,
        }
        content = group_content(source, asked, key, asked={}, vocabulary=site.vocabulary) | {"around": around}
        write_bytes(folder / links.names[key], pages.page("group", **content).encode())
    for name in ASSETS:
        write_bytes(folder / name, asset_bytes(name))
    return len(keys)
