"""The page that shows folders of groups, and training runs, beside each other."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, Response

from nonpareil.errors import DataError
from nonpareil.viewing.charts import line_chart
from nonpareil.viewing.compare import ORDERS, matched
from nonpareil.viewing.fields import reward_label
from nonpareil.viewing.overview import totals_of
from nonpareil.viewing.pages import Pages
from nonpareil.viewing.query import page_number, whole_number
from nonpareil.viewing.runs import FIRST, metrics_of
from nonpareil.viewing.site import Site

MOST_CHARTS = 24


def add_compare_page(app: FastAPI, site: Site, pages: Pages) -> None:
    """Add it to an application."""

    @app.get("/compare", response_model=None)
    def compare(request: Request) -> Response:
        """All folders in one table, two of them prompt by prompt, all runs in one picture a metric."""
        for source in site.groups:
            source.index.freshen()
        asked = request.query_params
        content = {"tables": [], "sides": None, "orders": ORDERS} | _groups(site, asked)
        return HTMLResponse(pages.page("compare", charts=_charts(site), **content))


def _groups(site: Site, asked: Any) -> dict[str, Any]:
    if len(site.groups) < 2:
        return {}
    shared = [r for r in site.groups[0].index.rewards if any(r in s.index.rewards for s in site.groups[1:])]
    reward = asked.get("reward", shared[0] if shared else None)
    rows = []
    for source in site.groups:
        has = reward if reward in source.index.rewards else None
        rows.append((source, totals_of(source.index, has), has is not None))
    sides = None
    if reward is not None:
        first, second = (_number(asked.get(name), default, site) for name, default in (("a", 0), ("b", 1)))
        if first != second:
            order, page = asked.get("order", "up"), page_number(asked.get("page", "1"))
            pair = site.groups[first], site.groups[second]
            if all(reward in each.index.rewards for each in pair):
                sides = {"first": pair[0], "second": pair[1], "order": order}
                sides["found"] = matched(pair[0].index, pair[1].index, reward, order, page)
    labels = [(each, reward_label(each)) for each in shared]
    return {"tables": rows, "sides": sides, "reward": reward, "rewards": labels}


def _number(value: str | None, default: int, site: Site) -> int:
    number = whole_number(value, "a and b")
    if number is not None and number >= len(site.groups):
        raise DataError(f"{number} is none of the {len(site.groups)} folders; they are counted from 0")
    return default if number is None else number


def _charts(site: Site) -> list[Any]:
    if len(site.runs) < 2:
        return []
    runs = {label: metrics_of(folder).by_name for label, folder in site.runs}
    names = {name for metrics in runs.values() for name in metrics}
    ordered = [name for name in FIRST if name in names] + sorted(names - {*FIRST})
    return [
        line_chart(name, {label: metrics.get(name, []) for label, metrics in runs.items()}, "step")
        for name in ordered[:MOST_CHARTS]
    ]
