"""Writes `imports.txt`: `python -m tests.old_plugins.list_names`. It was run once; it is kept to show how it was made.

A line is `from MODULE import NAME`, `import MODULE`, `MODULE.NAME.attribute` (also a method that a plugin overrides) or
`MODULE.NAME(keyword=)`.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
OWN = ("list_names.py", "__init__.py")
PUBLIC = "arguments draws errors geometry losses.base metrics metrics.base pictures types".split()
"""Modules that docs/reference.md and docs/plugins.md name for plugins: all that is public in them is listed."""
EARLIER = """
from sightline.data.views import Views
from sightline.data.depth_files import read_depth
from sightline.engine.own_frames import OwnFrames
"""
"""Names of pages of before, which hand on what moved."""
NAMES = HERE / "imports.txt"


def get_sources() -> Iterator[str]:
    """The plugins of this folder, and the Python blocks of all pages with the names that their prose has in full."""
    for path in sorted(HERE.rglob("*.py")):
        if path.name not in OWN:
            yield path.read_text()
    yield EARLIER
    for module in (f"sightline.{room}" for room in PUBLIC):
        yield "\n".join(f"from {module} import {name}" for name in importlib.import_module(module).__all__)
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = page.read_text()
        for match in re.finditer(r"^ *```python\n(.*?)^ *```", text, flags=re.DOTALL | re.MULTILINE):
            yield textwrap.dedent(match[1])
        prose = re.findall(r"`(sightline(?:\.\w+)+)", text)
        yield "\n".join(["import sightline", *prose])


def list_keywords() -> Iterator[str]:
    """A line for each argument of the functions and classes of public modules that may be given by its name."""
    for room in PUBLIC:
        module = importlib.import_module(f"sightline.{room}")
        for name in module.__all__:
            function = getattr(module, name)
            is_own = inspect.isclass(function) and function.__module__.startswith("sightline")
            if is_own or inspect.isfunction(function):
                with contextlib.suppress(ValueError):
                    taken = inspect.signature(function).parameters.values()
                    by_name = [each for each in taken if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
                    yield from (f"sightline.{room}.{name}({each.name}=)" for each in by_name)


def list_names(source: str) -> Iterator[str]:
    """The lines of one program."""
    tree = ast.parse(source)
    bound: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "sightline":
            for alias in node.names:
                bound[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                yield f"from {node.module} import {alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "sightline":
                    bound["sightline"] = "sightline"
                    yield f"import {alias.name}"
    for node in ast.walk(tree):
        yield from _list_uses(node, bound)


def _list_uses(node: ast.AST, bound: dict[str, str]) -> Iterator[str]:
    if isinstance(node, ast.Attribute) and (name := _get_dotted(node, bound)):
        yield name
    elif isinstance(node, ast.Call) and (name := _get_dotted(node.func, bound)):
        yield from (f"{name}({keyword.arg}=)" for keyword in node.keywords if keyword.arg)
    elif isinstance(node, ast.ClassDef):
        for base in node.bases:
            if name := _get_dotted(base.value if isinstance(base, ast.Subscript) else base, bound):
                yield from (f"{name}.{member}" for member in _list_members(node))
    elif isinstance(node, ast.FunctionDef):
        for argument in [*node.args.args, *node.args.kwonlyargs]:
            if argument.annotation is not None and (name := _get_dotted(argument.annotation, bound)):
                for use in ast.walk(node):
                    if isinstance(use, ast.Attribute) and getattr(use.value, "id", None) == argument.arg:
                        yield f"{name}.{use.attr}"


def _list_members(node: ast.ClassDef) -> Iterator[str]:
    for member in node.body:
        if isinstance(member, ast.FunctionDef):
            yield member.name
        elif isinstance(member, ast.Assign):
            yield from (target.id for target in member.targets if isinstance(target, ast.Name))


def _get_dotted(node: ast.AST, bound: dict[str, str]) -> str:
    """`registry.data` as `sightline.registry.data`; "" for what is not of the package."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.insert(0, node.attr)
        node = node.value
    start = bound.get(node.id, "") if isinstance(node, ast.Name) else ""
    return ".".join([start, *parts]) if start else ""


def find(line: str) -> Any:
    """What a line names. Raises ImportError, AttributeError or TypeError where it is not there."""
    if line.startswith("import "):
        return importlib.import_module(line.split()[1])
    if line.startswith("from "):
        _, module, _, name = line.split()
        return _walk(f"{module}.{name}")
    if line.endswith("=)"):
        name, _, keyword = line.removesuffix("=)").partition("(")
        function = _walk(name)
        taken = inspect.signature(function).parameters
        makers = (function, getattr(function, "__init__", None), getattr(function, "__new__", None))
        if any(keyword in getattr(maker, "old_keywords", ()) for maker in makers):
            return keyword  # an old name that is still taken
        if keyword not in taken and all(each.kind is not each.VAR_KEYWORD for each in taken.values()):
            raise TypeError(f"{name} takes no '{keyword}'")
        return keyword
    return _walk(line)


def _walk(dotted: str) -> Any:
    """A module, or what is reached from one by attributes, of which the last may be a field of a class."""
    parts = dotted.split(".")
    found: Any = importlib.import_module(parts[0])
    for count, part in enumerate(parts[1:], start=2):
        if not hasattr(found, part) and inspect.ismodule(found):
            importlib.import_module(".".join(parts[:count]))
        if not hasattr(found, part) and part in _list_fields(found):
            return part
        found = getattr(found, part)
    return found


def _list_fields(kind: Any) -> set[str]:
    """The fields that a class states, and what it or a base sets in its constructor."""
    fields = {each.name for each in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
    for part in getattr(kind, "__mro__", ()):
        fields |= set(inspect.get_annotations(part))
        if part.__module__.startswith("sightline") and not dataclasses.is_dataclass(part) and "__init__" in vars(part):
            fields |= set(re.findall(r"self\.(\w+)\b[^=\n]*=", inspect.getsource(part.__init__)))
    return fields


def _is_there(line: str) -> bool:
    try:
        find(line)
    except (ImportError, AttributeError, TypeError, ValueError):
        return False
    return True


if __name__ == "__main__":
    lines = sorted({*list_keywords(), *(line for source in get_sources() for line in list_names(source))})
    NAMES.write_text("".join(f"{line}\n" for line in lines if _is_there(line)))
    print("\n".join(line for line in lines if not _is_there(line)))  # noqa: T201 - members of the plugins' own
