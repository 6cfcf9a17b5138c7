"""A path by strength: its tables say what its evaluations say, its page and picture show all of them."""

import json
from pathlib import Path

import pytest
import torch

from nonpareil.evaluation.path_report import path_figure, write_path
from nonpareil.evaluation.path_tables import path_tables
from nonpareil.evaluation.strength_path import StrengthPath, strength_at, strength_path
from tests.evaluation.test_comparison import evaluated

REWARDS = torch.arange(16.0, dtype=torch.float64).repeat(8, 1)


@pytest.fixture
def path() -> StrengthPath:
    points = {0.0: (0.51, 0.0), 0.5: (0.6, 0.2), 1.0: (0.7, 0.6), 2.0: (0.78, 1.5)}
    found = {strength: (evaluated(*point), f"strength-{strength:g}") for strength, point in points.items()}
    return strength_path(found, REWARDS, [0.6, 0.65, 0.9])


def test_it_begins_at_the_reference_whatever_was_drawn_there(path: StrengthPath) -> None:
    assert [point.strength for point in path.points] == [0, 0.5, 1, 2]
    assert (path.line[0].kl, path.line[0].win_rate) == (0, 0.5)
    assert path.line[-1].win_rate == pytest.approx(0.78)
    assert path.reach == pytest.approx((0.5, 0.78))
    first, second, third = path.at
    assert first.position is not None and second.position is not None  # noqa: PT018
    assert first.position.estimate == pytest.approx(0.5)
    assert 0.5 < second.position.estimate < 1
    assert third.kl is None


def test_the_strength_with_a_win_rate_is_where_the_path_has_it(path: StrengthPath) -> None:
    means = {point.strength: point.win_rate.estimate for point in path.points if point.strength > 0}
    for row in path.at[:2]:
        assert row.position is not None
        assert strength_at(means, row.win_rate) == pytest.approx(row.position.estimate)
    assert strength_at(means, 0.78) == pytest.approx(2)
    assert strength_at(means, 0.781) is None
    assert strength_at(means, 0.5) is None, "which is the reference"
    line = {2.0: 0.7, 0.5: 0.55, 1.0: 0.6}
    for target in (0.51, 0.55, 0.63, 0.7):
        assert strength_at(line, target) == pytest.approx((target - 0.5) / 0.1)
    first = strength_at({1.0: 0.6, 2.0: 0.55, 3.0: 0.7}, 0.58)
    assert first is not None
    assert 0 < first < 1, "the first time"
    assert strength_at({1.0: float("nan")}, 0.6) is None


def test_tables_page_and_picture(path: StrengthPath, tmp_path: Path) -> None:
    points, at = path_tables(path)
    assert [row[:1] + row[2:3] for row in points.rows] == [
        ("0", ".000"),
        ("0.5", ".200"),
        ("1", ".600"),
        ("2", "1.500"),
    ]
    assert at.rows[0][0] == "0.6"
    assert at.rows[2] == ("0.9", "not reached", "not reached", "not reached")
    assert "win rates go from .500 to .780" in at.note
    axes = path_figure(path).axes[0]
    assert [text.get_text() for text in axes.texts][-5:] == [
        "0",
        "0.5",
        "1",
        "2",
        "out of any policy's reach",
    ]
    page = write_path(path, tmp_path, "<b>How far?</b>", {"prompts": 8}).read_text()
    assert "&lt;b&gt;How far?&lt;/b&gt;" in page
    assert "strength-0.5/report.html" in page
    assert path.headline() in page
    assert (tmp_path / "path.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads((tmp_path / "path.json").read_text())["path"]["points"][1]["strength"] == 0.5
