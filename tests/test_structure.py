"""The tool that counts what the ratchet holds: planted code, and figures worked out by hand."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tools import structure, walk, words

FLOORS = """
ground
low
high
"""
VERB = """
from sightline.low import build, Loader
from sightline.ground import registry
from sightline import ground

def verb(given):
    ground.note(build(given))
    registry.find()
    given.lost()
    Loader.open()
    finish()

def finish():
    verb(1)
"""
LOW = """
from sightline.ground import read

def build(what):
    return read(helper())

def helper(): ...

class Base:
    @classmethod
    def open(cls): read()

class Loader(Base): ...
"""
GROUND = """
class Registry:
    def find(self): ...

registry = Registry()

def read(): ...
def note(text): ...
"""
WORDS = '''"""What a file is."""

LIMIT = 1
"""Of a folder."""


class Box:
    """How it is."""

    def placed(self):
        """Whether it stands."""

    def _size_of(self):
        """Return the size, whatever it is."""

    def place(self):
        """Fromage is no opener."""

    def of_points(self): ...


def _of(): ...
def read(): ...
def changed_twice(): ...
'''
SIGNS = """
x = '''

# text
'''  # a comment
# another

y = [  # and one
    1,

]
"""


def test_a_walk_goes_depth_first_in_source_order_and_each_function_once() -> None:
    package = walk.Package({"high": ast.parse(VERB), "low": ast.parse(LOW), "ground": ast.parse(GROUND)})
    stops = package.walk(["high.gone", "high.verb"])
    assert [f"{stop.module}.{stop.name}" for stop in stops] == [
        "high.verb",
        "low.build",
        "low.helper",
        "ground.read",
        "ground.note",
        "ground.Registry.find",
        "low.Base.open",  # a climb
        "high.finish",  # another
    ]
    assert walk.count_climbs(stops, walk.Floors(FLOORS)) == 2
    assert [stop.name for stop in package.walk(["high.verb"], num_stops=3)] == ["verb", "build", "helper"]
    with pytest.raises(ValueError, match=r"high\.gone: no such function"):
        package.walk(["high.gone"])


def test_rooms_are_the_longest_that_stand_on_a_floor() -> None:
    floors = walk.Floors.from_test('FLOORS = """\ndata.files types\ndata\n"""')
    modules = ("data.files.ply", "data.boxes", "types", "new.one")
    assert [floors.room(module) for module in modules] == ["data.files", "data", "types", "new"]
    assert [floors.floor(module) for module in modules] == [0, 1, 0, 0]


def test_refused_words_are_listed_with_their_lines() -> None:
    trees = {Path("a.py"): ast.parse(WORDS), Path("b.py"): ast.parse("class Box: ...\nclass _Part: ...")}
    listed = {name: sorted((each.line, each.text) for each in lint(trees)) for name, lint in words.LINTS.items()}
    assert listed == {
        "openers": [(1, "What a file is."), (8, "How it is."), (11, "Whether it stands.")],
        "field_openers": [(4, "Of a folder.")],
        "functions": [(10, "placed"), (13, "_size_of"), (19, "of_points"), (22, "_of")],
        "classes": [(1, "Box"), (7, "Box")],
    }


def test_lines_of_code_are_those_with_tokens_on_them() -> None:
    """Against Python's own tokens: this tool's files, and texts of several lines that hold blank lines and signs."""
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    for text in (WORDS, SIGNS, *(path.read_text() for path in (structure.ROOT / "tools").glob("*.py"))):
        tokens = [each for each in tokenize.generate_tokens(io.StringIO(text).readline) if each.type not in layout]
        lines = {line for each in tokens for line in range(each.start[0], each.end[0] + 1)}
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
                lines -= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
        assert structure.count_code_lines(text, tree) == len(lines)


def test_files_that_hang_hooks_are_found() -> None:
    texts = {
        "hook": "layer.register_forward_pre_hook(f)",
        "mode": "class Watch(overrides.TorchFunctionMode): ...",
        "none": "# register_forward_hook(\nnote = 'TorchDispatchMode'\nregistry.register('hook')",
    }
    trees = {Path(name): ast.parse(text) for name, text in texts.items()}
    assert structure.list_hook_files(trees) == [Path("hook"), Path("mode")]


def test_a_rise_needs_the_budget_of_an_issue() -> None:
    start = {"code lines": 1000, "files": 10, "openers": 5}

    def accept(record: dict[str, Any], budget: int = 0, **now: int) -> dict[str, Any]:
        figures = {**start, **{name.replace("_", " "): figure for name, figure in now.items()}}
        return structure.accept(record, figures, issue="42" if budget else None, budget=budget, why="boxes")

    first = accept({})
    assert first == {"figures": start, "features": []}
    assert accept(first, openers=0)["figures"]["openers"] == 0
    refused: list[Callable[[], object]] = [
        lambda: accept(first, code_lines=1001),
        lambda: accept(first, 100, code_lines=1101),
        lambda: accept(first, 100, files=12),
        lambda: accept(first, 100, openers=6),
    ]
    for attempt in refused:
        with pytest.raises(ValueError, match="rose from"):
            attempt()
    grown = accept(first, 150, code_lines=1100, files=12)
    assert grown["features"] == [{"issue": "42", "budget": 150, "why": "boxes", "code lines": 100, "files": 2}]
    assert accept(grown, 150, code_lines=1150, files=12)["features"][1]["code lines"] == 50
    with pytest.raises(ValueError, match="issue 42 may raise it by 150"):
        accept(grown, 150, code_lines=1151, files=12)


def test_what_is_new_is_named() -> None:
    floors = walk.Floors(FLOORS)
    old, new = (
        structure.Source(folder / "sightline", {folder / "sightline" / "a.py": ast.parse(text)}, floors)
        for folder, text in ((Path("/old"), "def kept(): ...\n"), (Path("/new"), "def kept(): ...\ndef of(): ...\n"))
    )
    assert structure.list_new("functions with a forbidden name", old, new) == ["sightline/a.py:2: of"]
    assert structure.list_new("functions with a forbidden name", new, old) == []
    assert structure.list_new("climbs of build", old, new) == []


def test_a_figure_without_a_record_counts_as_a_rise() -> None:
    assert structure.list_rises({"files": 2, "openers": 3}, {"files": 2, "openers": 2, "circles": 0}) == ["circles"]
