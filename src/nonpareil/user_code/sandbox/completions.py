"""The program within a completion. Found in the sandbox: to parse what a model wrote may take long, or crash."""

import ast
import builtins
import contextlib
import functools
import re
import symtable
import textwrap
from collections.abc import Iterator, Sequence

PYTHON = frozenset(("", "py", "python", "python2", "python3", "py3"))
"""Names of a fence's language; without one, a block is Python if it parses."""
_FENCE = re.compile(r"(?P<before>.*?)(?P<fence>`{3,}|~{3,})[ \t]*\{?\.?(?P<language>[\w+-]*)[^`]*")
_TRANSCRIPT = re.compile(r"\s*>>>")
_CODE_BEGINS = re.compile(r"^(?:def|class|import|from|async def)\s|^@\w", re.MULTILINE)
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def program_of(answer: str, names: Sequence[str], start: str) -> list[str]:
    """The texts to run, one after the other; none where there is no code.

    Of fenced blocks, those of Python up to the first that defines one of the names (a bare signature defines
    nothing), or all where none does. What follows shows its use: of that only what defines a name which those lack.
    Without a fence the answer is code, continues `start`, or has code in it.

    Args:
        answer: what the model wrote, its thoughts left out.
        names: what the tests call, any of them.
        start: code that the model was given to continue, which ends in the function's head; "" where there is none.
    """
    head = head_of(start, names)
    fenced = list(_python_blocks(answer))
    texts = [prefix for block in fenced if (prefix := parsing_prefix(block))]
    for place, text in enumerate(texts):
        if _defines(text, names):
            program = [head, *texts[: place + 1]]
            with contextlib.suppress(
                SyntaxError, ValueError, RecursionError, MemoryError
            ):  # code of no sense
                program += lacking(program, texts[place + 1 :])
            return program
    beginning = re.split(r"^\s*(?:```|~~~)", answer, maxsplit=1, flags=re.MULTILINE)[0]
    whole = "" if fenced else parsing_prefix(textwrap.dedent(answer), all_of_it=True)
    if whole and (_defines(whole, names) or not start):
        return [head, whole]
    if start:
        for continuation in (beginning, *fenced):
            if whole := _continued(start, continuation):
                return [whole]
    if texts:
        return [head, *texts]
    found = _CODE_BEGINS.search(answer)
    return [head, parsing_prefix(answer[found.start() :])] if found else []


@functools.lru_cache(maxsize=1024)  # asked for each answer to a row
def is_solution(text: str, names: tuple[str, ...], start: str) -> bool:
    """Whether a text has code that defines one of the names, by itself or as what continues `start`."""
    return any(_defines(one, names) for one in program_of(text, names, start))


def head_of(start: str, names: Sequence[str]) -> str:
    """What `start` gives beside the function to be written: imports and helpers; "" where it is no such code."""
    tree = _to_be_continued(start)
    if tree is None or (names and tree.body[-1].name not in names):  # type: ignore[attr-defined]
        return ""
    return "\n".join(ast.unparse(node) for node in tree.body[:-1])


def lacking(program: Sequence[str], further: Sequence[str]) -> list[str]:
    """Of further code, the statements at the top that give names which the program reads and nothing in it gives.

    And those that such statements lack, wherever they stand; in their order, as one text.
    """
    statements = [node for text in further for node in ast.parse(text).body]
    texts = list(filter(None, program))
    taken: set[int] = set()
    while True:
        missing = set.union(set(), *map(_reads, texts)) - set.union(set(dir(builtins)), *map(_gives, texts))
        new = {i for i, node in enumerate(statements) if i not in taken and _given(node) & missing}
        if not new:
            return ["\n".join(ast.unparse(statements[i]) for i in sorted(taken))] if taken else []
        taken |= new
        texts += [ast.unparse(statements[i]) for i in sorted(new)]


