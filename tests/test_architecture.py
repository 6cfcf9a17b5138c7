"""The rules that no linter checks: floors, light imports, short files, options that are read."""

import ast
import dataclasses
import functools
import importlib
import importlib.util
import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Set
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import nonpareil
from nonpareil.assets import demo_path
from nonpareil.errors import DataError
from nonpareil.methods import METHODS
from nonpareil.options.rewards import RewardOptions, model_options
from nonpareil.rewards.models.text_options import TextOptions
from nonpareil.rewards.models.transformers import RewardModel
from nonpareil.rewards.specs import load_rewards

ROOT = Path(__file__).parents[1]
PACKAGE = Path(nonpareil.__file__).parent

MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 50  # the docstring not counted
LONG_FUNCTIONS = {  # why each is one thing
    "training/trainer.py:DistillationTrainer.__init__": "TRL's arguments, one per line, then the parts",
}

# Dataclasses that a user sets, wherever they live: by their name, or by a field that `settings.option` declares.
SETTINGS_NAME = re.compile(r"(Config|Options|Params|Settings|Arguments)$")

FOREIGN_TEXT = {
    "a path of one machine": re.compile(r"(?<![\w.$}])/(root|tmp|work|home|Users)/\w"),
    "a package registry's or mirror's host": re.compile(
        r"https?://(files\.|registry\.|deb\.|[\w.-]*(pyp|mirror))"
    ),
    "what a stranger has not": re.compile(
        r"\.\./shared/|\bissues? (?:n\b|\d)|[Oo]ur note[s]\b|\bwas len[t]\b|paper[ _]note[s]\b"
    ),
}


# --- Floors


def test_imports_go_down_a_floor():
    pytest.importorskip("importlinter", reason="the import contract needs the dev extra")
    code = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    done = python(code, "--no-cache", cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Contracts: [1-9]\d* kept, 0 broken", done.stdout), done.stdout


def test_the_picture_of_the_floors_is_that_of_the_imports():
    """Mend it with `python docs/draw_floors.py`."""
    spec = importlib.util.spec_from_file_location("draw_floors", ROOT / "docs" / "draw_floors.py")
    draw_floors = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw_floors)
    page = draw_floors.PAGE.read_text()
    assert "  training --> methods" in page
    assert draw_floors.redrawn(page) == page


def test_a_method_is_named_by_its_own_floor_alone():
    """A new one touches its file and `METHODS`: no other list has methods by name, but for the default."""
    named = {
        (relative.as_posix(), node.value)
        for relative, tree in parsed(PACKAGE)
        if relative.parts[0] != "methods"
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in METHODS
    }
    named -= {("rewards/models/served.py", "regression")}  # a word of transformers' own
    assert {name for _, name in named} == {"jbond"}


# --- Light imports

HEAVY = "sorted({'torch', 'transformers', 'datasets', 'pandas', 'matplotlib'} & set(sys.modules))"


def test_import_is_light():
    done = python(f"import sys, nonpareil; print({HEAVY})")
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stdout + done.stderr


@pytest.mark.parametrize("module", ["training.settings", "rollouts.numbers"])
def test_the_trainers_own_settings_and_reading_groups_are_light(module):
    done = python(f"import sys, nonpareil.{module}; print({HEAVY})")
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stdout + done.stderr


def test_every_command_can_be_named_without_any_extra():
    code = """
import importlib, sys, tomllib
extras = tomllib.load(open(sys.argv[1], "rb"))["project"]["optional-dependencies"]
names = {word.split("[")[0].split(">")[0].replace("-", "_") for each in extras.values() for word in each}
for name in (names | {"starlette"}) - {"nonpareil"}:
    sys.modules[name] = None
from nonpareil import api
from nonpareil.cli.main import COMMANDS
print(len([importlib.import_module(module).COMMAND for module, _ in COMMANDS.values()]))
"""
    done = python(code, str(ROOT / "pyproject.toml"))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 14


