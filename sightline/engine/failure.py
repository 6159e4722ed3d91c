"""How a process reports why it ends: to the launcher that started it, or to the terminal."""

from __future__ import annotations

import contextlib
import json
import multiprocessing.util
import os
import shutil
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from sightline.errors import RunError

__all__ = ["Failure", "PeerLostError", "leave", "read_failure", "report_failure"]


class PeerLostError(RunError):
    """Another process of the run ended or cut the connection; this one only follows it."""


@dataclass(frozen=True)
class Failure:
    """What a process reported before it ended. A consequence is printed only where nobody reported a cause."""

    message: str
    exit_code: int
    is_consequence: bool
    time_s: float


def report_failure(message: str, *, exit_code: int, is_consequence: bool = False) -> None:
    """State why this process ends: in the launcher's error file where there is one, and on standard error unless the
    launcher is ours, which prints the first cause alone.

    The first report in an error file stands; what follows from it is not reported again.
    """
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if error_file:
        _write_once(Path(error_file), Failure(message, exit_code, is_consequence, time.time()))
        if os.environ.get("SIGHTLINE_LAUNCHED"):
            return
    rank = f"[rank {os.environ.get('RANK', '?')}] " if os.environ.get("WORLD_SIZE", "1") != "1" else ""
    sys.stderr.write(f"{rank}error: {message}\n")
    sys.stderr.flush()


def leave(exit_code: int) -> NoReturn:
    """End a process that failed among others, at once: threads of its collectives could abort an orderly end."""
    sys.stdout.flush()
    sys.stderr.flush()
    if multiprocessing.parent_process() is None:  # the folder of a process that was forked is its parent's
        shutil.rmtree(multiprocessing.util.get_temp_dir(), ignore_errors=True)  # which an orderly end removes
    os._exit(exit_code)


def read_failure(path: Path) -> Failure | None:
    """What a process reported, or None where it ended without a word."""
    try:
        message = json.loads(path.read_text(encoding="utf-8"))["message"]
        extra = message["extraInfo"]
        return Failure(message["message"], extra["exit_code"], extra["is_consequence"], extra["time_s"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_once(path: Path, failure: Failure) -> None:
    """In the form of torch's error files; whole or absent, because the agent may read it at any moment."""
    extra = {
        "timestamp": str(int(failure.time_s)),
        "time_s": failure.time_s,
        "exit_code": failure.exit_code,
        "is_consequence": failure.is_consequence,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
    draft.write_text(json.dumps({"message": {"message": failure.message, "extraInfo": extra}}), encoding="utf-8")
    with contextlib.suppress(FileExistsError):
        os.link(draft, path)
    draft.unlink()
