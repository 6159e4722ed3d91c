"""Places in the source that can be changed while a program runs: refusals, and constants of the doctor.

A refusal is known by its function and words, `doctor/evidence/places.py orders: no maps of images as outputs`, and a
constant by its name and value, `doctor/sections.py _MAX_SECTIONS = 4`: no name has a line number. `install` recompiles
the functions that have sites; each then asks `SWITCH` whether it refuses, or what the constant's value is.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import gc
import importlib
import types
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

PACKAGE = ROOT / "sightline"
JUDGING = ("doctor", "workbench/check")
"""Rooms whose constants are sites."""
_RAISED, _ASKED, _VALUED = ("NotApplicableError", "LeftOutError"), "__refuses__", "__value__"


@dataclass
class Switch:
    """The site that is `changed`, if any, and who is told of each site that is reached."""

    changed: str = ""
    factor: float = 1.0
    note: Callable[[str], None] = lambda site: None

    def refuses(self, site: str) -> bool:
        """Return True for a refusal that stands; called by each that is reached."""
        self.note(site)
        return site != self.changed

    def value(self, site: str, value: Any) -> Any:
        """Return the value of a constant, times the factor where it is changed; called where it is read."""
        self.note(site)
        return value if site != self.changed else type(value)(value * self.factor)


SWITCH = Switch()


class _Marker(ast.NodeTransformer):
    """Puts reads of `constants`, or refusals where there are none, behind a question; lists refusals by name."""

    def __init__(self, file: str, constants: Mapping[str, str] | None) -> None:
        self.file, self.names, self.constants = file, Counter[str](), constants
        self._within: list[str] = []
        self._is_handler = False

    def _enter(self, node: ast.FunctionDef | ast.ClassDef) -> ast.AST:
        was_handler, self._is_handler = self._is_handler, False
        self._within.append(node.name)
        node.body = [self.visit(each) for each in node.body]  # no defaults, which are read once
        self._within.pop()
        self._is_handler = was_handler
        return node

    visit_FunctionDef = visit_ClassDef = _enter  # noqa: N815

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> ast.AST:
        was_handler, self._is_handler = self._is_handler, True
        self.generic_visit(node)
        self._is_handler = was_handler
        return node

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        """An error that was caught goes on where its refusal is removed; else what follows runs."""
        made = node.exc
        is_refusal = isinstance(made, ast.Call) and getattr(made.func, "id", "") in _RAISED
        if not isinstance(made, ast.Call) or not is_refusal or self.constants is not None:
            return self.generic_visit(node)
        name = f"{self.file} {'.'.join(self._within)}: {_describe(made.args[0])}"
        self.names[name] += 1
        name += f" ({self.names[name]})" * (self.names[name] > 1)
        question = ast.Call(ast.Name(_ASKED, ast.Load()), [ast.Constant(name)], [])
        asked = ast.If(question, [node], [ast.Raise()] if self._is_handler else [])
        return ast.fix_missing_locations(ast.copy_location(asked, node))

    def visit_Name(self, node: ast.Name) -> ast.AST:
        """Of a constant, within a function."""
        site = (self.constants or {}).get(node.id)
        if site is None or not self._within or not isinstance(node.ctx, ast.Load):
            return node
        asked = ast.Call(ast.Name(_VALUED, ast.Load()), [ast.Constant(site), node], [])
        return ast.fix_missing_locations(ast.copy_location(asked, node))


def _describe(words: ast.expr) -> str:
    """Return the words of a refusal; parts that are computed stand in braces."""
    if isinstance(words, ast.Constant):
        return str(words.value)
    if isinstance(words, ast.JoinedStr):
        return "".join(_describe(part) for part in words.values)
    return f"{{{ast.unparse(words.value if isinstance(words, ast.FormattedValue) else words)}}}"


@cache
def _mark(path: Path, kind: str) -> tuple[ast.Module, tuple[str, ...]]:
    """Return the marked tree of a file, and the names of its refusals."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    marker = _Marker(str(path.relative_to(PACKAGE)), None if kind == "refusals" else _find_constants(path, tree))
    marker.visit(tree)
    numbered = (
        f"{name} ({place})" if place else name
        for name, count in marker.names.items()
        for place in (0, *range(2, count + 1))
    )
    return tree, tuple(numbered)