def test_the_trainer_imports_no_package_that_transformers_own_does_not():
    code = """
import sys
from transformers import Trainer
before = {name.partition(".")[0] for name in sys.modules}
from nonpareil import DistillationTrainer
print(sorted({name.partition(".")[0] for name in sys.modules} - before - {"nonpareil", "jaxtyping"}))
"""
    done = python(code)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stdout + done.stderr


def test_help_is_light():
    code = f"""
import sys
from nonpareil.cli.main import main
try:
    code = main(["--help"])
except SystemExit as stop:
    code = stop.code
print({HEAVY}, code or 0)
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert "distill" in done.stdout
    assert done.stdout.splitlines()[-1] == "[] 0"


# --- Short files, documented names


def test_files_and_functions_are_short():
    sources = dict(parsed(PACKAGE))
    assert len(sources) > 20
    long_files = [
        f"{relative}: {lines} lines"
        for relative in sources
        if (lines := len((PACKAGE / relative).read_text().splitlines())) > MAX_FILE_LINES
    ]
    lengths = {
        f"{relative}:{name}": code_lines(node)
        for relative, tree in sources.items()
        for name, node in definitions(tree)
        if not isinstance(node, ast.ClassDef)
    }
    assert len(lengths) > 50
    too_long = {name: lines for name, lines in lengths.items() if lines > MAX_FUNCTION_LINES}
    assert not long_files
    assert not {name: lines for name, lines in too_long.items() if name not in LONG_FUNCTIONS}
    assert not set(LONG_FUNCTIONS) - set(too_long), "no longer long: take them off the list"


def test_public_names_are_documented():
    documented, bare = [], []
    for relative, tree in parsed(PACKAGE):
        for name, node in definitions(tree):
            if not any(part.startswith("_") for part in name.split(".")) and not is_overload(node):
                (documented if ast.get_docstring(node) else bare).append(f"{relative}:{name}")
    assert not bare
    assert len(documented) > 50


def definitions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Classes, their methods and functions, by dotted name; those inside functions and branches too."""
    for child in ast.iter_child_nodes(node):
        named = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        if named:
            yield prefix + child.name, child
        inside = child.name if isinstance(child, ast.ClassDef) else f"_{child.name}" if named else ""
        yield from definitions(child, f"{prefix}{inside}." if named else prefix)


def code_lines(node: ast.AST) -> int:
    """Lines of a function, signature and comments included, docstring left out."""
    first = node.body[0]
    docstring = first.end_lineno - first.lineno + 1 if ast.get_docstring(node) is not None else 0
    return node.end_lineno - node.lineno + 1 - docstring


def is_overload(node: ast.AST) -> bool:
    """Whether a function only states a type."""
    return any("overload" in ast.unparse(decorator) for decorator in node.decorator_list)


# --- Every option is read


def test_every_setting_is_read():
    settings = list(settings_dataclasses())
    names = {cls.__name__ for cls in settings}
    assert {"SamplingParams", "SampleOptions", "CompareOptions", "ComparisonFlags"} <= names
    assert {"DistillationConfig", "VLLMSettings", "BOND"} <= names
    handed_on = handed_to_reward_models()
    assert "reward_dtype" in handed_on
    for cls in settings:
        assert_fields_are_read(cls, PACKAGE, handed_on)


def handed_to_reward_models() -> set[str]:
    """Options that are handed on without being named: `reward_dtype` as `dtype`, to something that takes it."""
    functions = (load_rewards, RewardModel.__init__, TextOptions)
    taken = {name for function in functions for name in inspect.signature(function).parameters}
    return {f"reward_{name}" for name in model_options(RewardOptions()) if name in taken}


@dataclasses.dataclass
class ExampleConfig:
    used: int = 1
    checked: int = 2
    stored: int = 3

    def __post_init__(self):
        if self.checked < 0:
            raise ValueError(f"checked={self.checked}")


