"""Line and bar charts as SVG: no script, no style attribute, read by a screen reader as their title and caption."""

import math
from collections.abc import Mapping, Sequence

import markupsafe

from nonpareil.terminal import printable

WIDTH, HEIGHT = 420, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 28
_COLOURS = 6
Points = Sequence[tuple[float, float | None]]


def line_chart(
    title: str, lines: Mapping[str, Points], x_label: str, *, dots: bool = False
) -> markupsafe.Markup:
    """Lines by name over x, each broken where a value is not known; a legend where there are several.

    `dots` marks each point.
    """
    known = [(x, y) for points in lines.values() for x, y in points if y is not None and math.isfinite(y)]
    if not known:
        return _frame(title, ['<text class="axis" x="60" y="90">no values yet</text>'])
    xs, ys = _range([x for x, _ in known]), _range([y for _, y in known])
    parts = _axes(xs, ys, x_label)
    for place, points in enumerate(lines.values()):
        colour = f"line c{place % _COLOURS}"
        for piece in _pieces(points):
            places = [(_across(x, xs), _up(y, ys)) for x, y in piece]
            if len(places) > 1:
                parts.append(
                    f'<polyline class="{colour}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>'
                )
            if len(places) == 1 or dots:
                parts += [
                    f'<circle class="{colour} dot" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in places
                ]
    return _frame(title, parts, list(lines) if len(lines) > 1 else [])


def bar_chart(title: str, bars: Sequence[tuple[float, float, int]], x_label: str) -> markupsafe.Markup:
    """How many lie in each interval (from, to)."""
    if not bars:
        return _frame(title, ['<text class="axis" x="60" y="90">no values yet</text>'])
    xs, ys = (bars[0][0], bars[-1][1]), (0.0, float(max(count for _, _, count in bars)) or 1.0)
    xs = _range(list(xs))
    parts = _axes(xs, ys, x_label)
    for low, high, count in bars:
        left, right, top = _across(low, xs), _across(high, xs), _up(count, ys)
        width, height = max(1.0, right - left - 1), HEIGHT - _BOTTOM - top
        parts.append(
            f'<rect class="bar" x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}"/>'
        )
    return _frame(title, parts)


def short(value: float) -> str:
    """A number on an axis."""
    if value == 0 or 0.001 <= abs(value) < 10_000:
        return f"{value:.4g}"
    return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")


def _pieces(points: Points) -> list[list[tuple[float, float]]]:
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if y is None or not math.isfinite(y):
            pieces.append([])
        else:
            pieces[-1].append((x, y))
    return [piece for piece in pieces if piece]


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low == high:
        margin = abs(low) / 10 or 1.0
        return low - margin, high + margin
    return low, high


def _across(x: float, xs: tuple[float, float]) -> float:
    return _LEFT + (x - xs[0]) / (xs[1] - xs[0]) * (WIDTH - _LEFT - _RIGHT)


def _up(y: float, ys: tuple[float, float]) -> float:
    return HEIGHT - _BOTTOM - (y - ys[0]) / (ys[1] - ys[0]) * (HEIGHT - _TOP - _BOTTOM)


def _axes(xs: tuple[float, float], ys: tuple[float, float], x_label: str) -> list[str]:
    parts = []
    for share in (0.0, 0.5, 1.0):
        y = ys[0] + share * (ys[1] - ys[0])
        up = _up(y, ys)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{up:.1f}" y2="{up:.1f}"/>')
        parts.append(
            f'<text class="axis" x="{_LEFT - 6}" y="{up + 4:.1f}" text-anchor="end">{short(y)}</text>'
        )
    bottom = HEIGHT - 8
    parts.append(f'<text class="axis" x="{_LEFT}" y="{bottom}">{short(xs[0])}</text>')
    parts.append(
        f'<text class="axis" x="{WIDTH - _RIGHT}" y="{bottom}" text-anchor="end">{short(xs[1])}</text>'
    )
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    label = markupsafe.escape(printable(x_label))
    parts.append(f'<text class="axis" x="{middle:.0f}" y="{bottom}" text-anchor="middle">{label}</text>')
    return parts


def _frame(title: str, parts: Sequence[str], legend: Sequence[str] = ()) -> markupsafe.Markup:
    shown = markupsafe.escape(printable(title))
    keys = "".join(
        f'<li class="c{place % _COLOURS}">{markupsafe.escape(printable(name))}</li>'
        for place, name in enumerate(legend)
    )
    return markupsafe.Markup(
        f'<figure class="chart"><figcaption>{shown}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{shown}">{"".join(parts)}</svg>'
        + (f'<ul class="legend">{keys}</ul>' if keys else "")
        + "</figure>"
    )
