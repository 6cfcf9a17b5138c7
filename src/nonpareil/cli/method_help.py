"""The settings of methods for `distill --help`, read from the text of their files: to import them takes seconds."""

import ast
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nonpareil

Row = tuple[str, str]
"""A flag, and what is said of it."""
VALUES = {"int": "N", "float": "X", "bool": ""}
"""What stands for a value of a type; of any other, TEXT."""


class MethodSetting(NamedTuple):
    """A field of a method's class, as its file has it."""

    name: str
    value: str
    """What stands for its value: N, X, or {the,words}."""
    help: str
    default: str


def method_section(argv: Sequence[str]) -> tuple[str, list[Row]]:
    """A title, and the settings of the method that flags name, or of all of ours where they name none of those."""
    named = _named(argv)
    ours = settings_by_method()
    own = ours.get(named) or _own_settings(named)
    if own:
        rows = [
            (f"--{one.name} {one.value}".strip(), f"{one.help} Default: {one.default}.".strip())
            for one in own
        ]
        return f"Settings of --method {named}", rows
    names = dict.fromkeys(one.name for settings in ours.values() for one in settings)
    title = f"Settings of {', '.join(ours)} (of one: --method NAME --help)"
    return title, [_row(name, ours) for name in names]


def has_fixed_anchor(argv: Sequence[str]) -> bool:
    """Whether the method that flags name is one of ours whose anchor is the fixed reference, and may not move."""
    tree = _parsed("nonpareil.methods")
    cls = _classes(tree).get(_named(argv))
    return cls is not None and not _moves(_parsed(_imported(tree)[cls]), cls)


def _moves(tree: ast.Module, name: str) -> bool:
    """Whether a class, or the nearest above it that says so, has a rate at which its anchor moves."""
    cls = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    for node in cls.body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "anchor_ema_rate":
            return node.value is not None and ast.unparse(node.value) != "None"
    files = _imported(tree)
    bases = [base.id for base in cls.bases if isinstance(base, ast.Name) and base.id in files]
    return any(_moves(_parsed(files[base]), base) for base in bases)


def settings_by_method() -> dict[str, list[MethodSetting]]:
    """The settings of our methods, by the methods' names."""
    tree = _parsed("nonpareil.methods")
    files = _imported(tree)
    return {name: _settings(_parsed(files[cls]), cls) for name, cls in _classes(tree).items()}


def _classes(tree: ast.Module) -> dict[str, str]:
    """The names of our methods' classes, by the methods' own."""
    classes = next(
        node.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "METHODS"
    )
    assert isinstance(classes, ast.Dict)
    return {
        ast.literal_eval(name): cls.id
        for name, cls in zip(classes.keys, classes.values, strict=True)
        if name is not None and isinstance(cls, ast.Name)
    }


def _row(name: str, ours: dict[str, list[MethodSetting]]) -> Row:
    """A setting of some methods, with the default of each."""
    found = {method: one for method, settings in ours.items() for one in settings if one.name == name}
    by_default: dict[str, list[str]] = {}
    for method, one in found.items():
        by_default.setdefault(one.default, []).append(method)
    defaults = ", ".join(f"{default} ({', '.join(methods)})" for default, methods in by_default.items())
    words = dict.fromkeys(word for one in found.values() for word in one.value.strip("{}").split(","))
    value = f"{{{','.join(words)}}}" if len(words) > 1 else next(iter(words))
    text = Counter(one.help for one in found.values()).most_common(1)[0][0]
    return f"--{name} {value}".strip(), f"{text} Default: {defaults}.".strip()


def _named(argv: Sequence[str]) -> str:
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        flag, _, value = word.partition("=")
        if flag == "--method":
            return value or following
    return ""


def _own_settings(spec: str) -> list[MethodSetting]:
    """Of a user's own class, by path/to/file.py:Class; nothing where there is none that can be read."""
    file, _, name = spec.rpartition(":")
    try:
        return _settings(ast.parse(Path(file).expanduser().read_text(encoding="utf-8")), name)
    except (OSError, ValueError, SyntaxError):
        return []


def _settings(tree: ast.Module, class_name: str) -> list[MethodSetting]:
    """The fields with a default, but for `stored`, which follows from whether groups are given."""
    body = [node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name]
    found = []
    for node in body[0] if body else ():
        if not isinstance(node, ast.AnnAssign) or node.value is None:
            continue
        name, kind = ast.unparse(node.target), ast.unparse(node.annotation)
        if name == "stored" or "ClassVar" in kind:
            continue
        said: list[ast.expr] = [node.value]
        if isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "option":
            said = node.value.args
        default, text = (*map(_value, said), "")[:2]
        found.append(MethodSetting(name, _words(tree, kind), str(text), str(default)))
    return found


def _value(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:  # a name: as it is written
        return ast.unparse(node)


def _words(tree: ast.Module, kind: str) -> str:
    """What stands for a value of an annotation: the words of a `Literal`, which may be another module's."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == kind:
            _, _, inside = ast.unparse(node.value).partition("Literal[")
            return f"{{{','.join(map(str, ast.literal_eval(f'[{inside}')))}}}" if inside else "TEXT"
    module = _imported(tree).get(kind)
    return _words(_parsed(module), kind) if module is not None else VALUES.get(kind, "TEXT")


def _imported(tree: ast.Module) -> dict[str, str]:
    """The module of ours that each name is imported from."""
    return {
        one.asname or one.name: node.module
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nonpareil.")
        for one in node.names
        if node.module is not None
    }


def _parsed(module: str) -> ast.Module:
    path = Path(nonpareil.__file__).parent.joinpath(*module.split(".")[1:])
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))