def _reads(text: str) -> set[str]:
    """Names that are looked up among a text's globals, in whatever function."""
    found, tables = set(), [symtable.symtable(text, "<program>", "exec")]
    while tables:
        table = tables.pop()
        at_the_top = table.get_type() == "module"
        found |= {
            each.get_name()
            for each in table.get_symbols()
            if each.is_referenced() and (at_the_top or each.is_global())
        }
        tables += table.get_children()
    return found


def _gives(text: str) -> set[str]:
    """Names that a text gives at its top, whatever statement they stand in."""
    table = symtable.symtable(text, "<program>", "exec")
    return {each.get_name() for each in table.get_symbols() if each.is_assigned() or each.is_imported()}


def _given(node: ast.stmt) -> set[str]:
    """Names that a definition, an assignment or an import gives; none of other statements."""
    if not isinstance(node, (*_DEFINITIONS, ast.Assign, ast.AnnAssign, ast.Import, ast.ImportFrom)):
        return set()
    return _gives(ast.unparse(node))


def parsing_prefix(text: str, all_of_it: bool = False) -> str:
    """The text's first lines, as many as parse: what a limit of tokens cut in two is left out. "" where none do."""
    lines = text.split("\n")
    count = len(lines)
    while count > 0:
        try:
            ast.parse("\n".join(lines[:count]))
        except SyntaxError as error:
            if all_of_it:
                return ""
            count = min(count - 1, max(0, (error.lineno or count) - 1))
        except (ValueError, RecursionError, MemoryError):
            return ""
        else:
            return "\n".join(lines[:count])
    return ""


def _continued(start: str, continuation: str) -> str:
    """`start` with what continues it; "" where that adds nothing, or `start` is no code."""
    if not continuation.strip() or _to_be_continued(start) is None:
        return ""
    whole = parsing_prefix(start + continuation)
    return whole if len(whole.rstrip()) > len(start.rstrip()) else ""


def _to_be_continued(start: str) -> ast.Module | None:
    """A text as code that ends in a function or class without contents yet; None where it is no such thing."""
    tree = _parsed(start) or _parsed(f"{start.rstrip()}\n    pass\n")
    if tree is None or not tree.body or not isinstance(last := tree.body[-1], _DEFINITIONS):
        return None
    return tree if all(map(_is_no_content, last.body)) else None


def _is_no_content(node: ast.stmt) -> bool:
    """A docstring, three dots, `pass`, an import: what stands in a function that is still to be written."""
    docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return docstring or isinstance(node, ast.Pass | ast.Import | ast.ImportFrom)


def _python_blocks(answer: str) -> Iterator[str]:
    for language, block in _blocks(answer):
        if language in PYTHON and not _TRANSCRIPT.match(block):
            text = textwrap.dedent(block)
            if language or _parsed(text):
                yield text


def _blocks(answer: str) -> Iterator[tuple[str, str]]:
    """Fenced blocks with their languages; one without an end goes to the end of the text."""
    language, fence = "", ""
    lines: list[str] = []
    for line in answer.split("\n"):
        if fence:
            if line.strip().startswith(fence) and not line.strip().strip(fence[0]):
                yield language, "\n".join(lines)
                fence, lines = "", []
            else:
                lines.append(line)
        elif opened := _FENCE.fullmatch(line):
            named = opened["language"].lower()
            if not opened["before"].strip() or named in PYTHON - {""}:
                language, fence = named, opened["fence"]
    if fence:
        yield language, "\n".join(lines)


def _defines(text: str, names: Sequence[str]) -> bool:
    """Whether it defines one of the names at its top, or anything where none is asked for.

    A function without contents is a signature that is shown, and defined further on.
    """
    tree = _parsed(text)
    defined: set[str] = set()
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, _DEFINITIONS) and node.col_offset == 0:
            if not all(map(_is_no_content, node.body)):
                defined.add(node.name)
        elif isinstance(node, ast.Assign) and node.col_offset == 0:
            defined |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return bool(defined & set(names) if names else defined)


def _parsed(text: str) -> ast.Module | None:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
