"""A command of sightline run inside the test's own process: exit code and what was said, without a new interpreter."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import re
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import typer.main

from sightline import cli

__all__ = ["Outcome", "built_once", "document_of", "refuse", "run_here", "succeed", "without_progress"]


built_once = functools.cache(typer.main.get_command)
"""Typer reads the signatures of all verbs at each call: 50 ms of processor time, more than many a verb takes."""


class Outcome(NamedTuple):
    """What a command left: its exit code, standard output and standard error."""

    code: int
    out: str
    err: str


_PROGRESS = re.compile(r"(?m)^train: (config .*, output .*|.*; \d+ s so far)\n")
"""First words of a training, and what it says while it waits for its first step."""


def without_progress(text: str) -> str:
    """Return what a training said without its first line and those until its first step."""
    return _PROGRESS.sub("", text)


def run_here(*words: object, main: Callable[[], None] = cli.main, keeps_progress: bool = False) -> Outcome:
    """Run `sightline <words>`, or another program; handlers of signals are afterwards what they were.

    What a training says before its first step, which depends on the machine, is left out unless `keeps_progress`.
    """
    out, err = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with (
            mock.patch.object(sys, "argv", ["sightline", *map(str, words)]),
            mock.patch.object(typer.main, "get_command", built_once),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            main()
    except SystemExit as ended:
        said = err.getvalue() if keeps_progress else without_progress(err.getvalue())
        return Outcome(int(str(ended.code)), out.getvalue(), said)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    raise AssertionError("the command line always ends by an exit code")


def succeed(*words: object) -> Outcome:
    """Run a command that ends in 0; a failing one is the failure of the test, with what it said."""
    done = run_here(*words)
    assert done.code == 0, done.err
    return done


def document_of(*words: object) -> Any:
    """Run a command that ends in 0, and return what it writes by `--json`."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "document.json"
        succeed(*words, "--json", file)
        return json.loads(file.read_text())


def refuse(*words: object) -> str:
    """Run a command that ends in 2, and return what it says on standard error."""
    done = run_here(*words)
    assert done.code != 0, f"not refused: {done.out}{done.err}"
    assert done.code == 2, done.err
    return done.err
