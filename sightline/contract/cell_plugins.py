"""Plugin file made of components that were registered in notebook cells, or in the script that Python runs."""

from __future__ import annotations

import ast
import builtins
import linecache
import os
import symtable
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from sightline.contract.errors import PluginError
from sightline.contract.plugins import Plugin, add_session_plugin, kept_modules
from sightline.contract.registry import REGISTRIES

_MAIN = "__main__"
_ADVICE = "write the cell to a file by %%writefile my_parts.py, and give plugins=['my_parts.py']"
_Statement = ast.stmt


def record_cells(used_names: Collection[str]) -> list[Plugin]:
    """Make the plugin of this session's registered components that have one of these names; [] if there are none.

    It holds their source, and the imports, constants, functions and classes of `__main__` that they use. Raises
    PluginError for a component that cannot be written to a file so that a later session can load it.
    """
    components = {
        name: builder
        for registry in REGISTRIES.values()
        for name, builder in registry.builders_of_module(_MAIN)
        if name in used_names
    }
    if not components:
        return []
    main = sys.modules[_MAIN]
    sources = _Sources(main, next(iter(components.values())))
    roots = {name: builder.__qualname__ for name, builder in components.items()}
    text = '"""Components that a notebook or a script registered, as a run recorded them."""\n\n'
    text += "\n".join(_collect(main, sources, roots)) + "\n"
    file = getattr(main, "__file__", None)
    return [add_session_plugin(Plugin.from_text(Path(file).name if file else "notebook.py", text))]


def describe_modules(used_names: Collection[str]) -> list[str]:
    """Describe the components of these names that imported modules registered: a run keeps no copy of those."""
    recorded_prefixes = ("sightline.", "sightline_plugin_", _MAIN, *kept_modules())
    return [
        f"{registry.noun} '{name}' is from the module {builder.__module__}, of which the run keeps no copy: import it "
        "before the run is loaded, or give its file as a plugin"
        for registry in REGISTRIES.values()
        for name, builder in registry.builders_outside(recorded_prefixes)
        if name in used_names
    ]


def _collect(main: ModuleType, sources: _Sources, roots: dict[str, str]) -> list[str]:
    """Return the statements that define the roots and every name that they use, each after those that it uses."""
    statements: dict[str, str] = {}
    imports: dict[str, None] = {}

    def add(name: str, component: str, chain: tuple[str, ...]) -> None:
        if name in statements or name in chain:
            return
        definition = sources.find(name)
        value = getattr(main, name, None)
        if isinstance(definition, ast.Import | ast.ImportFrom):
            imports[ast.unparse(definition)] = None
        elif isinstance(definition, ast.ClassDef | ast.FunctionDef):
            for other in _used_names(sources.text(definition)):
                if hasattr(main, other) and not hasattr(builtins, other):
                    add(other, component, (*chain, name))
            statements[name] = sources.text(definition)
        elif _is_plain(value):
            statements[name] = f"{name} = {value!r}"
        else:
            kind = type(value).__name__
            raise PluginError(
                f"'{component}' is defined in a notebook cell or script and uses '{name}' ({kind}), which a run cannot "
                f"record; {_ADVICE}"
            )

    for component, name in roots.items():
        if "." in name:
            raise PluginError(f"'{component}' is defined inside {name.partition('.')[0]}; {_ADVICE}")
        add(name, component, ())
    return [*sorted(imports, key=lambda line: not line.startswith("from __future__")), "", *statements.values()]


class _Sources:
    """Sources of `__main__`: the cells of a notebook, the newest first, or the text of a script."""

    def __init__(self, main: ModuleType, builder: Any) -> None:
        file = getattr(main, "__file__", None) or _code_file(builder)
        names: Sequence[str] = [file] if file else []
        if file and getattr(main, "__file__", None) is None:
            cells = [name for name in linecache.cache if os.path.dirname(name) == os.path.dirname(file)]
            names = [*reversed(cells)]
        self._definitions: dict[str, tuple[_Statement, str]] = {}
        for name in names:
            text = "".join(linecache.getlines(name))
            for statement in _parse(text):
                for bound in _bound_names(statement):
                    self._definitions.setdefault(bound, (statement, text))

    def find(self, name: str) -> _Statement | None:
        """Return the statement that defines a name, or None."""
        return self._definitions[name][0] if name in self._definitions else None

    def text(self, statement: ast.ClassDef | ast.FunctionDef) -> str:
        """Return the lines of a definition, with its decorators."""
        lines = self._definitions[statement.name][1].split("\n")  # Python's lines: a form feed ends none
        first = min([statement.lineno, *(decorator.lineno for decorator in statement.decorator_list)])
        return "\n" + "\n".join(lines[first - 1 : statement.end_lineno]) + "\n"


def _parse(text: str) -> list[_Statement]:
    """Parse a cell, its last definition of a name first; a cell that is not Python has no statements."""
    try:
        return ast.parse(text).body[::-1]
    except SyntaxError:
        return []


def _bound_names(statement: _Statement) -> Iterator[str]:
    if isinstance(statement, ast.ClassDef | ast.FunctionDef):
        yield statement.name
    elif isinstance(statement, ast.Import | ast.ImportFrom):
        yield from (alias.asname or alias.name.partition(".")[0] for alias in statement.names)


def _used_names(text: str) -> list[str]:
    """List the global names that a definition uses; variables of its functions are not among them."""
    names: set[str] = set()
    tables = [symtable.symtable(text, "cell", "exec")]
    while tables:
        table = tables.pop()
        is_module = table.get_type() == "module"
        used = (s for s in table.get_symbols() if s.is_referenced() and (is_module or s.is_global()))
        names.update(symbol.get_name() for symbol in used)
        tables += table.get_children()
    return sorted(names)


def _is_plain(value: Any) -> bool:
    """Return True for a constant whose text is its value."""
    try:
        return bool(ast.literal_eval(repr(value)) == value)
    except (SyntaxError, ValueError, TypeError):
        return False


def _code_file(builder: Any) -> str | None:
    """Return the file name of a function's code, or of the first method of a class."""
    code = getattr(builder, "__code__", None)
    methods = (getattr(member, "__code__", None) for member in vars(builder).values()) if code is None else ()
    code = code or next(filter(None, methods), None)
    return None if code is None else str(code.co_filename)
