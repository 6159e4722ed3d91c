"""Plugins: Python files with a user's components, named on the command line, never in a config."""

from __future__ import annotations

import ast
import hashlib
import inspect
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from sightline.contract.errors import PluginError
from sightline.contract.own_parts import PLUGIN_MODULES
from sightline.contract.registry import REGISTRIES
from sightline.contract.regular_files import read_regular_file
from sightline.contract.schema import suggest

_PLUGIN_ATTRIBUTE = "__sightline_plugin__"
"""Attribute of a plugin's module that contains its `Plugin`."""
_SOURCE_ATTRIBUTE = "__sightline_source__"
"""Attribute of a module beside a plugin that contains the bytes of its file when it was first seen."""
_PACKAGE = f"{Path(__file__).resolve().parents[1]}{os.sep}"
_LIBRARIES = ("site-packages", "dist-packages")


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
        """The name under which the plugin is imported."""
        return f"{PLUGIN_MODULES}{self.path.stem}"

    @property
    def folder(self) -> Path:
        """The folder from which the plugin imports modules of its own."""
        return self.path.resolve().parent

    def modules(self) -> dict[str, bytes]:
        """Return the modules that this process has imported from the plugin's folder, with their bytes.

        Each is named by the path that its import follows (`lab/nets.py` for `lab.nets`). Installed packages, which may
        be in a virtual environment below the folder, are left out.
        """
        folders = (os.path.abspath(self.path.parent), str(self.folder))
        return {
            _module_path(name, module): _read_source(module)
            for name, module in [*sys.modules.items()]
            if name != "__main__" and not name.startswith(PLUGIN_MODULES) and _is_own(module, folders)
        }

    def files(self) -> dict[str, bytes]:
        """Return the plugin's own text and its modules, as a run keeps them in `plugins/`."""
        return self.modules() | {self.path.name: self.text.encode()}

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of each of its `files`."""
        return {name: hashlib.sha256(content).hexdigest() for name, content in self.files().items()}

    def record(self) -> dict[str, Any]:
        """Return path, name and SHA-256, and the SHA-256 of its modules, as a run records them."""
        modules = self.digests()
        del modules[self.path.name]
        return {"path": str(self.path.resolve()), "name": self.path.name, "sha256": self.sha256, "modules": modules}

    def find_module(self, name: str) -> Path:
        """Return the file of a module, by its name in `modules`, whether or not it is imported, or exists."""
        roots = [self.folder, *self.folder.parents][: name.count("/") + 1]
        return next((root / name for root in roots if os.path.isfile(root / name)), self.folder / name)

    def list_changes(self, record: Mapping[str, Any]) -> list[tuple[str, Path]]:
        """List what differs from a record: name and file of the plugin and of each of its recorded modules."""
        changes = [] if self.sha256 == record["sha256"] else [(self.path.name, self.path)]
        now = self.digests()
        for name, digest in record["modules"].items():
            path = self.find_module(name)
            if name not in now and os.path.isfile(path):  # imported later, as a function of the plugin runs
                now[name] = hashlib.sha256(read_regular_file(path)).hexdigest()
            changes += [] if now.get(name) == digest else [(name, path)]
        return changes


def _is_own(module: ModuleType, folders: Sequence[str]) -> bool:
    """Return True for a module whose Python file is below one of `folders`, and not in an installed package."""
    file = getattr(module, "__dict__", {}).get("__file__")
    if not isinstance(file, str) or not file.endswith(".py") or file.startswith(_PACKAGE):
        return False
    for folder in folders:
        if file.startswith(f"{folder}{os.sep}"):
            names = (os.path.basename(folder), *file[len(folder) :].split(os.sep))
            is_environment = sys.prefix.startswith(f"{folder}{os.sep}") and file.startswith(f"{sys.prefix}{os.sep}")
            return not is_environment and not any(name in _LIBRARIES for name in names)
    return False


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
    loaded_before: dict[str, tuple[Plugin, bytes]] = {}
    for plugin in plugins:
        if plugin.sha256 not in defined_here:
            _forget_modules_of_other_folders(plugin)
            run_file(plugin)
        for name, content in plugin.files().items():
            other, other_content = loaded_before.setdefault(name, (plugin, content))
            if content != other_content:
                both = f"{other.find_module(name)} and {plugin.find_module(name)}"
                raise PluginError(f"--plugin: {both} have one name, and a run keeps them by name; rename one")
    return plugins


def _forget_modules_of_other_folders(plugin: Plugin) -> None:
    """Let a plugin import its own modules again where one before it has imported some of the same name."""
    for name, module in [*sys.modules.items()]:
        if _SOURCE_ATTRIBUTE not in getattr(module, "__dict__", {}):
            continue
        path_in_folder = plugin.find_module(_module_path(name, module))
        if os.path.isfile(path_in_folder) and os.path.realpath(str(module.__file__)) != str(path_in_folder):
            del sys.modules[name]
            parent, _, child = name.rpartition(".")
            vars(sys.modules.get(parent, module)).pop(child, None)  # else `from parent import child` finds it there


def _module_path(name: str, module: ModuleType) -> str:
    """Return the path that the import of a module follows, with `/` (`lab/__init__.py` for a package `lab`)."""
    ending = "/__init__.py" if os.path.basename(str(module.__file__)) == "__init__.py" else ".py"
    return name.replace(".", "/") + ending


def _read_source(module: ModuleType) -> bytes:
    """Return the bytes of a module's file, as they were when this was first called."""
    if _SOURCE_ATTRIBUTE not in vars(module):
        setattr(module, _SOURCE_ATTRIBUTE, read_regular_file(Path(str(module.__file__))))
    source: bytes = getattr(module, _SOURCE_ATTRIBUTE)
    return source


