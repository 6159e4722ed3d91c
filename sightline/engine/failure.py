"""Report of a process's failure, to the launcher that started it or to the terminal."""

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

from sightline.errors import RunError, escape_to_one_line

__all__ = [
    "LAUNCH_FOLDER",
    "Failure",
    "PeerLostError",
    "exit_process",
    "rank_label",
    "read_failure",
    "remove_launch_folder",
    "remove_own_folder",
    "report_failure",
    "worker_exit_message",
]

LAUNCH_FOLDER = "sightline_launch_"
"""Prefix of the name of a launcher's folder, which contains the failures of its processes."""


class PeerLostError(RunError):
    """Another process of the run ended or cut the connection; this one only follows it."""


@dataclass(frozen=True)
class Failure:
    """Failure that a process reported before it ended; a consequence is printed only if no cause was reported."""

    message: str
    exit_code: int
    is_consequence: bool
    time_s: float


def report_failure(message: str, *, exit_code: int, is_consequence: bool = False, names_rank: bool = False) -> None:
    """Report why this process ends, in the launcher's error file, if any, and on standard error.

    Standard error is left out if the launcher is ours, which prints the first cause alone; with `names_rank` it prints
    of which process, too. The first report in an error file is kept; consequences of it are not reported again.
    """
    message = "\n".join(map(escape_to_one_line, message.split("\n")))
    error_file, rank = os.environ.get("TORCHELASTIC_ERROR_FILE"), rank_label()
    if error_file:
        named = f"{rank}: {message}" if rank and names_rank else message
        _write_once(Path(error_file), Failure(named, exit_code, is_consequence, time.time()))
        if os.environ.get("SIGHTLINE_LAUNCHED"):
            return
    sys.stderr.write(f"{f'[{rank}] ' if rank else ''}error: {message}\n")
    sys.stderr.flush()


def rank_label() -> str:
    """Return `rank 1` in processes of a launcher and in their child processes; empty in a run of one process."""
    return f"rank {os.environ.get('RANK', '?')}" if os.environ.get("WORLD_SIZE", "1") != "1" else ""


def exit_process(exit_code: int) -> NoReturn:
    """End a failed process of several at once: threads of its collectives could abort an orderly end."""
    sys.stdout.flush()
    sys.stderr.flush()
    remove_own_folder()
    os._exit(exit_code)


def remove_own_folder() -> None:
    """Remove the folder of this process's sockets, unless this process was forked: then it is its parent's."""
    if multiprocessing.parent_process() is None:
        shutil.rmtree(multiprocessing.util.get_temp_dir(), ignore_errors=True)


def remove_launch_folder(folder: str) -> None:
    """Remove the folder of a launcher that ended; a folder without a launcher's prefix is not touched."""
    if Path(folder).name.startswith(LAUNCH_FOLDER) and not Path(folder).is_symlink():
        shutil.rmtree(folder, ignore_errors=True)


def worker_exit_message(error: Exception) -> str:
    """Format the error line for a data worker that ended without a report."""
    why = escape_to_one_line(" ".join(str(error).split())) or type(error).__name__
    return f"a worker that reads data ended (out of memory?): {why}; set loader.workers lower: 0 reads without any"


def read_failure(path: Path) -> Failure | None:
    """Read the failure that a process reported, or None if it ended without a report."""
    try:
        message = json.loads(path.read_text(encoding="utf-8"))["message"]
        extra = message["extraInfo"]
        return Failure(message["message"], extra["exit_code"], extra["is_consequence"], extra["time_s"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_once(path: Path, failure: Failure) -> None:
    """Write a failure in the format of torch's error files, atomically: the agent may read it at any moment."""
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
    launcher, folder = os.environ.get("SIGHTLINE_LAUNCHED"), os.environ.get("SIGHTLINE_LAUNCH_FOLDER")
    if launcher and folder and not _is_running(int(launcher)):  # no process remains to read it, or to remove it
        remove_launch_folder(folder)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
