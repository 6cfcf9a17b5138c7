"""What the pages name is there: links, files, modules, and the functions and tests of docs/papers.md."""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "nonpareil"
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "recipes").rglob("*.md")],
    key=lambda path: path.relative_to(ROOT).parts,
)
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
FOLDERS = ("src", "tests", "docs", "recipes", "benchmarks")
EXAMPLES = {"path/to/file.py"}
"""Paths that a reader puts an own one in the place of."""
GENERATED = ("data/", "checkpoints/", "evaluation/", "recipes/imdb/prompts/", "nonpareil-")
"""What commands and recipes write."""

LINK = re.compile(r"\]\(([^)\s]+)\)")
FILE = re.compile(r"(?<![\w/.:-])(?:[\w.-]+/)+[\w.-]+\.(?:py|md|yaml|toml|sh|j2|parquet)\b")
FOLDER = re.compile(r"(?:[\w.-]+/)+")
CODE = re.compile(r"`([^`\n]+)`")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def test_there_are_pages():
    assert {
        "README.md",
        "CONTRIBUTING.md",
        "docs/papers.md",
        "docs/architecture.md",
        "recipes/imdb/README.md",
    } <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    page = ROOT / name
    assert not [link for link in LINK.findall(page.read_text()) if not leads_somewhere(link, page)]


def leads_somewhere(link: str, page: Path) -> bool:
    """Whether a relative link's file is there, and has the heading it names; other sites are not asked."""
    if re.match(r"[a-z]+:", link):
        return True
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    return target.exists() and (not anchor or anchor in anchors(target))


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    titles = HEADING.findall(re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL))
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).lower() for title in titles)
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in plain}


@pytest.mark.parametrize("name", NAMES)
def test_files_that_are_named_are_there(name):
    """From the repository's root, the package, the tests, or the page's own folder."""
    page = ROOT / name
    places = (ROOT, PACKAGE, PACKAGE.parent, ROOT / "tests", page.parent)
    text = page.read_text()
    named = {*FILE.findall(text), *(code for code in CODE.findall(text) if FOLDER.fullmatch(code))} - EXAMPLES
    named = {path for path in named if not path.startswith(GENERATED)}
    assert not [path for path in sorted(named) if not any((place / path).exists() for place in places)]


@pytest.mark.parametrize("name", NAMES)
def test_modules_that_are_named_are_there(name):
    tops = {
        path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    text = (ROOT / name).read_text()
    dotted = re.compile(rf"(?:nonpareil\.)?({'|'.join(sorted(tops - {'__init__'}))})((?:\.[A-Za-z_]\w*)+)")
    named = {
        match.group(1) + match.group(2) for code in CODE.findall(text) if (match := dotted.fullmatch(code))
    }
    suffixes = (".py", ".md", ".json", ".jsonl", ".yaml")
    assert not [path for path in sorted(named) if not path.endswith(suffixes) and not resolves(path)]


def resolves(path: str) -> bool:
    """Whether a dotted name below `nonpareil` is a module or something in one."""
    parts = path.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(["nonpareil", *parts[:count]]))
        except ModuleNotFoundError:
            continue
        for name in parts[count:]:
            if not hasattr(found, name):
                return False
            found = getattr(found, name)
        return True
    return False


def test_pages_that_code_cites_are_there():
    cited = {
        (path.relative_to(ROOT), citation)
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".yaml", ".sh", ".toml", ".md")
        for citation in re.findall(r"docs/[\w-]+\.md(?:#[\w-]+)?", path.read_text())
    }
    assert len(cited) > 20
    assert not [where for where in sorted(cited) if not leads_somewhere(where[1], ROOT / "README.md")]


# --- docs/papers.md


def rows() -> Iterator[tuple[str, str, str]]:
    """Module (of the heading), function and test of each row of the tables about `nonpareil.maths`."""
    text = (ROOT / "docs" / "papers.md").read_text()
    for section in re.split(r"^### ", text, flags=re.MULTILINE)[1:]:
        title, *lines = section.splitlines()
        modules = [name for name in CODE.findall(title) if (PACKAGE / "maths" / f"{name}.py").is_file()]
        for line in lines:
            cells = re.split(r"(?<!\\)\|", line)
            if modules and line.startswith("| ") and cells[2].strip() != "function":
                yield " ".join(modules), cells[2], cells[3]


def test_functions_of_the_papers_table_are_there():
    checked = 0
    for modules, functions, _ in rows():
        for function in CODE.findall(functions):
            last = function.split(".")
            homes = [last[0]] if (PACKAGE / "maths" / f"{last[0]}.py").is_file() else modules.split()
            names = last[1:] if homes == [last[0]] else last
            assert any(resolves(".".join(["maths", home, *names])) for home in homes), function
            checked += 1
    assert checked > 35


def test_tests_of_the_papers_tables_are_there():
    tests = {
        node.name.removeprefix("test_")
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    named = {
        name
        for line in (ROOT / "docs" / "papers.md").read_text().splitlines()
        if line.startswith("| ")
        for name in CODE.findall(re.split(r"(?<!\\)\|", line)[3])
        if re.fullmatch(r"\w+(_\w+){2,}", name)
    }
    assert len(named) > 50
    assert not sorted(named - tests)