_SESSION_PLUGINS: dict[str, Plugin] = {}
"""Plugins whose components this session defined itself, in cells of a notebook or in its script, by file name."""


def add_session_plugin(plugin: Plugin) -> Plugin:
    """Keep the plugin of components that this session has registered: runs made with it need no file here."""
    _SESSION_PLUGINS[plugin.path.name] = plugin
    return plugin


def find_plugin(builder: Callable[..., Any]) -> Path | None:
    """Return the path of a component's plugin, or None for a built-in one."""
    if not builder.__module__.startswith(PLUGIN_MODULES):
        return None
    return Path(str(sys.modules[builder.__module__].__file__))


def kept_modules() -> tuple[str, ...]:
    """Return the names of the modules that runs keep beside the plugins that imported them."""
    return tuple(
        name for name, module in [*sys.modules.items()] if _SOURCE_ATTRIBUTE in getattr(module, "__dict__", {})
    )


def loaded_plugins() -> list[Plugin]:
    """List the plugins that this process has run."""
    modules = [module for name, module in [*sys.modules.items()] if name.startswith(PLUGIN_MODULES)]
    return [*(getattr(module, _PLUGIN_ATTRIBUTE) for module in modules), *_SESSION_PLUGINS.values()]


def run_file(plugin: Plugin) -> ModuleType:
    """Run the text that was hashed, even if the file has changed since; return its module.

    Its imports, also later ones, look in its own folder first: the copies in a run come before the files of today.

    Raises PluginError with the file's own line for any failure.
    """
    folder = str(plugin.folder)
    sys.path[:] = [folder, *(path for path in sys.path if path != folder)]  # first, as Python does for a script
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
        what = (" ".join(str(error).split()) or "no message") + _suggest_attribute(error)
        kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "  # a message of the registry
        raise PluginError(f"{plugin.option} {_locate_error(plugin, error)}: {kind}{what}") from error
    return module


def load_plugin(path: str | Path) -> ModuleType:
    """Run a plugin file, as `--plugin` does, and return its module. Raises PluginError with the file's own line."""
    return run_file(Plugin(Path(path)))


def read_module_source(module: ModuleType) -> str:
    """Return the text of a module: of a plugin, that which was run. Raises OSError or TypeError if it has none."""
    plugin = getattr(module, _PLUGIN_ATTRIBUTE, None)
    return inspect.getsource(module) if plugin is None else plugin.text


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


def _suggest_attribute(error: Exception) -> str:
    """Suggest the attribute that is meant, as Python does where it prints a traceback."""
    if not isinstance(error, AttributeError) or error.name is None:
        return ""
    return suggest(error.name, [name for name in dir(error.obj) if not name.startswith("_")], otherwise="")


def _locate_error(plugin: Plugin, error: BaseException) -> str:
    """Return the last line of the plugin itself that an error passed through."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(plugin.path)]
    return f"{plugin.path}:{lines[-1]}" if lines else str(plugin.path)


def check_recorded(recorded: Sequence[Mapping[str, Any]], loaded: Sequence[Plugin], *, run: Path) -> list[str]:
    """List notes on plugins that changed since a run was made. Raises PluginError for one that is missing."""
    if not _is_record(recorded):
        raise PluginError(
            f"{run}: its environment.json lists plugins in another form than runs write; get the run again"
        )
    by_name = _SESSION_PLUGINS | {plugin.path.name: plugin for plugin in loaded}
    notes = []
    lost = [entry for entry in recorded if entry["name"] not in by_name]
    if lost:
        named, again = ("the plugin", "it") if len(lost) == 1 else ("the plugins", "them")
        paths = ", ".join(str(_find_source(entry, run)) for entry in lost)
        raise PluginError(
            f"{run}: was made with {named} {paths}; give {again} again: {shlex.join(plugin_options(lost, run))}"
        )
    for entry in recorded:
        for name, path in by_name[entry["name"]].list_changes(entry):
            notes.append(f"plugin-changed: {path} is not what {run} was made with (its copy: {run / 'plugins' / name})")
    return notes


def plugin_options(recorded: Sequence[Mapping[str, Any]], run: Path) -> list[str]:
    """List the words of a command line that give the plugins of a run's record again."""
    return [word for entry in recorded for word in ("--plugin", str(_find_source(entry, run)))]


def _find_source(entry: Mapping[str, Any], run: Path) -> Path:
    """Return the file that a plugin was read from, or its copy in the run if that file is missing."""
    path, copy = Path(entry["path"]), run / "plugins" / entry["name"]
    is_moved = os.path.isfile(copy) and not os.path.isfile(path)  # which know names that are too long for a disk
    return copy if is_moved else path


def _is_record(recorded: Any) -> bool:
    """Return True for a list of the names, paths and digests of plugins."""
    keys = ("name", "path", "sha256")
    return isinstance(recorded, list | tuple) and all(
        isinstance(entry, dict)
        and all(isinstance(entry.get(key), str) for key in keys)
        and isinstance(entry.get("modules"), dict)
        for entry in recorded
    )