def test_a_setting_nobody_reads_is_found(tmp_path):
    (tmp_path / "use.py").write_text("def f(config):\n    config.stored = 2\n    return config.used\n")
    own = ast.unparse(class_definition(ExampleConfig))
    (tmp_path / "config.py").write_text(f"import dataclasses\n@dataclasses.dataclass\n{own}\n")
    with pytest.raises(AssertionError, match=r"ExampleConfig: nobody reads \['checked', 'stored'\]"):
        assert_fields_are_read(ExampleConfig, tmp_path)


def assert_fields_are_read(cls: type, package_dir: Path, handed_on: Set[str] = frozenset()) -> None:
    """Each field the class adds is read as `.field`, or by `getattr` with its name, somewhere in the package.

    Assigning to it is not reading it, and neither is a check in `__post_init__` that only refuses values:
    an option that is validated and then ignored is what this looks for. `handed_on` are read under other names.
    """
    inherited = {
        field.name
        for base in cls.__bases__
        if dataclasses.is_dataclass(base)
        for field in dataclasses.fields(base)
    }
    own = {read_as(field) for field in dataclasses.fields(cls) if field.name not in inherited}
    unread = sorted(own - all_names_read(package_dir) - handed_on)
    assert not unread, f"{cls.__name__}: nobody reads {unread}"


def read_as(field: dataclasses.Field) -> str:
    """The name a field is read by: what a reward model alone reads, it is handed without `reward_`."""
    reader = getattr(field.metadata.get("limits"), "reader", None)
    return field.name.removeprefix("reward_") if (reader or "").startswith("a reward model") else field.name


@functools.cache
def all_names_read(package_dir: Path) -> set[str]:
    """`names_read` of a whole package."""
    return {name for _, tree in parsed(package_dir) for name in names_read(tree)}


def names_read(node: ast.AST, in_post_init: bool = False) -> Iterator[str]:
    """Attribute names that are loaded below a node."""
    if isinstance(node, ast.FunctionDef):
        in_post_init = node.name == "__post_init__"
    if in_post_init and isinstance(node, ast.If) and isinstance(node.body[-1], ast.Raise) and not node.orelse:
        return
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
        yield node.attr
    if (
        isinstance(node, ast.Call)
        and ast.unparse(node.func) == "getattr"
        and isinstance(node.args[1], ast.Constant)
    ):
        yield node.args[1].value
    for child in ast.iter_child_nodes(node):
        yield from names_read(child, in_post_init)


def settings_dataclasses() -> Iterator[type]:
    """The dataclasses that hold what a user sets; only their modules are imported."""
    for relative, tree in parsed(PACKAGE):
        for node in tree.body:
            if not isinstance(node, ast.ClassDef):
                continue
            if not (SETTINGS_NAME.search(node.name) or declares_options(node)):
                continue
            parts = relative.with_suffix("").parts
            module = ".".join(["nonpareil", *(parts[:-1] if parts[-1] == "__init__" else parts)])
            cls = getattr(importlib.import_module(module), node.name)
            if dataclasses.is_dataclass(cls):
                yield cls


def declares_options(node: ast.ClassDef) -> bool:
    """Whether `settings.option` makes one of its fields."""
    values = [field.value for field in node.body if isinstance(field, ast.AnnAssign)]
    return any(isinstance(value, ast.Call) and ast.unparse(value.func) == "option" for value in values)


# --- Files that work elsewhere


def test_tracked_files_name_no_machine_and_no_registry():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    texts = {
        name: text
        for name in listed.stdout.split("\0")
        if name and (text := text_of(ROOT / name)) is not None
    }
    assert len(texts) > 50
    assert not [
        f"{name}:{number}: {what}: {line.strip()[:100]}"
        for name, text in texts.items()
        for number, line in enumerate(text.splitlines(), 1)
        for what, pattern in FOREIGN_TEXT.items()
        if pattern.search(line)
    ]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("see " + "/ro" + "ot/model", ["a path of one machine"]),
        ("index-url = https" + "://pyp" + "i.org/simple", ["a package registry's or mirror's host"]),
        ("https://example.org/wo" + "rk/paper", []),
        ("out/t" + "mp/x, ./home/x, $HOME/wo" + "rk/x, /dev/null", []),
    ],
)
def test_what_a_foreign_text_is(line, found):
    assert [what for what, pattern in FOREIGN_TEXT.items() if pattern.search(line)] == found


