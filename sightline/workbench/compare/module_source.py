"""Source text of a module's class and of what it uses, for a script that has torch alone."""

from __future__ import annotations

import ast
import sys
from types import ModuleType

from sightline.contract.errors import RunError
from sightline.contract.plugins import read_module_source

_MAX_DEFINITIONS = 60
_OPERATORS = "sightline.ops"


class NotWritableError(RunError):
    """A layer, or a value of it, that a script with torch alone cannot hold; the message says what."""


class SourceCollector:
    """Collector of classes and functions with all that they use, in an order in which they can be run.

    Imports of torch and of Python's own library stay; what other files define is taken from them. Constructors,
    decorators of classes and annotations are left out: layers are made without them.
    """

    def __init__(self) -> None:
        self._imports: dict[str, str] = {}
        self._definitions: dict[str, str] = {}
        self._owners: dict[str, str] = {}
        self._open: set[str] = set()

    @property
    def names(self) -> set[str]:
        """The names that the text binds."""
        return {*self._imports, *self._definitions}

    @property
    def text(self) -> str:
        """The imports and definitions as Python text."""
        return "\n\n".join(["\n".join(self._imports.values()), *self._definitions.values()])

    def add(self, kind: type) -> str:
        """Add a class and what it uses; return its name. Raises NotWritableError if that cannot be done."""
        if "<locals>" in kind.__qualname__ or "." in kind.__qualname__:
            raise NotWritableError(f"{kind.__name__} is defined inside of {kind.__qualname__.partition('.')[0]}")
        self._add_name(kind.__module__, kind.__name__, needed=True)
        return kind.__name__

    def _add_name(self, module_name: str, name: str, *, needed: bool = False) -> None:
        node = _find_binding(_parse(module_name), name)
        if node is None:
            if needed:
                raise NotWritableError(f"{module_name} does not define {name} at its top level")
            return
        if isinstance(node, ast.Import | ast.ImportFrom):
            self._add_import(module_name, node, name)
            return
        owner = self._owners.setdefault(name, module_name)
        if owner != module_name:
            raise NotWritableError(f"two files, {module_name} and {owner}, define a '{name}'")
        if name in self._definitions or name in self._open:
            return
        if module_name.startswith(_OPERATORS):
            raise NotWritableError(f"it calls {module_name}.{name}, which is no operator of torch")
        if len(self._definitions) >= _MAX_DEFINITIONS:
            raise NotWritableError(f"it uses more than {_MAX_DEFINITIONS} functions and classes of other files")
        node = _Stripped().visit(node)
        self._open.add(name)
        used = [part.id for part in ast.walk(node) if isinstance(part, ast.Name)]
        for other in dict.fromkeys(used):
            self._add_name(module_name, other)
        self._open.discard(name)
        self._definitions[name] = ast.unparse(ast.fix_missing_locations(node))

    def _add_import(self, module_name: str, node: ast.Import | ast.ImportFrom, name: str) -> None:
        alias = next(alias for alias in node.names if _bound_name(alias) == name)
        source = _absolute_name(module_name, node) if isinstance(node, ast.ImportFrom) else alias.name
        root = source.partition(".")[0]
        if root == "torch" or root in sys.stdlib_module_names:
            statement = ast.Import([alias]) if isinstance(node, ast.Import) else ast.ImportFrom(source, [alias], 0)
            if self._imports.setdefault(name, ast.unparse(statement)) != ast.unparse(statement):
                raise NotWritableError(f"'{name}' is imported twice, as other things")
            return
        if isinstance(node, ast.Import) or alias.asname not in (None, alias.name):
            raise NotWritableError(f"{module_name} uses '{name}' of {root}, and a script has torch alone")
        if f"{source}.{alias.name}" in sys.modules or _is_library(sys.modules.get(source)):
            raise NotWritableError(f"{module_name} uses {source}.{alias.name}, and a script has torch alone")
        self._add_name(source, alias.name, needed=True)


class _Stripped(ast.NodeTransformer):
    """Definitions without annotations, constructors and decorators of classes."""

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        body = [item for item in node.body if not (isinstance(item, ast.FunctionDef) and item.name == "__init__")]
        node.body, node.decorator_list = body or [ast.Pass()], []
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        if node.value is None:
            return ast.Pass()
        return ast.Assign([node.target], self.visit(node.value))


def _parse(module_name: str) -> ast.Module:
    module = sys.modules.get(module_name)
    if module is None:
        raise NotWritableError(f"the file of {module_name} is not known")
    try:
        return ast.parse(read_module_source(module))
    except (OSError, TypeError, SyntaxError) as error:
        raise NotWritableError(f"the source of {module_name} cannot be read: {error}") from None


def _find_binding(tree: ast.Module, name: str) -> ast.stmt | None:
    """Find the last statement at the top level of a file that binds a name."""
    for node in reversed(tree.body):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return node
        if isinstance(node, ast.Import | ast.ImportFrom) and any(_bound_name(alias) == name for alias in node.names):
            return node
        targets: list[ast.expr] = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            targets = [node.target]
        if any(isinstance(part, ast.Name) and part.id == name for target in targets for part in ast.walk(target)):
            return node
    return None


def _bound_name(alias: ast.alias) -> str:
    return alias.asname or alias.name.partition(".")[0]


def _absolute_name(module_name: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = module_name.rsplit(".", node.level)[0]
    return f"{package}.{node.module}" if node.module else package


def _is_library(module: ModuleType | None) -> bool:
    """Return True for a module of an installed library other than sightline, or of no file."""
    file = getattr(module, "__file__", None)
    is_ours = getattr(module, "__name__", "").partition(".")[0] == "sightline"
    return file is None or (not is_ours and any(part in file for part in ("site-packages", "dist-packages")))
