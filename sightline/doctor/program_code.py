"""Which code is the user's program: that of no library, and not of this package."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from types import FrameType, TracebackType

_LIBRARIES = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib"))
_PACKAGE = str(Path(__file__).parents[1])
_PASSING_ON = ("__torch_function__", "__torch_dispatch__")


def is_of_library(file: str) -> bool:
    """Return True for code of Python or of a library; what is typed has no file, and is of neither."""
    return file.startswith(("<frozen", *_LIBRARIES)) or "site-packages" in file or "dist-packages" in file


def is_of_program(file: str) -> bool:
    """Return True for code of no library and not of this package."""
    return not is_of_library(file) and not file.startswith(_PACKAGE)


def find_program_line(frame: FrameType | None) -> tuple[str, int] | None:
    """Return the file and line of the innermost call, from a frame on, that is the program's and has a file."""
    while frame is not None:
        file = frame.f_code.co_filename
        if file.endswith(".py") and is_of_program(file) and Path(file).exists():
            return file, frame.f_lineno
        frame = frame.f_back
    return None


def find_failed_line(traceback: TracebackType | None) -> tuple[str, int] | None:
    """Return the file and line of the program in which an error began; None for one that began in this package.

    What a library raises began where it was called, also where a mode of torch passes the call on.
    """
    found = None
    while traceback is not None:
        file, name = traceback.tb_frame.f_code.co_filename, traceback.tb_frame.f_code.co_name
        if not is_of_library(file) and name not in _PASSING_ON:
            found = (file, traceback.tb_lineno) if is_of_program(file) else None
        traceback = traceback.tb_next
    return found