def text_of(path: Path) -> str | None:
    """A file's text; None where it is binary, or was removed and not yet committed."""
    if not path.is_file() or b"\0" in (raw := path.read_bytes()):
        return None
    return raw.decode("utf-8", errors="replace")


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-floor.txt", "constraints-newest.txt"])
def test_constraints_pin_every_dependency_within_its_bounds(file):
    pins = pins_of(file)
    for requirement in direct_dependencies():
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{name} is not in {file}"
        assert pins[name] in requirement.specifier, f"{name}=={pins[name]} is outside {requirement}"


def test_the_lower_bounds_are_those_that_are_tested():
    pins = pins_of("constraints-floor.txt")
    for requirement in direct_dependencies():
        floors = [Version(bound.version) for bound in requirement.specifier if bound.operator == ">="]
        assert floors == [Version(pins[canonicalize_name(requirement.name)])], requirement


def direct_dependencies() -> list[Requirement]:
    """What pyproject.toml asks for itself, for use, tests and development."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [Requirement(text) for text in [*project["dependencies"], *extras["test"], *extras["dev"]]]
    assert len(wanted) > 15
    return [requirement for requirement in wanted if requirement.name != project["name"]]


def pins_of(file: str) -> dict[str, str]:
    """A constraints file's versions by name; it holds nothing but `name==version` lines and comments."""
    lines = [line for line in (ROOT / file).read_text().splitlines() if line and line[0] != "#"]
    assert not [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==\d[\w.]*", line)]
    pins = dict(line.split("==") for line in lines)
    assert len(pins) == len(lines)
    return pins


def test_ci_runs_the_readmes_commands():
    readme = (ROOT / "README.md").read_text()
    install, tests = re.findall(
        r"^(?:install|tests)='(.+)'$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE
    )
    assert f"{install} && {tests}" in readme


def test_the_tests_that_ci_names_exist():
    """pytest ignores in silence what `--ignore` does not find."""
    words = re.findall(r"\btests/[\w/.{},]*", (ROOT / ".ci" / "run").read_text())
    named = []
    for word in words:
        before, _, rest = word.partition("{")
        names, _, after = rest.partition("}")
        named += [before + name + after for name in names.split(",")]
    assert len(named) > 40
    assert not [name for name in named if not (ROOT / name).exists()]


# --- The embedded demo


def test_a_missing_demo_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("nonpareil.assets.__file__", str(tmp_path / "__init__.py"))
    (tmp_path / "demo-lm").mkdir()
    assert demo_path("policy") == tmp_path / "demo-lm"
    with pytest.raises(DataError, match=r"reward is missing .*demo-rm.*reinstall nonpareil.*recipes/demo"):
        demo_path("reward")
    with pytest.raises(DataError, match=r"no part 'rewards'; it has policy, reward, prompts"):
        demo_path("rewards")


# --- Helpers


@functools.cache
def parsed(package_dir: Path) -> list[tuple[Path, ast.Module]]:
    """Each source file's path within the package, and its syntax tree."""
    return [
        (path.relative_to(package_dir), ast.parse(path.read_text(encoding="utf-8")))
        for path in sorted(package_dir.rglob("*.py"))
    ]


def class_definition(cls: type) -> ast.ClassDef:
    """The syntax tree of a class of this file."""
    tree = ast.parse(Path(__file__).read_text(encoding="utf-8"))
    return next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == cls.__name__)


def python(code: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )
