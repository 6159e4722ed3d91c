"""Report of a process's failure, to the launcher that started it or to the terminal."""

from __future__ import annotations

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

from sightline.contract.errors import RunError, escape_to_one_line
from sightline.runs.process_folder import LAUNCH, remove_abandoned


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
        write_once(Path(error_file), Failure(named, exit_code, is_consequence, time.time()))
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


def worker_exit_message(error: Exception) -> str:
    """Format the error line for a data worker that ended without a report."""
    why = escape_to_one_line(" ".join(str(error).split())) or type(error).__name__
    return f"a worker that reads data ended (out of memory?): {why}; set loader.workers lower: 0 reads without any"


def describe_failed_kernel(error: Exception) -> RunError | None:
    """Convert torch's error after a failed assertion on a GPU, raised wherever the host next waits; None for others."""
    if "device-side assert" not in str(error):
        return None
    return RunError(
        "the GPU refused a number, most often an index or a label out of range; --device cpu names it, and "
        "CUDA_LAUNCH_BLOCKING=1 with --traceback shows the line"
    )


def read_failure(path: Path) -> Failure | None:
    """Read the failure that a process reported, or None if it ended without a report."""
    try:
        message = json.loads(path.read_text(encoding="utf-8"))["message"]
        extra = message["extraInfo"]
        return Failure(message["message"], extra["exit_code"], extra["is_consequence"], extra["time_s"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_once(path: Path, failure: Failure) -> None:
    """Write a failure in the format of torch's error files, atomically: the agent may read it at any moment."""
    folder = os.environ.get("SIGHTLINE_LAUNCH_FOLDER")
    if folder and not Path(folder).is_dir():  # the launcher was killed, and another process has removed it
        return
    extra = {
        "timestamp": str(int(failure.time_s)),
        "time_s": failure.time_s,
        "exit_code": failure.exit_code,
        "is_consequence": failure.is_consequence,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
    draft.write_text(json.dumps({"message": {"message": failure.message, "extraInfo": extra}}), encoding="utf-8")
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        if not path.exists():
            os.replace(draft, path)
    draft.unlink(missing_ok=True)
    if folder:
        remove_abandoned(Path(folder), LAUNCH)  # if no process remains to read it
