"""HTML pages from templates: what others wrote is text in them, and every character of it can be seen."""

from collections.abc import Callable, Mapping
from typing import Any

import jinja2
import markupsafe

from nonpareil.terminal import printable_text


def page_template(package: str, name: str, filters: dict[str, Callable[..., Any]]) -> jinja2.Template:
    """A template of a package's `templates`; `filters` are its own beside jinja's.

    Names, prompts and completions are escaped, and of their characters those that would hide or reorder others
    are shown as escapes: a page is read as it was written.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        autoescape=True,
        finalize=_seen,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(name)


def context_rows(context: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, text) rows, for a page's last table."""
    rows: list[tuple[str, str]] = []
    for key, value in context.items():
        if isinstance(value, dict):
            rows += context_rows(value, f"{prefix}{key}.")
        else:
            items = value if isinstance(value, list) else [value]
            texts = ("none" if item is None else str(item) for item in items)
            rows.append((f"{prefix}{key}", ", ".join(texts)))
    return rows


def _seen(value: Any) -> Any:
    is_data = isinstance(value, str) and not isinstance(value, markupsafe.Markup)
    return printable_text(value) if is_data else value