def _find_constants(path: Path, tree: ast.Module) -> dict[str, str]:
    """Return the sites of the constants that a file has, or imports, by their names there."""
    found = _read_constants(path)
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sightline."):
            source = ROOT / f"{(node.module or '').replace('.', '/')}.py"
            known = _read_constants(source) if source.exists() else {}
            found |= {each.asname or each.name: known[each.name] for each in node.names if each.name in known}
    return found


@cache
def _read_constants(path: Path) -> dict[str, str]:
    """Return the sites of a file's constants by name: numbers that stand outside of functions, but 0."""
    found = {}
    file = str(path.relative_to(PACKAGE))
    for node in ast.parse(path.read_text(encoding="utf-8")).body if file.startswith(JUDGING) else ():
        for target, value in _list_pairs(node):
            with contextlib.suppress(ValueError, TypeError, SyntaxError):
                number = ast.literal_eval(value)
                if isinstance(number, int | float) and not isinstance(number, bool) and number:
                    found[ast.unparse(target)] = f"{file} {ast.unparse(target)} = {ast.unparse(value)}"
    return found


def _list_pairs(node: ast.stmt) -> Iterator[tuple[ast.expr, ast.expr]]:
    """List the names that a statement sets, each with its value."""
    if isinstance(node, ast.AnnAssign) and node.value is not None:
        yield node.target, node.value
    elif isinstance(node, ast.Assign):
        target, value = node.targets[0], node.value
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            yield from zip(target.elts, value.elts, strict=True)
        else:
            yield target, value


@cache
def _list_files(kind: str) -> tuple[Path, ...]:
    """List the files that have sites of a kind."""
    files = sorted(PACKAGE.rglob("*.py"))
    if kind == "refusals":
        texts = {path: path.read_text(encoding="utf-8") for path in files}
        return tuple(path for path, text in texts.items() if any(f"raise {name}(" in text for name in _RAISED))
    return tuple(path for path in files if str(path.relative_to(PACKAGE)).startswith(JUDGING))


def list_sites(kind: str = "refusals") -> list[str]:
    """List the names of all sites of a kind, `refusals` or `constants`, in the source of the package."""
    if kind == "refusals":
        return [name for path in _list_files(kind) for name in _mark(path, kind)[1]]
    return [name for path in _list_files(kind) for name in _read_constants(path).values()]


def install(kind: str = "refusals") -> None:
    """Let each site of the package ask the switch, in all functions that there are; for a process of its own."""
    vars(builtins).update({_ASKED: SWITCH.refuses, _VALUED: SWITCH.value})
    codes: dict[tuple[str, str], types.CodeType] = {}
    for path in _list_files(kind):
        importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
        code = compile(_mark(path, kind)[0], str(path), "exec")
        codes |= {(str(path), each.co_qualname): each for each in _list_codes(code)}
    gc.unfreeze()  # or they are not listed
    for function in [each for each in gc.get_objects() if type(each) is types.FunctionType]:
        own = function.__code__
        marked = codes.get((own.co_filename, own.co_qualname))
        if marked is not None and marked.co_firstlineno == own.co_firstlineno:
            function.__code__ = marked


def _list_codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """List the code of all functions, nested ones too."""
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            yield each
            yield from _list_codes(each)


def read_table(path: Path) -> dict[str, dict[str, Any]]:
    """Read a table of sites: a line each, with tabs between its columns, whose names stand in the first."""
    head, *lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else [""]
    rows = [dict(zip(head.split("\t"), line.split("\t"), strict=True)) for line in lines]
    return {row["site"]: row for row in rows}
