"""A user's own parts: Python files named on the command line, never in a config or a run directory."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from sightline.errors import PluginError
from sightline.registry import REGISTRIES

__all__ = ["Plugin", "check_recorded", "load_plugins"]


class Plugin:
    """A loaded plugin file: where it lies, what it held when it was loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise PluginError(f"--plugin {path}: no such file") from None
        except (OSError, UnicodeDecodeError) as error:
            raise PluginError(f"--plugin {path}: cannot be read: {error}") from None
        self.sha256 = hashlib.sha256(self.text.encode()).hexdigest()

    def record(self) -> dict[str, str]:
        """What a run notes of it."""
        return {"path": str(self.path.resolve()), "name": self.path.name, "sha256": self.sha256}


def load_plugins(paths: Sequence[Path]) -> list[Plugin]:
    """Run these files, which register their parts. Raises PluginError with the file's own line for whatever fails."""
    plugins = [Plugin(path) for path in paths]
    if plugins:
        for registry in REGISTRIES.values():
            registry.names()  # built-in names first, so that a plugin that takes one of them is the one to be refused
    for plugin in plugins:
        _run(plugin)
    return plugins


def _run(plugin: Plugin) -> None:
    name = f"sightline_plugin_{plugin.path.stem}"
    spec = importlib.util.spec_from_file_location(name, plugin.path)
    if spec is None or spec.loader is None:
        raise PluginError(f"--plugin {plugin.path}: is not a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise PluginError(f"--plugin {error.filename}:{error.lineno}: {error.msg}") from None
    except Exception as error:  # noqa: BLE001 - a user's file may fail in any way; the line in it is what helps
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(plugin.path)]
        place = f"{plugin.path}:{lines[-1]}" if lines else str(plugin.path)
        raise PluginError(f"--plugin {place}: {type(error).__name__}: {error}") from error


def check_recorded(recorded: Sequence[Mapping[str, str]], given: Sequence[Plugin], *, run: Path) -> list[str]:
    """Lines about plugins that changed since a run was made. Raises PluginError for one that is not given."""
    by_name = {plugin.path.name: plugin for plugin in given}
    notes = []
    for entry in recorded:
        plugin = by_name.get(entry["name"])
        if plugin is None:
            raise PluginError(f"{run}: was made with the plugin {entry['path']}; give it again: --plugin {entry['path']}")
        if plugin.sha256 != entry["sha256"]:
            notes.append(
                f"plugin-changed: {plugin.path} is not what {run} was made with (its copy: {run / 'plugins' / entry['name']})"
            )
    return notes
