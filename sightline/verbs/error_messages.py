"""How an error becomes a message and an exit code."""

from __future__ import annotations

import dataclasses
import errno
import sys
import traceback
from typing import get_type_hints

from sightline.config import RunConfig
from sightline.engine.failure import report_failure, worker_exit_message
from sightline.errors import RunError, UserError, escape_to_one_line
from sightline.registry import optimizers

__all__ = ["fail", "format_error"]


def format_error(error: Exception) -> int:
    """One line for what a user or the world did wrong; the whole traceback for what we or a plugin did wrong.

    Returns the exit code.
    """
    if hasattr(error, "format_message"):  # typer's own exceptions, which it keeps in a private copy of click
        message = error.format_message()
        if message.startswith("Usage:"):  # no command was given: print the help, not an error
            sys.stderr.write(message.rstrip() + "\n")
            return 2
        if (option := getattr(error, "option_name", None)) is not None:
            message = _keys_of(option) or message
        if message.startswith("Missing option"):
            message = f"{message.rstrip('.')}: {getattr(getattr(error, 'param', None), 'help', '')}"
        return fail(message, 2, error)
    if isinstance(error, UserError):
        return fail(str(error), 2, error)
    if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES):
        what = "path and its permissions" if error.errno == errno.EACCES else "path"
        return fail(escape_to_one_line(f"{error.filename}: {error.strerror}; check the {what}"), 2, error)
    if isinstance(error, RunError):
        return fail(str(error), 1, error)
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):  # raised wherever training is
        return fail(worker_exit_message(error), 1, error)
    if isinstance(error, ValueError):
        return fail(f"{error} (--traceback shows where this arose)", 1, error, names_rank=True)
    return fail("".join(traceback.format_exception(error)).strip(), 1, None, names_rank=True)


def _keys_of(option: str) -> str:
    """What to write for a key of a config that was given as an option; empty where no key has its name."""
    name = option.lstrip("-").replace("-", "_")
    keys = [name] if name in get_type_hints(RunConfig) else []
    for block, kind in get_type_hints(RunConfig).items():
        if dataclasses.is_dataclass(kind):
            keys += [f"{block}.{each.name}" for each in dataclasses.fields(kind) if each.name == name]
    if any(name in optimizers.get_entry(each).arguments for each in optimizers.names()):
        keys.append(f"optimizer.{name}")
    listed = " or ".join(f"{key}=VALUE" for key in keys)
    return f"{option}: is not an option; a value of the config is given as {listed}" if keys else ""


def fail(message: str, exit_code: int, error: Exception | None, *, names_rank: bool = False) -> int:
    """Print why the command ends, with the traceback where it was requested; the exit code.

    `names_rank` is for what may have failed in this process of a run alone.
    """
    if error is not None and "--traceback" in sys.argv:
        traceback.print_exception(error)
    report_failure(message, exit_code=exit_code, names_rank=names_rank)
    return exit_code
