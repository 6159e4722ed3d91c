"""Plugins: Python files with a user's components, named on the command line, never in a config."""

from __future__ import annotations

import ast
import hashlib
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from sightline.contract.errors import PluginError
from sightline.contract.registry import REGISTRIES
from sightline.contract.regular_files import read_regular_file

_MODULE_PREFIX = "sightline_plugin_"
_PLUGIN_ATTRIBUTE = "__sightline_plugin__"
"""Attribute of a plugin's module that contains its `Plugin`."""


class Plugin:
    """Plugin file: its path, and its text when it was read; `option` is the command line option that names it."""

    def __init__(self, path: Path, *, option: str = "--plugin") -> None:
        self.path = path
        self.option = option
        try:
            self.text = read_regular_file(path).decode("utf-8-sig")
        except FileNotFoundError:
            raise PluginError(f"{option} {path}: no such file; check the path") from None
        except UnicodeDecodeError as error:
            raise PluginError(f"{option} {path}: is not UTF-8 text (byte {error.start})") from None
        except OSError as error:
            raise PluginError(f"{option} {path}: cannot be read: {error.strerror}") from None
        if path.suffix != ".py":
            raise PluginError(f"{option} {path}: is not a Python file (.py)")
        self.sha256 = hashlib.sha256(self.text.encode()).hexdigest()

    @classmethod
    def from_text(cls, name: str, text: str) -> Plugin:
        """Make the plugin of a text that no file holds yet."""
        plugin = cls.__new__(cls)
        plugin.path, plugin.option, plugin.text = Path(name), "--plugin", text
        plugin.sha256 = hashlib.sha256(text.encode()).hexdigest()
        return plugin

    @property
    def module_name(self) -> str:
        return f"{_MODULE_PREFIX}{self.path.stem}"

    def record(self) -> dict[str, str]:
        """Return path, name and SHA-256, as a run records them."""
        return {"path": str(self.path.resolve()), "name": self.path.name, "sha256": self.sha256}


def load_plugins(paths: Sequence[Path]) -> list[Plugin]:
    """Run plugin files, each once, so that they register their components.

    Raises PluginError with the file's own line for any failure.
    """
    plugins = list({plugin.path.resolve(): plugin for plugin in map(Plugin, paths)}.values())
    defined_here = {plugin.sha256 for plugin in _SESSION_PLUGINS.values()}
    by_name: dict[str, Plugin] = {}
    for plugin in plugins:
        if plugin.path.name in by_name:
            both = f"{by_name[plugin.path.name].path} and {plugin.path}"
            raise PluginError(f"--plugin: {both} have one name, and a run keeps them by name; rename one")
        by_name[plugin.path.name] = plugin
    if plugins:
        for registry in REGISTRIES.values():
            registry.names()  # built-in names first, so that a plugin that reuses one of them is refused
    for plugin in plugins:
        if plugin.sha256 not in defined_here:
            run_file(plugin)
    return plugins


_SESSION_PLUGINS: dict[str, Plugin] = {}
"""Plugins whose components this session defined itself, in cells of a notebook or in its script, by file name."""


def add_session_plugin(plugin: Plugin) -> Plugin:
    """Keep the plugin of components that this session has registered: runs made with it need no file here."""
    _SESSION_PLUGINS[plugin.path.name] = plugin
    return plugin


def find_plugin(builder: Callable[..., Any]) -> Path | None:
    """Return the path of a component's plugin, or None for a built-in one."""
    if not builder.__module__.startswith(_MODULE_PREFIX):
        return None
    return Path(str(sys.modules[builder.__module__].__file__))


def loaded_sha256(builder: Callable[..., Any]) -> dict[str, str]:
    """Return file name and SHA-256 of a component's plugin, as it was run; empty for a built-in one."""
    path = find_plugin(builder)
    return {} if path is None else {path.name: getattr(sys.modules[builder.__module__], _PLUGIN_ATTRIBUTE).sha256}


