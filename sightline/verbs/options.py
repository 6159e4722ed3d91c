"""Options that several verbs share, as the command line declares them; nothing heavy is imported here."""

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
    """Refuses a file that could not be written, before any work is done for it."""

    def check(path: Path | None) -> Path | None:
        if path is not None:
            from sightline.verbs.common import assert_writable

            assert_writable(path, option=option)
        return path

    return check


Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="laid over the config: train.epochs=10")
]
Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="a YAML config, or a run directory")]
Checkpoint = Annotated[str, typer.Option("--checkpoint", metavar="last|best|PATH", help="which weights")]
StudyFolder = Annotated[Path, typer.Option("--out", metavar="DIR", help="where runs, table and plot go")]
Plugins = Annotated[
    list[Path] | None, typer.Option("--plugin", metavar="FILE.py", help="a file of your own parts; repeatable")
]
Json = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", callback=check_writable("--json"), help="write the result as JSON"),
]
Device = Annotated[str, typer.Option("--device", metavar="auto|cpu|cuda", help="where to run")]
Processes = Annotated[int | None, typer.Option("--processes", metavar="N", help="processes on this machine")]
Traceback = Annotated[bool, typer.Option("--traceback", help="show where in the code an error arose")]


def split_words(words: list[str]) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Paths and key=value; a path may have an equals sign in its name, so what is there is one."""
    is_override = ["=" in word and not os.path.exists(word) for word in words]  # Path raises for long words
    paths = tuple(Path(word) for word, is_one in zip(words, is_override, strict=True) if not is_one)
    return paths, tuple(word for word, is_one in zip(words, is_override, strict=True) if is_one)
