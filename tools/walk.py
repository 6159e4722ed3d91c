"""The walk of a verb: the order in which a reader who follows every call meets the package's functions.

A walk starts at a verb's function and follows calls in source order, depth first, each function once, `NUM_STOPS` at
most. A climb is a step from one stop to the next, to a room on a higher floor.

A call leads to a function of the module, to one that it imports, to one of an imported module, to a class's own method
(`RunFiles.open()`), and to a method of what a module makes when it is imported (a registry). Methods of `self`, of
parameters and of locals lead nowhere, and neither does the creation of an object.

house.md states 40 / 18 / 34 climbs for evaluate / predict / build at 0a89a1b0, by a walker that was not kept. These
rules were picked after the fact, out of some 8,800 combinations, as the nearest in source order and depth first; they
give 40 / 16 / 25. None gave all three figures, so that of `build` and its aim in house.md cannot be compared.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from tools.words import list_nodes

STARTS = {
    "evaluate": ("verbs.evaluate.evaluate",),
    "predict": ("verbs.predict.predict",),
    "build": ("engine.build.build",),
}
"""Name of a walk -> the function it starts from. A renamed one adds its new name; the first that exists counts."""
NUM_STOPS = 400


class Floors:
    """Rooms on floors: a line a floor, from the ground up, with the dotted names of its rooms."""

    def __init__(self, text: str) -> None:
        self._floors = {room: floor for floor, line in enumerate(text.strip().splitlines()) for room in line.split()}

    @classmethod
    def from_test(cls, source: str) -> Floors:
        """Read `FLOORS` of a tests/test_layout.py, so that every commit is measured on its own floors."""
        for node in ast.parse(source).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FLOORS":
                return cls(ast.literal_eval(node.value))
        raise ValueError("tests/test_layout.py assigns no FLOORS")

    def room(self, module: str) -> str:
        """Return the room of a module: its longest beginning that stands on a floor."""
        parts = module.split(".")
        prefixes = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
        return next((prefix for prefix in prefixes if prefix in self._floors), parts[0])

    def floor(self, module: str) -> int:
        """Return the floor of a module; the ground for the package's own file and for rooms without one."""
        return self._floors.get(self.room(module), 0)


class Function(NamedTuple):
    """One stop: a function, or a method with its class."""

    module: str
    name: str
    node: ast.FunctionDef | ast.AsyncFunctionDef


class Class(NamedTuple):
    module: str
    node: ast.ClassDef


class Module(NamedTuple):
    name: str


Meaning = Function | Class | Module | None
"""Meaning of a name. An instance that a module makes stands for its class."""


@dataclass
class _Scope:
    """Names of one module: what it defines, imports, and makes when it is imported."""

    defined: dict[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef] = field(default_factory=dict)
    imported: dict[str, str] = field(default_factory=dict)
    made: dict[str, ast.expr] = field(default_factory=dict)


class Package:
    """The modules of a package by dotted name (below the package), with the meaning of their names."""

    def __init__(self, trees: Mapping[str, ast.Module], name: str = "sightline") -> None:
        self._name = name
        self._scopes = {module: self._scope(tree) for module, tree in trees.items()}

    def walk(self, starts: Sequence[str], num_stops: int = NUM_STOPS) -> list[Function]:
        """List the stops of the walk from the first of `starts` that exists, e.g. `engine.build.build`."""
        meanings = (self._lookup(*_split(start)) for start in starts)
        first = next((meaning for meaning in meanings if isinstance(meaning, Function)), None)
        if first is None:
            raise ValueError(f"{', '.join(starts)}: no such function; add its new name to STARTS in tools/walk.py")
        stops: dict[tuple[str, str], Function] = {}
        waiting = [first]
        while waiting and len(stops) < num_stops:
            function = waiting.pop()
            if (function.module, function.name) not in stops:
                stops[function.module, function.name] = function
                waiting += reversed(self._calls(function))
        return list(stops.values())

    def _scope(self, tree: ast.Module) -> _Scope:
        scope = _Scope()
        for node in list_nodes(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == self._name:
                scope.imported |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                scope.defined[node.name] = node
            elif isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Call):
                target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                scope.made |= {target.id: node.value.func} if isinstance(target, ast.Name) else {}
        return scope

    def _lookup(self, module: str, name: str) -> Meaning:
        scope = self._scopes.get(module, _Scope())
        node = scope.defined.get(name)
        if isinstance(node, ast.ClassDef):
            return Class(module, node)
        if node is not None:
            return Function(module, name, node)
        if name in scope.imported:
            path = scope.imported[name].partition(".")[2]
            return Module(path) if path in self._scopes else self._lookup(*_split(path))
        if name in scope.made:
            maker = scope.made[name]
            meaning = self._resolve(module, maker.value if isinstance(maker, ast.Subscript) else maker)
            return meaning if isinstance(meaning, Class) else None
        return None

    def _resolve(self, module: str, node: ast.expr, hidden: frozenset[str] = frozenset()) -> Meaning:
        """Return what a dotted name means in a module; `hidden` are names that parameters take."""
        if isinstance(node, ast.Name):
            return None if node.id in hidden else self._lookup(module, node.id)
        if not isinstance(node, ast.Attribute):
            return None
        match self._resolve(module, node.value, hidden):
            case Module(name):
                path = f"{name}.{node.attr}"
                return Module(path) if path in self._scopes else self._lookup(name, node.attr)
            case Class() as owner:
                return self._method(owner, node.attr)
        return None

    def _method(self, owner: Class, name: str, seen: tuple[str, ...] = ()) -> Function | None:
        """Return a method of a class, or of the bases that the package defines."""
        for node in owner.node.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
                return Function(owner.module, f"{owner.node.name}.{name}", node)
        for base in owner.node.bases:
            meaning = self._resolve(owner.module, base.value if isinstance(base, ast.Subscript) else base)
            if isinstance(meaning, Class) and meaning.node.name not in seen:
                method = self._method(meaning, name, (*seen, owner.node.name))
                if method is not None:
                    return method
        return None

    def _calls(self, function: Function) -> list[Function]:
        """List what a function calls, in source order; what is written in the brackets of a call comes before it."""
        arguments = function.node.args
        hidden = frozenset(each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs))
        calls = [node for statement in function.node.body for node in ast.walk(statement) if isinstance(node, ast.Call)]
        calls.sort(key=lambda call: (call.end_lineno or 0, call.end_col_offset or 0))
        meanings = (self._resolve(function.module, call.func, hidden) for call in calls)
        return [meaning for meaning in meanings if isinstance(meaning, Function)]


def count_climbs(stops: Sequence[Function], floors: Floors) -> int:
    """Count the steps to a higher floor."""
    heights = [floors.floor(stop.module) for stop in stops]
    return sum(after > before for before, after in pairwise(heights))


def _split(path: str) -> tuple[str, str]:
    module, _, name = path.rpartition(".")
    return module, name
