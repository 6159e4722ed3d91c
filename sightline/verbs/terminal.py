"""The command line's end of a call: guarded standard streams, and errors as messages and exit codes."""

from __future__ import annotations

import dataclasses
import difflib
import errno
import io
import os
import sys
import traceback
from pathlib import Path
from typing import Any, TextIO, get_type_hints

from sightline.contract.errors import CountError, RunError, UserError, escape_to_one_line
from sightline.engine.failures import describe_failed_kernel, report_failure, worker_exit_message
from sightline.store.files.atomic_write import REPEAT, disk_failure, is_of_disk

_READER_GONE = frozenset({errno.EPIPE, errno.EIO, errno.ECONNRESET})
"""Errors of a pipe that was closed, as `head` does, or of a closed terminal."""


class _GuardedStream(io.FileIO):
    """Raw stream whose descriptor is redirected to /dev/null at the first write that fails."""

    failure: OSError | None = None

    def write(self, data: object, /) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]
        except OSError as error:
            self.failure = error
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())  # also for what libraries and child processes write
            os.close(null)
            return memoryview(data).nbytes  # type: ignore[arg-type]


def guard_streams() -> None:
    """Replace the standard streams so that closed ones raise no error, and reserve descriptors 0 to 2 for them."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            assert opened == descriptor, "the system gives the lowest free number"
            os.set_inheritable(descriptor, True)
    sys.stdout = _guard(sys.stdout, sys.__stdout__)
    sys.stderr = _guard(sys.stderr, sys.__stderr__)


def stdout_failure() -> str | None:
    """Return the reason why standard output lost results, or None if it did not or its reader closed the pipe."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", getattr(sys.stdout, "buffer", None))
    failure = raw.failure if isinstance(raw, _GuardedStream) else None
    return None if failure is None or failure.errno in _READER_GONE else failure.strerror


def _guard(stream: TextIO | None, original: TextIO | None) -> TextIO:
    if stream is None:  # closed before we were started
        return open(os.devnull, "w", encoding="utf-8")
    if stream is not original or not isinstance(stream, io.TextIOWrapper):  # redirected inside of this process
        return stream
    stream.flush()
    raw = _GuardedStream(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        raw if stream.write_through else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


# --- errors ----------------------------------------------------------------------------------------------------------


def format_error(error: Exception) -> int:
    """Print an error and return its exit code: one line for errors of users or files, a traceback for bugs.

    Bugs are errors of the package or of a plugin.
    """
    if hasattr(error, "format_message"):  # typer's own exceptions, which it keeps in a private copy of click
        message = error.format_message()
        if message.startswith("Usage:"):  # no command was given: print the help, not an error
            sys.stderr.write(message.rstrip() + "\n")
            return 2
        return fail(_describe_words(error, message), 2, error)
    if isinstance(error, UserError):
        return fail(str(error), 2, error, names_rank=isinstance(error, CountError))
    if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES):
        subject = "path and its permissions" if error.errno == errno.EACCES else "path"
        return fail(escape_to_one_line(f"{error.filename}: {error.strerror}; check the {subject}"), 2, error)
    if isinstance(error, FileNotFoundError) and str(error.strerror).startswith("No usable temporary directory"):
        advice = "set the variable TMPDIR to a folder that can be written"
        return fail(
            f"temporary files find no place, not in {str(error.strerror).partition('[')[2][:-1]}; {advice}", 1, error
        )
    if is_of_disk(error):
        error = disk_failure(error, Path(os.fsdecode(error.filename or "a file")), again=REPEAT, option=None)
    if isinstance(error, RunError):
        return fail(str(error), 1, error)
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):  # raised wherever training is
        return fail(worker_exit_message(error), 1, error)
    if isinstance(error, RuntimeError) and type(error).__name__ == "OutOfMemoryError":  # torch's
        advice = "raise train.micro_batches, lower evaluate.batch_size, or take --device cpu"
        return fail(f"the GPU's memory is full; {advice}", 1, error, names_rank=True)
    if isinstance(error, RuntimeError) and (failed := describe_failed_kernel(error)) is not None:
        return fail(str(failed), 1, error, names_rank=True)
    if isinstance(error, ValueError):
        return fail(f"{error} (--traceback shows where it was raised)", 1, error, names_rank=True)
    return fail("".join(traceback.format_exception(error)).strip(), 1, None, names_rank=True)