def loaded_plugins() -> list[Plugin]:
    """List the plugins that this process has run."""
    modules = [module for name, module in [*sys.modules.items()] if name.startswith(_MODULE_PREFIX)]
    return [*(getattr(module, _PLUGIN_ATTRIBUTE) for module in modules), *_SESSION_PLUGINS.values()]


def run_file(plugin: Plugin) -> ModuleType:
    """Run the text that was hashed, even if the file has changed since; return its module.

    Raises PluginError with the file's own line for any failure.
    """
    module = ModuleType(plugin.module_name)
    module.__file__ = str(plugin.path)
    setattr(module, _PLUGIN_ATTRIBUTE, plugin)
    sys.modules[plugin.module_name] = module
    try:
        exec(_compile(plugin), module.__dict__)
    except SyntaxError as error:
        raise PluginError(f"{plugin.option} {error.filename or plugin.path}:{error.lineno}: {error.msg}") from None
    except SystemExit as error:
        raise PluginError(
            f"{plugin.option} {_locate_error(plugin, error)}: ends the program; a plugin only defines parts"
        ) from None
    except Exception as error:
        what = " ".join(str(error).split()) or "no message"
        kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "  # a message of the registry
        raise PluginError(f"{plugin.option} {_locate_error(plugin, error)}: {kind}{what}") from error
    return module


def _compile(plugin: Plugin) -> CodeType:
    """Compile a plugin; its annotations are text, as those of this file, and may name classes that follow further down.

    Where one names a class inside of a function, Python evaluates them all as it comes to them: nobody could later.
    """
    tree = ast.parse(plugin.text, str(plugin.path))
    nodes = [*ast.walk(tree)]
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    local = {node.name for function in functions for node in ast.walk(function) if isinstance(node, ast.ClassDef)}
    written = [getattr(node, name, None) for node in nodes for name in ("annotation", "returns")]
    named = {node.id for part in written if part is not None for node in ast.walk(part) if isinstance(node, ast.Name)}
    flags = 0 if local & named else annotations.compiler_flag
    return compile(tree, str(plugin.path), "exec", flags, dont_inherit=True)


def _locate_error(plugin: Plugin, error: BaseException) -> str:
    """Return the last line of the plugin itself that an error passed through."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(plugin.path)]
    return f"{plugin.path}:{lines[-1]}" if lines else str(plugin.path)


def check_recorded(recorded: Sequence[Mapping[str, str]], loaded: Sequence[Plugin], *, run: Path) -> list[str]:
    """List notes on plugins that changed since a run was made. Raises PluginError for one that is missing."""
    if not _is_record(recorded):
        raise PluginError(
            f"{run}: its environment.json lists plugins in another form than runs write; get the run again"
        )
    by_name = _SESSION_PLUGINS | {plugin.path.name: plugin for plugin in loaded}
    notes = []
    lost = [str(_find_source(entry, run)) for entry in recorded if entry["name"] not in by_name]
    if lost:
        named, again = ("the plugin", "it") if len(lost) == 1 else ("the plugins", "them")
        raise PluginError(
            f"{run}: was made with {named} {', '.join(lost)}; give {again} again: "
            + " ".join(f"--plugin {shlex.quote(path)}" for path in lost)
        )
    for entry in recorded:
        plugin = by_name[entry["name"]]
        if plugin.sha256 != entry["sha256"]:
            copy = run / "plugins" / entry["name"]
            notes.append(f"plugin-changed: {plugin.path} is not what {run} was made with (its copy: {copy})")
    return notes


def _find_source(entry: Mapping[str, str], run: Path) -> Path:
    """Return the file that a plugin was read from, or its copy in the run if that file is missing."""
    path, copy = Path(entry["path"]), run / "plugins" / entry["name"]
    is_moved = os.path.isfile(copy) and not os.path.isfile(path)  # which know names that are too long for a disk
    return copy if is_moved else path


def _is_record(recorded: Any) -> bool:
    """Return True for a list of the names, paths and digests of plugins."""
    keys = ("name", "path", "sha256")
    return isinstance(recorded, list | tuple) and all(
        isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in keys) for entry in recorded
    )
