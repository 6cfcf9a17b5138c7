"""A path in words and tables, for the terminal and the page: its points, and where it reaches a win rate."""

import math
from dataclasses import dataclass

from rich.table import Table

from nonpareil.console import styled
from nonpareil.evaluation.equal_win_rate import AtWinRate
from nonpareil.evaluation.intervals import few_prompts
from nonpareil.evaluation.numbers import MISSING, bracket, number
from nonpareil.evaluation.strength_path import StrengthPath
from nonpareil.maths.bootstrap import Interval

UNREACHED = "not reached"


@dataclass(frozen=True)
class PathTable:
    """A title, a note, and cells of text."""

    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def path_tables(path: StrengthPath) -> list[PathTable]:
    """The points of a path, and what it pays at equal win rate."""
    ties = ", ties counted" if path.rewards_tie else ""
    points = PathTable(
        "Strengths",
        f"Each policy drew anew, on the same {path.num_prompts} prompts against the same completions of the "
        f"reference; 95% intervals over prompts. KL efficiency: least KL for this win rate{ties} / KL. Worth "
        f"best-of-x: the x with this win rate, shown up to {path.largest_n}.",
        ("strength", "win rate", "KL, nats", "KL efficiency", "worth best-of-"),
        tuple(
            (
                f"{point.strength:g}",
                cell(point.win_rate),
                cell(point.kl),
                cell(point.kl_efficiency),
                cell(point.equivalent_n, 2, path.largest_n),
            )
            for point in path.points
        ),
    )
    return [points, _at(path)]


def _at(path: StrengthPath) -> PathTable:
    low, high = (number(end) for end in path.reach)
    rows = tuple(
        (
            f"{row.win_rate:g}",
            UNREACHED if row.position is None else cell(row.position, 2),
            reached_cell(row, row.kl),
            reached_cell(row, row.kl_efficiency),
        )
        for row in path.at
    )
    note = (
        "Interpolated between the points, win rate and root of the KL by monotone cubics of the strength, from the "
        f"reference (.5 at no KL); never beyond them. The path's win rates go from {low} to {high}. An end of ∞: "
        "some resamples of the prompts never reach the win rate."
    )
    header = ("win rate", "strength", "KL, nats", "KL efficiency")
    return PathTable("At equal win rate", note, header, rows)


def reached_cell(row: AtWinRate, interval: Interval | None, digits: int = 3) -> str:
    """A metric at a win rate; in words where the path does not reach it."""
    return UNREACHED if row.kl is None else cell(interval, digits)


def cell(interval: Interval | None, digits: int = 3, at_most: float = math.inf) -> str:
    """`.72 [.70, .74]`; a dash for what cannot be computed."""
    if interval is None:
        return MISSING
    ends = bracket(interval, digits, at_most)
    return f"{number(interval.estimate, digits, at_most)}{'' if ends == MISSING else f' {ends}'}"


def terminal_tables(path: StrengthPath) -> list[Table]:
    """The same for the terminal."""
    shown = []
    for content in path_tables(path):
        table = Table(title=styled(content.title, "bold"), title_justify="left", caption_justify="left")
        table.caption = " ".join(filter(None, (content.note, few_prompts(path.num_prompts))))
        for column in content.header:
            table.add_column(column, justify="right", no_wrap=True)
        for row in content.rows:
            table.add_row(*(styled(text, "") for text in row))
        shown.append(table)
    return shown
