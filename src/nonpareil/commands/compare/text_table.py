"""A table of text: one content for the terminal, the page and the documentation."""

from dataclasses import dataclass

from nonpareil.markdown import plain


@dataclass(frozen=True)
class TextTable:
    """A heading, a note below it, and cells of text; the first column is the method's name."""

    title: str
    note: str
    header: list[str]
    rows: list[list[str]]
    num_baselines: int = 0
    """Of the last rows: what methods are held against."""
    brief: tuple[int, ...] = ()
    """The columns that the terminal has room for; it leaves out a table without any."""

    def markdown(self) -> str:
        """As GitHub reads it, numbers to the right."""
        ruler = [":--"] + ["--:"] * (len(self.header) - 1)
        lines = [self.header, ruler, *(list(map(plain, row)) for row in self.rows)]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
