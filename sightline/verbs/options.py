"""Command-line options that several verbs share; no slow imports here."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "Checkpoint",
    "Config",
    "Device",
    "Json",
    "Overrides",
    "Plugins",
    "Processes",
    "StudyFolder",
    "Traceback",
    "check_writable",
    "split_words",
]


def check_writable(option: str) -> Callable[[Path | None], Path | None]:
    """Make an option's callback that refuses a file that cannot be written, before any work is done."""

    def check(path: Path | None) -> Path | None:
        if path is not None:
            from sightline.verbs.common import assert_writable

            assert_writable(path, option=option)
        return path

    return check


Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="override values of the config: train.epochs=10")
]
Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="a YAML config, or a run directory")]
Checkpoint = Annotated[str, typer.Option("--checkpoint", metavar="last|best|PATH", help="weights to load")]
StudyFolder = Annotated[Path, typer.Option("--out", metavar="DIR", help="folder for runs, table and plot")]
Plugins = Annotated[
    list[Path] | None,
    typer.Option("--plugin", metavar="FILE.py", help="Python file with your own components; repeatable"),
]
Json = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", callback=check_writable("--json"), help="write the result as JSON"),
]
Device = Annotated[str, typer.Option("--device", metavar="auto|cpu|cuda", help="device to run on")]
Processes = Annotated[int | None, typer.Option("--processes", metavar="N", help="processes on this machine")]
Traceback = Annotated[bool, typer.Option("--traceback", help="print the traceback of an error")]


def split_words(words: list[str]) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Split arguments into paths and key=value overrides; an existing file with `=` in its name is a path."""
    is_override = ["=" in word and not os.path.exists(word) for word in words]  # Path raises for long words
    paths = tuple(Path(word) for word, is_key_value in zip(words, is_override, strict=True) if not is_key_value)
    return paths, tuple(word for word, is_key_value in zip(words, is_override, strict=True) if is_key_value)
