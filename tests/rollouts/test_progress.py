import io
import re
import time

from nonpareil.rollouts import ProgressBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(stream: io.StringIO) -> str:
    with ProgressBar(stream) as progress:
        progress.start("draw", 100)
        for _ in range(50):
            progress.update(2, 300)
        progress.start("score", 3)
        for _ in range(3):
            progress.update(1, 0)
    return stream.getvalue()


def test_a_line_every_tenth_where_no_terminal_is():
    lines = run(io.StringIO()).splitlines()
    draw = [line for line in lines if line.startswith("draw")]
    assert [line.split()[1] for line in draw] == [f"{done}/100" for done in range(10, 101, 10)]
    pattern = r"draw 10/100 groups, [\d.e+]+ groups/s, [\d,]+ tokens/s, \d+:\d\d:\d\d left"
    assert re.fullmatch(pattern, draw[0])
    score = [line for line in lines if line.startswith("score")]
    assert [line.split()[1] for line in score] == ["1/3", "2/3", "3/3"]
    assert all("tokens/s" not in line for line in score)
    assert [line for line in lines if line not in (*draw, *score)] == [
        "100 groups to draw",
        "3 groups to score",
    ]


def test_early_lines_by_the_clock_and_then_ever_fewer(monkeypatch):
    stream, now = io.StringIO(), [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress = ProgressBar(stream)
    progress.start("draw", 100_000)
    for _ in range(100):
        now[0] += 7
        progress.update(0 if now[0] < 12 else 1, 50)
    lines = stream.getvalue().splitlines()[1:]
    assert [line.split(",")[0] for line in lines] == [
        f"draw {groups}/100000 groups" for groups in (1, 2, 5, 11, 22, 45, 91)
    ]
    assert lines[0] == "draw 1/100000 groups, 0.0714 groups/s, 7 tokens/s, 388:53:06 left"


def test_a_bar_on_a_terminal():
    shown = run(Terminal())
    assert "100/100" in shown
    assert "groups/s" in shown
    assert "tokens/s" in shown
