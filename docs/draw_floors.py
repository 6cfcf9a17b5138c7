"""Draw the floors of the package from its imports, and list its folders, into docs/architecture.md.

    python docs/draw_floors.py

The floors are those of the import contract in pyproject.toml; an arrow is an import, also one inside a function or
for types alone. Left out are arrows that a longer way implies, so that the picture can be read. The folders' lines
are the first lines of their docstrings. A test holds the page to what this draws.
"""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "nonpareil"
PAGE = ROOT / "docs" / "architecture.md"
HIGHEST_OF_GROUND = "records"
"""This floor and those beneath it hold small modules that all others use; the picture has one box for them."""

Arrows = dict[str, set[str]]


def floors() -> list[list[str]]:
    """The top-level modules, floor by floor from above, as the contract has them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [layer.replace(" ", "").split("|") for layer in layers]


def imported(tree: ast.AST) -> Iterator[str]:
    """The top-level modules of the package that a source file imports, wherever in it."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.startswith("nonpareil."):
                yield name.split(".")[1]


def arrows() -> Arrows:
    """Which box imports which."""
    layers = floors()
    ground = next(i for i, layer in enumerate(layers) if HIGHEST_OF_GROUND in layer)
    box = {name: name if i < ground else "ground" for i, layer in enumerate(layers) for name in layer}
    found: Arrows = {name: set() for name in box.values()}
    for path in PACKAGE.rglob("*.py"):
        top = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if top in box:
            found[box[top]] |= {box[name] for name in imported(ast.parse(path.read_text())) if name in box}
    return {name: targets - {name} for name, targets in found.items()}


def without_implied(found: Arrows) -> Arrows:
    """The arrows that no way over a third box implies."""

    def reached(name: str) -> set[str]:
        return set().union(*({target} | reached(target) for target in found[name]))

    return {
        name: {t for t in targets if not any(t in reached(other) for other in targets - {t})}
        for name, targets in found.items()
    }


def picture() -> str:
    """A Mermaid flowchart: one row a floor, the ground in one box."""
    layers, drawn = floors(), without_implied(arrows())
    ground = next(i for i, layer in enumerate(layers) if HIGHEST_OF_GROUND in layer)
    lines = ["```mermaid", "flowchart TD"]
    for number, layer in enumerate(layers[:ground]):
        if len(layer) > 1:
            lines += [f'  subgraph floor{number}[" "]', *(f"    {name}" for name in layer), "  end"]
        else:
            lines.append(f"  {layer[0]}")
    below = "<br/>".join(", ".join(layer) for layer in layers[ground:])
    lines.append(f'  ground["{below}"]')
    lines += [f"  {name} --> {target}" for name, targets in drawn.items() for target in sorted(targets)]
    return "\n".join([*lines, "```"])


def folders() -> str:
    """A table of the package's folders and of the modules that lie beside them."""
    paths = sorted([p.parent for p in PACKAGE.rglob("__init__.py")] + list(PACKAGE.glob("[!_]*.py")))
    rows = []
    for path in sorted(paths, key=lambda p: (p.suffix == ".py", p)):
        source = path if path.suffix else path / "__init__.py"
        says = (ast.get_docstring(ast.parse(source.read_text())) or "").splitlines()[0]
        name = path.relative_to(PACKAGE.parent).as_posix() + ("" if path.suffix else "/")
        rows.append(f"| `{name}` | {says.replace('|', chr(92) + '|')} |")
    return "\n".join(["| folder or module | what is there |", "|---|---|", *rows])


def redrawn(page: str) -> str:
    """The page with both parts as they are now."""
    for name, part in (("floors", picture()), ("folders", folders())):
        begin, end = f"<!-- {name}: drawn by docs/draw_floors.py -->", f"<!-- end of {name} -->"
        before, rest = page.split(begin)
        page = f"{before}{begin}\n\n{part}\n\n{end}{rest.split(end)[1]}"
    return page


if __name__ == "__main__":
    PAGE.write_text(redrawn(PAGE.read_text()))
