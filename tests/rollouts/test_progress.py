import io
import re

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


def test_a_bar_on_a_terminal():
    shown = run(Terminal())
    assert "100/100" in shown
    assert "groups/s" in shown
    assert "tokens/s" in shown
