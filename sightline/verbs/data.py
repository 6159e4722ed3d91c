"""`sightline data`: prepare public data sets, say what they hold, and whether they still hold it."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from sightline import registry
from sightline.config.faults import Faults
from sightline.config.yaml_tree import read_value
from sightline.data import native
from sightline.errors import UserError
from sightline.plugins import load_plugins
from sightline.schema import check_value, describe_type, nearest, parameters_of
from sightline.types import Where
from sightline.verbs.common import write_document
from sightline.verbs.output import note

__all__ = ["convert_weights", "info", "prepare", "verify"]


_WIDTH = 110
_LONGEST = 40
_TIED = "\u00a0"
"""A blank at which no line is broken, while lines are made."""
_PREPARE_ITSELF = ("source", "target", "name", "progress")


def prepare(name: str, options: Sequence[str] = (), *, source: Path, target: Path, json: Path | None) -> int:
    """Write the native form of a data set found in one of its layouts; `options` are `key=value` for its `prepare`."""
    preparable = {n for n in registry.data.names() if hasattr(registry.data.entry_of(n).builder, "prepare")}
    if name not in preparable:
        raise UserError(f"data prepare: '{name}' is not a data set to prepare{nearest(name, preparable)}")
    given = _read_options(name, options)
    with _bar(name) as progress:
        report = _builder(name).prepare(source=source, target=target, name=name, progress=progress, **given)
    document = _builder(name).describe(Path(report["root"]))
    told = {key: value for key, value in document.items() if key != "differences"}
    _print_tree({"outcome": report["outcome"], **told})
    for line in report.get("differences", ()):
        note(f"look at this: {line}")
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


def verify(folder: Path, *, json: Path | None) -> int:
    """Read every file of a prepared folder again and compare it with what was written."""
    num_sound = native.verify(folder)
    sys.stdout.write(f"{folder}: all {num_sound} files are as they were written\n")
    write_document(json, {"root": str(folder.resolve()), "num_files": num_sound})
    return 0


def _read_options(name: str, options: Sequence[str]) -> dict[str, Any]:
    """The options as the signature of the set's `prepare` wants them. Raises ConfigError naming all that do not fit."""
    known = {key: p for key, p in parameters_of(_builder(name).prepare).items() if key not in _PREPARE_ITSELF}
    faults, given = Faults(), {}
    for option in options:
        key, equals, text = option.partition("=")
        where = Where("data prepare", path=key.strip())
        if not equals or key not in known or key in given:
            faults.add(where, "is given twice" if key in given else _told_unknown(name, option, known))
            continue
        given[key], misfits = check_value(known[key].annotation, read_value(text, "data prepare", key, faults).plain())
        for path, told in misfits:
            faults.add(Where("data prepare", path=f"{key}.{path}".rstrip(".")), told)
    for key, parameter in known.items():
        if parameter.is_required and key not in given:
            faults.add(
                Where("data prepare", path=key),
                f"is required and missing: {key}=VALUE, {describe_type(parameter.annotation)}",
            )
    faults.raise_any()
    return given


def convert_weights(
    file: Path,
    overrides: Sequence[str],
    *,
    layout: str,
    target: Path,
    config: Path | None,
    data: str | None,
    images: Path | None,
    plugins: Sequence[Path],
    json: Path | None,
) -> int:
    """Write a third-party file of weights as a run directory, and say what was read and what was assumed."""
    from sightline.engine.conversion import convert

    converted = convert(
        file,
        layout=layout,
        target=target,
        config_path=config,
        data_name=data,
        overrides=overrides,
        plugins=load_plugins(plugins),
        images=images,
    )
    for line in converted.notes:
        note(line)
    _print_tree({**converted.lineage, "run": str(converted.path)})
    if converted.lineage["assumed"]:
        assumed = ", ".join(f"model.{name}" for name in converted.lineage["assumed"])
        note(f"no tensor shows {assumed}: taken as published; give them by key=value where the file is another")
    write_document(json, {**converted.lineage, "run": str(converted.path), "notes": list(converted.notes)})
    return 0


def _told_unknown(name: str, option: str, known: Collection[str]) -> str:
    key, equals, _ = option.partition("=")
    takes = f"; '{name}' takes {', '.join(known) or 'none'}"
    return f"is no option{nearest(key, known, otherwise=takes)}" if equals else f"is no option key=value{takes}"


def _builder(name: str) -> Any:
    return registry.data.entry_of(name).builder


def _set_of(folder: Path) -> str:
    """The data set that a prepared folder says it holds."""
    name = str(native.read_manifest(folder)["set"])
    if name not in registry.data.names():
        raise UserError(
            f"{folder}: holds the data set '{name}', which is not known{nearest(name, registry.data.names())}"
        )
    return name


def _print_tree(tree: Any, indent: int = 0) -> None:
    """What a document says; what it has no answer to is left out, and long lists are shortened."""
    for key, value in tree.items():
        pad = "  " * indent
        if value is None or (isinstance(value, str | dict | list | tuple) and not value):
            continue
        if isinstance(value, dict) and not all(type(each) is int for each in value.values()):
            sys.stdout.write(f"{pad}{key}:\n")
            _print_tree(value, indent + 1)
            continue
        lines = textwrap.wrap(
            f"{pad}{key}: {_told(value)}",
            _WIDTH,
            subsequent_indent=f"{pad}    ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        sys.stdout.write("".join(f"{line}\n" for line in lines).replace(_TIED, " "))


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}{_TIED}{count}" for name, count in value.items())
    if isinstance(value, list | tuple):
        more = f", ... ({len(value)} in all)" if len(value) > _LONGEST else ""
        return ", ".join(map(_told, value[:_LONGEST])) + more
    return f"{value:.4g}" if isinstance(value, float) else str(value)


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
