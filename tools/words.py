"""Lints of words: docstring openers, function names and class names that the house refuses (house.md, section 5)."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

OPENERS = frozenset("What How Where Which Whether Of By From At Over As".split())
PARTICIPLES = frozenset((Path(__file__).with_name("participles.txt")).read_text().split())
"""Names of one word that say what something became, not what the function does. Verbs of the same form (cut, put, read,
set, split) and plain nouns stay out of the file."""

Trees = Mapping[Path, ast.Module]


class Offender(NamedTuple):
    """One refused docstring or name."""

    path: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


def parse_folder(folder: Path) -> dict[Path, ast.Module]:
    """Parse every Python file below a folder, or one file."""
    paths = sorted(folder.rglob("*.py")) if folder.is_dir() else [folder]
    return {path: ast.parse(path.read_text(), str(path)) for path in paths}


@cache
def list_nodes(tree: ast.Module) -> list[ast.AST]:
    """List the nodes of a file, once for all lints."""
    return list(ast.walk(tree))


def list_openers(trees: Trees) -> Iterator[Offender]:
    """Docstrings of modules, classes and functions that begin with one of `OPENERS`."""
    for path, tree in trees.items():
        for node in list_nodes(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = ast.get_docstring(node, clean=False)
                if docstring is not None and has_forbidden_opener(docstring):
                    yield Offender(path, node.body[0].lineno, _first_line(docstring))


def list_field_openers(trees: Trees) -> Iterator[Offender]:
    """Texts below a constant or a field, which describe it, that begin with one of `OPENERS`."""
    for path, tree in trees.items():
        for node in list_nodes(tree):
            body = getattr(node, "body", None)
            for before, statement in pairwise(body) if isinstance(body, list) else ():
                text = _get_text(statement)
                if isinstance(before, ast.Assign | ast.AnnAssign) and text and has_forbidden_opener(text):
                    yield Offender(path, statement.lineno, _first_line(text))


def list_functions(trees: Trees) -> Iterator[Offender]:
    """Functions and methods with a forbidden name."""
    for path, tree in trees.items():
        for node in list_nodes(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and is_forbidden_name(node.name):
                yield Offender(path, node.lineno, node.name)


def list_classes(trees: Trees) -> Iterator[Offender]:
    """Public classes whose name another file defines, too."""
    for name, places in classes_by_name(trees).items():
        if len(places) > 1:
            yield from (Offender(path, line, name) for path, line in places)


def classes_by_name(trees: Trees) -> dict[str, list[tuple[Path, int]]]:
    """Name of a public class of a module -> the files and lines that define it, one line a file."""
    found: dict[str, dict[Path, int]] = {}
    for path, tree in trees.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, {}).setdefault(path, node.lineno)
    return {name: sorted(found[name].items()) for name in sorted(found)}


def has_forbidden_opener(docstring: str) -> bool:
    opener = re.match(r"\W*(\w*)", docstring)
    return opener is not None and opener[1] in OPENERS


def is_forbidden_name(name: str) -> bool:
    """True for `of`, `of_*`, `*_of` and a single past participle; leading underscores are not read."""
    bare = name.lstrip("_")
    return bare == "of" or bare.startswith("of_") or bare.endswith("_of") or bare in PARTICIPLES


LINTS: dict[str, Callable[[Trees], Iterator[Offender]]] = {
    "openers": list_openers,
    "field_openers": list_field_openers,
    "functions": list_functions,
    "classes": list_classes,
}
"""Name of a lint -> what it lists of parsed files."""


def _get_text(statement: ast.stmt) -> str | None:
    value = statement.value if isinstance(statement, ast.Expr) else None
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else None


def _first_line(docstring: str) -> str:
    return docstring.strip().partition("\n")[0]
