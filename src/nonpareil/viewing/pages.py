"""HTML of a template and its figures: everything that others wrote is escaped, and every character can be seen."""

import math
from typing import Any

import jinja2
import markupsafe

from nonpareil.terminal import printable_text

POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy: nothing but our own style sheet and script, none of it inline."""


UNKNOWN = "\N{EN DASH}"
"""Stands for a number that is not known."""


class Pages:
    """The templates of a site, with what all of its pages share."""

    def __init__(self, **shared: Any):
        """`shared`: names that every template knows."""
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("nonpareil.viewing"),
            autoescape=True,
            finalize=_seen,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters |= {"figure": figure, "share": share, "preview": preview}
        environment.globals |= shared
        self._environment = environment

    def page(self, template: str, **content: Any) -> str:
        """A whole page."""
        return self._environment.get_template(template + ".html.j2").render(**content)


def figure(value: Any, digits: int = 3) -> str:
    """A number as pages show it; whole ones with their thousands apart, a dash for what is not known."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return UNKNOWN
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    if value != 0 and not 10**-digits <= abs(value) < 10**6:
        return f"{value:.{digits}g}"
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def share(part: int | None, whole: int | None) -> str:
    """A part of a whole in percent; a dash where there is none."""
    return UNKNOWN if part is None or not whole else f"{part / whole:.1%}"


def preview(text: str | None, length: int = 240) -> str:
    """The beginning of a text on one line."""
    words = " ".join((text or "").split())
    return words if len(words) <= length else words[: length - 1] + "…"


def _seen(value: Any) -> Any:
    is_data = isinstance(value, str) and not isinstance(value, markupsafe.Markup)
    return printable_text(value) if is_data else value
