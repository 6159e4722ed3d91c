"""`sightline data`: prepare public data sets, and say what they hold."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sightline import registry
from sightline.data.native import read_manifest
from sightline.errors import UserError
from sightline.plugins import load_plugins
from sightline.schema import nearest
from sightline.verbs.common import write_document
from sightline.verbs.output import note

__all__ = ["info", "prepare"]


def prepare(name: str, *, source: Path, target: Path, json: Path | None) -> int:
    """Write the native form of a data set found in one of its public layouts."""
    preparable = {n for n in registry.data.names() if hasattr(registry.data.entry_of(n).builder, "prepare")}
    if name not in preparable:
        raise UserError(f"data prepare: '{name}' is not a data set to prepare{nearest(name, preparable)}")
    with _bar(name) as progress:
        report = _builder(name).prepare(source=source, target=target, name=name, progress=progress)
    _print_tree(report)
    write_document(json, report)
    return 0


def info(name: str, *, plugins: Sequence[Path], json: Path | None) -> int:
    """What is known of a data set by name, or of a prepared folder."""
    load_plugins(plugins)
    folder = Path(name)
    if (folder / "manifest.json").is_file():
        document = _builder(_set_of(folder)).describe(folder)
    elif name in registry.data.names():
        builder = _builder(name)
        document = builder.card() if hasattr(builder, "card") else {"summary": registry.data.entry_of(name).summary}
    else:
        raise UserError(
            f"data info: '{name}' is neither a data set nor a prepared folder{nearest(name, registry.data.names())}"
        )
    _print_tree(document)
    write_document(json, document)
    return 0


def _builder(name: str) -> Any:
    return registry.data.entry_of(name).builder


def _set_of(folder: Path) -> str:
    """The data set that a prepared folder says it holds."""
    name = str(read_manifest(folder)["set"])
    if name not in registry.data.names():
        raise UserError(
            f"{folder}: holds the data set '{name}', which is not known{nearest(name, registry.data.names())}"
        )
    return name


def _print_tree(tree: Any, indent: int = 0) -> None:
    for key, value in tree.items():
        pad = "  " * indent
        if isinstance(value, dict) and value:
            sys.stdout.write(f"{pad}{key}:\n")
            _print_tree(value, indent + 1)
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            sys.stdout.write(f"{pad}{key}: {text}\n")


class _bar:  # noqa: N801 - used like a function
    """A progress bar on a terminal, a line now and then elsewhere; called with done, total and what is at hand."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> _bar:
        from rich.console import Console
        from rich.progress import Progress

        self._console = Console(stderr=True)
        self._progress = Progress(console=self._console) if self._console.is_terminal else None
        self._task = None
        self._told = -1
        if self._progress is not None:
            self._progress.start()
            self._task = self._progress.add_task(self.name)
        return self

    def __call__(self, done: int, total: int, what: str) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, total=total, description=f"{self.name} {what}")
        elif total and done * 10 // total > self._told:
            self._told = done * 10 // total
            note(f"{self.name}: {done} of {total} {what}")

    def __exit__(self, *error: object) -> None:
        if self._progress is not None:
            self._progress.stop()
