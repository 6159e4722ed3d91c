"""The house rules that a program can check: imports point downward, files and functions stay small."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "sightline"
FILES = sorted(PACKAGE.rglob("*.py"))

# Rooms by floor, lowest first; a room may import from floors below it and from itself.
FLOORS = [
    {"errors", "types", "arguments", "schema", "draws", "registry", "binding"}
    | {"pictures", "plugins", "config", "compiled", "collection", "chart", "nests", "plain_files"},
    {"geometry"},
    {"layers", "transforms"},
    {"losses", "metrics", "models", "data"},
    {"tasks"},
    {"engine"},
    {"checks", "compare", "compress", "describe", "bench", "view", "probe"},
    {"fitting"},  # fits samples, draws curves and tells findings: it stands on checks, describe and view
    {"verbs"},
    {"cli"},
    {"__main__", "__init__"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

TORCH_LOAD = r"(?<!safetensors\.)torch\.load\("
"""Reads pickles, and a pickle is a program: `models/published_files.py` alone may, with `weights_only=True`."""
FORBIDDEN = (
    r"\bimport pickle",
    r"yaml\.load\(",
    r"(?m)^\s*(import|from) (torchvision|timm)\b",
    r"\.cuda\(\)",
    r"\.to\(.cuda",
    TORCH_LOAD,
    r"\b(eval|exec)\(\"",
)
MAX_FILE_LINES = 500
MAX_BODY_LINES = 60


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> list[tuple[int, str]]:
    """Line and room of everything that a file imports from the package, also inside functions."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sightline":
            parts = (node.module or "").split(".")
            rooms = [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
            found += [(node.lineno, room) for room in rooms]
        elif isinstance(node, ast.Import):
            parts_of = [alias.name.split(".") for alias in node.names]
            found += [(node.lineno, parts[1]) for parts in parts_of if parts[0] == "sightline" and len(parts) > 1]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downward(path: Path) -> None:
    room = room_of(path)
    assert room in FLOOR_OF, f"{path}: the room '{room}' has no floor; say in tests/test_layout.py where it belongs"
    floor = FLOOR_OF[room]
    upward = [
        f"{path.name}:{line} imports '{other}'"
        for line, other in imports_of(path)
        if other != room and (FLOOR_OF[other] > floor or FLOOR_OF[other] == floor > 0)
    ]
    if FLOOR_OF[room] == 0:
        upward = [f"{path.name}:{line} imports '{o}'" for line, o in imports_of(path) if FLOOR_OF[o] > 0]
    assert not upward


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            assert (node.end_lineno or 0) - first.lineno < MAX_BODY_LINES, f"{path.name}: {node.name}"


def test_only_one_module_knows_processes() -> None:
    """`torch.distributed` belongs to engine/distributed.py; the launcher drives torch's agent from the parent."""
    allowed = {"engine/distributed.py", "engine/launch.py"}
    knowing = {str(p.relative_to(PACKAGE)) for p in FILES if "torch.distributed" in p.read_text()}
    assert knowing <= allowed | {"layers/batch_norm.py"}  # which only says in words that it does not import it


def test_only_one_module_opens_hdf5_files() -> None:
    """HDF5 makes up zeros and reads other files on request: data/hdf5_files.py alone opens it, and refuses both."""
    importing = {str(p.relative_to(PACKAGE)) for p in FILES if re.search(r"(import|from) h5py", p.read_text())}
    assert importing == {"data/hdf5_files.py"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_forbidden(path: Path) -> None:
    """No pickle, no unsafe YAML, no torchvision or timm, no device moved to by name."""
    text = path.read_text()
    for forbidden in FORBIDDEN:
        if forbidden != TORCH_LOAD or path != PACKAGE / "models" / "published_files.py":
            assert not re.search(forbidden, text), forbidden


def test_published_weights_are_read_without_running_them() -> None:
    """The converter is the one place for third-party pickles, and it never lets torch unpickle them."""
    text = (PACKAGE / "models" / "published_files.py").read_text()
    calls = re.findall(r"torch\.load\([^)]*\)", text)
    assert len(calls) == 1
    assert "weights_only=True" in calls[0]
