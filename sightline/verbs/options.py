"""Options that several verbs share; nothing heavy is imported before one of them is used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["Config", "Device", "Json", "Overrides", "Plugins", "Processes", "Traceback", "writable"]


def writable(option: str) -> Callable[[Path | None], Path | None]:
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
Plugins = Annotated[
    list[Path] | None, typer.Option("--plugin", metavar="FILE.py", help="a file of your own parts; repeatable")
]
Json = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", callback=writable("--json"), help="write the result as JSON")
]
Device = Annotated[str, typer.Option("--device", metavar="auto|cpu|cuda", help="where to run")]
Processes = Annotated[int | None, typer.Option("--processes", metavar="N", help="processes on this machine")]
Traceback = Annotated[bool, typer.Option("--traceback", help="show where in the code an error arose")]
