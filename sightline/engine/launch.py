"""Several processes on this machine: torch's elastic agent in this interpreter, one line for the first failure."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from typing import Any

__all__ = ["follow_parent", "launch", "launched_processes"]


_GRACE_S = 300
"""How long processes may take to finish their step and save after a signal; a second one ends them at once."""


def launched_processes() -> int | None:
    """How many processes a launcher (torchrun, SLURM, ours) started, or None outside of one."""
    if "WORLD_SIZE" in os.environ and "RANK" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    if int(os.environ.get("SLURM_NTASKS", 1)) > 1 and "SLURM_STEP_ID" in os.environ:
        return int(os.environ["SLURM_NTASKS"])
    return None


def launch(arguments: Sequence[str], num_processes: int) -> int:
    """Run `sightline <arguments>` in this many processes; the exit code of the whole.

    A failing process takes the others down, and what it said is printed once. A signal reaches all of them.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_processes)))
    os.environ["SIGHTLINE_LAUNCHED"] = str(os.getpid())
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=0.1,
        shutdown_timeout=_GRACE_S,
        logs_specs=DefaultLogsSpecs(),
    )
    try:
        elastic_launch(settings, sys.executable)("-m", "sightline", *arguments)
    except SignalException as error:
        return 128 + int(error.sigval)
    except ChildFailedError as error:
        return _report(error)
    return 0


def _report(error: Any) -> int:
    """Print the first failure and give the exit code that fits it."""
    rank, failure = error.get_first_failure()
    if failure.exitcode in (128 + signal.SIGTERM, 128 + signal.SIGINT):
        return failure.exitcode
    said = _what_it_said(failure.error_file)
    if said is not None:
        sys.stderr.write(f"error: {said['message']}\n")
        return int(said["extraInfo"].get("exit_code", 1))
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        sys.stderr.write(
            f"error: process {rank} was ended by {name}{hint}; the others were stopped. Resume with --resume auto\n"
        )
        return 1
    sys.stderr.write(f"error: process {rank} ended with exit code {failure.exitcode} and said nothing\n")
    return failure.exitcode


def _what_it_said(error_file: str) -> dict[str, Any] | None:
    try:
        with open(error_file, encoding="utf-8") as file:
            message = json.load(file)["message"]
    except (OSError, ValueError, KeyError):
        return None
    return message if isinstance(message, dict) and "message" in message else None


def follow_parent(parent: int) -> None:
    """End this process soon after its parent, whose number is given: it may be gone already."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="follow-parent", daemon=True).start()