def _describe_words(error: Any, message: str) -> str:
    """Describe what is wrong with the words of a command line, where Typer's own message does not say what to write."""
    kind = type(error).__name__
    if kind == "NoSuchOption":
        return _describe_unknown_option(error) or _suggest_option(error)
    if kind == "BadOptionUsage":
        asked = [parameter for parameter in error.ctx.command.params if error.option_name in parameter.opts]
        return "".join(f"{error.option_name}: lacks its value, {p.metavar}: {p.help}" for p in asked) or message
    if message.startswith(("Missing option", "Missing argument")):
        usage = " ".join(error.ctx.get_usage().removeprefix("Usage: ").split())
        return f"{message.rstrip('.')}: {getattr(error.param, 'help', '')}; usage: {usage}"
    if message.startswith("Got unexpected extra argument"):
        usage = " ".join(error.ctx.get_usage().removeprefix("Usage: ").split())
        return f"{message}; usage: {usage}{_find_other_command(error, message)}"
    for fault in getattr(error.__cause__, "errors", list)():  # of pydantic, by which Typer converts values
        message = message.replace("Input should be", f"found {fault['input']!r}; it should be").partition(", unable")[0]
    return message.replace("Value error, ", "")


def _find_other_command(error: Any, message: str) -> str:
    """Say which command takes a word KEY=VALUE that this one does not; empty for other words."""
    from sightline.config.other_tools import find_setting

    key, _, value = message.partition("(s) (")[2].partition(")")[0].partition("=")
    instead = find_setting(key, value, command=_name_command(error.ctx), flags=(), takes_keys=False) if value else ""
    return f"; write {instead}" if instead.startswith("sightline ") else ""


def _suggest_option(error: Any) -> str:
    """Name the options that one is close to, so that it may be a misspelling of them."""
    flags = [flag for parameter in error.ctx.command.params for flag in parameter.opts if flag.startswith("--")]
    if similar := difflib.get_close_matches(error.option_name, flags, cutoff=0.75):
        return f"No such option: {error.option_name} (Possible options: {', '.join(similar)})"
    return f"No such option: {error.option_name}; 'sightline {_name_command(error.ctx)} --help' lists them"


def _name_command(ctx: Any) -> str:
    """Name a command, without the program."""
    name: str = ctx.command_path.removeprefix(ctx.find_root().command_path).strip()
    return name


def _describe_unknown_option(error: Any) -> str:
    """Describe what to write for an option that is a key of the config, or another tool's; empty for others."""
    from sightline.config.other_tools import find_setting  # slow, as is the next; the streams above are guarded first

    option, ctx = error.option_name, error.ctx
    flags = [flag for parameter in ctx.command.params for flag in parameter.opts if flag.startswith("-")]
    words = [word for word in sys.argv if word.partition("=")[0] == option or word == option]
    following = words and (words[0].partition("=")[2] or "".join(sys.argv[sys.argv.index(words[0]) + 1 :][:1]))
    value = following if following and not following.startswith("-") else ""
    command = _name_command(ctx)
    takes_overrides = any("overrid" in (getattr(parameter, "help", "") or "") for parameter in ctx.command.params)
    instead = find_setting(option, value, command=command, flags=flags, takes_keys=takes_overrides)
    instead = (takes_overrides and _find_overrides(option, value)) or instead
    if not instead:
        return ""
    is_key = not instead.startswith(("--", "sightline "))
    return f"{option}: is not an option; {'to set a value of the config, ' if is_key else ''}write {instead}"


def _find_overrides(option: str, value: str) -> str:
    """Return how to write a config key that was given as an option; empty if no key has this name."""
    from sightline.config import RunConfig
    from sightline.contract.registry import optimizers

    name = option.lstrip("-").replace("-", "_")
    keys = [name] if name.partition(".")[0] in get_type_hints(RunConfig) else []
    for block, kind in get_type_hints(RunConfig).items():
        if dataclasses.is_dataclass(kind):
            keys += [f"{block}.{field.name}" for field in dataclasses.fields(kind) if field.name == name]
    if any(name in optimizers.get_entry(optimizer).arguments for optimizer in optimizers.names()):
        keys.append(f"optimizer.{name}")
    return " or ".join(f"{key}={value or 'VALUE'}" for key in keys)


def fail(message: str, exit_code: int, error: Exception | None, *, names_rank: bool = False) -> int:
    """Print why the command ends, with the traceback if requested; return the exit code.

    `names_rank`: the error may have occurred only in this process of a run, so the message names its rank.
    """
    if error is not None and "--traceback" in sys.argv:
        traceback.print_exception(error)
    report_failure(message, exit_code=exit_code, names_rank=names_rank)
    return exit_code
