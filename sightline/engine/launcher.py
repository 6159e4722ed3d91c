"""Launcher of several processes on this machine: torch's elastic agent, and one line for the first failure."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sightline.contract.errors import UserError
from sightline.engine.failures import Failure, read_failure, remove_own_folder
from sightline.runs.process_folder import LAUNCH, process_folder, remove_process_folder

if TYPE_CHECKING:
    from torch.distributed.launcher.api import LaunchConfig

_GRACE_S = 300
"""Seconds for processes to finish their step and save after a signal; a second signal ends them at once."""
_STOPPED = (128 + signal.SIGTERM, 128 + signal.SIGINT, -signal.SIGTERM, -signal.SIGINT)


class RankInfo(NamedTuple):
    """Rank of a process among all processes of a run (`rank`) and among those of its machine (`local_rank`)."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0


def rank_info_from_environment() -> RankInfo:
    """Read this process's rank from torchrun's or SLURM's variables; a world of one without both.

    Raises UserError for variables that contain no valid rank, and if SLURM started several tasks without the address
    of the first process.
    """
    environment = os.environ
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return _read_rank_info("RANK", "WORLD_SIZE", "LOCAL_RANK" if "LOCAL_RANK" in environment else "RANK")
    if _num_slurm_tasks() > 1:
        if not environment.get("MASTER_ADDR"):
            raise UserError(
                "SLURM started several tasks but MASTER_ADDR is not set; export MASTER_ADDR=<first host> and "
                "MASTER_PORT, or start torchrun under srun (docs/manual/processes.md)"
            )
        environment.setdefault("MASTER_PORT", "29500")
        return _read_rank_info("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
    return RankInfo()


def rendezvous_address() -> tuple[str, int]:
    """Return host and port of the first process. Raises UserError if they are not set, or for an invalid port."""
    if not os.environ.get("MASTER_ADDR") or "MASTER_PORT" not in os.environ:
        raise UserError("MASTER_ADDR and MASTER_PORT must be the address at which the first process can be reached")
    return os.environ["MASTER_ADDR"], _read_number("MASTER_PORT", minimum=1, maximum=65535)


def launched_world_size() -> int | None:
    """Return the number of processes that a launcher (torchrun, SLURM, ours) started, or None without one."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return _read_number("WORLD_SIZE", minimum=1)
    return _num_slurm_tasks() if _num_slurm_tasks() > 1 else None


def prints_first() -> bool:
    """Return True for the one process of a run that says what it begins: the first, or `launch` before it."""
    rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0"
    return "SIGHTLINE_LAUNCHED" not in os.environ and rank == "0"


def count_local_processes(size: int) -> int:
    """Count the processes of a run of `size` on this machine, as its launcher states; all of them where it does not."""
    for variable in ("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE"):
        if os.environ.get(variable, "").isdecimal():
            return min(size, int(os.environ[variable]))
    return size


def resolve_num_processes(num_processes: int | None) -> int:
    """Return the number of processes to launch for `--processes`: 1 if none is given, or under a launcher.

    Raises UserError for a number that is not positive, or not the launcher's.
    """
    if num_processes is not None and num_processes < 1:
        raise UserError(f"--processes: found {num_processes}, allowed is at least 1")
    launched = launched_world_size()
    if launched is not None and num_processes not in (None, launched):
        raise UserError(f"--processes {num_processes}: the launcher started {launched}; leave --processes out")
    return 1 if launched is not None else num_processes or 1


def launch(arguments: Sequence[str], num_processes: int) -> int:
    """Run `sightline <arguments>` in `num_processes` processes and return their common exit code.

    If one process fails, the others are stopped, and its message is printed once. A signal reaches all of them. No
    process and no file is left behind. If this process itself is killed, its child processes remove its folder, and if
    they are killed with it, the next launch does.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    with (
        process_folder(LAUNCH) as folder,
        _environment_of_children(num_processes, str(folder)),
    ):
        try:
            flags = ["--traceback"] if "--traceback" in sys.argv else []
            elastic_launch(_make_settings(num_processes, str(folder)), sys.executable)(
                "-m", "sightline", *arguments, *flags
            )
        except SignalException as error:
            return _report(_read_failures(folder), [], stopped_by=int(error.sigval))
        except ChildFailedError as error:
            exits = [(rank, failure.exitcode) for rank, failure in sorted(error.failures.items())]
            return _report(_read_failures(folder), exits)
    return 0


def _make_settings(num_processes: int, folder: str) -> LaunchConfig:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig

    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=0.1,
        logs_specs=DefaultLogsSpecs(log_dir=folder),
    )


@contextlib.contextmanager
def _environment_of_children(num_processes: int, folder: str) -> Iterator[None]:
    """Set what processes inherit: share of the cores, launcher and its folder, time to save after a signal.

    Later children of this process, which no launcher follows, have its own environment.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    before = dict(os.environ)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable // num_processes)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(_GRACE_S))
    os.environ |= {"SIGHTLINE_LAUNCHED": str(os.getpid()), "SIGHTLINE_LAUNCH_FOLDER": folder}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _read_failures(folder: Path) -> list[Failure]:
    """Read the failures that the processes reported, causes first, each by time."""
    failures = [failure for path in folder.rglob("error.json") if (failure := read_failure(path)) is not None]
    return sorted(failures, key=lambda failure: (failure.is_consequence, failure.time_s))


def _report(failures: Sequence[Failure], exits: Iterable[tuple[int, int]], stopped_by: int | None = None) -> int:
    """Print the cause, if any, and return the exit code that fits it.

    A process's report on its own failure has priority; then a process that was killed, then one that ended without a
    report, then reports of other processes on it. Anything else is a requested stop.
    """
    if failures and not failures[0].is_consequence:
        sys.stderr.write(f"error: {failures[0].message}\n")
        return failures[0].exit_code
    if stopped_by is not None:
        return 128 + stopped_by
    failed = {rank: code for rank, code in exits if code not in (*_STOPPED, 0)}
    if failures:  # processes that lost another one ended with exit code 1, and reported it
        failed = {rank: code for rank, code in failed.items() if code != 1}
    killed = {rank: code for rank, code in failed.items() if code < 0}
    if killed or failed:
        sys.stderr.write(f"error: {_describe_exit(killed or failed)}; the others were stopped\n")
    elif failures:
        sys.stderr.write(f"error: {failures[0].message}\n")
    else:
        return next((abs(code) % 128 + 128 for _, code in exits if code in _STOPPED), 1)
    return 1


def _describe_exit(codes: Mapping[int, int]) -> str:
    rank, code = next(iter(codes.items()))
    if code > 0:
        return f"process {rank} ended with exit code {code} and no message"
    name = signal.Signals(-code).name
    hint = {
        "SIGKILL": " (out of memory?)",
        "SIGABRT": " (SIGHTLINE_DEBUG_COLLECTIVES=1 shows whether the processes disagree)",
    }.get(name, "")
    return f"process {rank} was ended by {name}{hint}"


def _read_rank_info(rank: str, size: str, local_rank: str) -> RankInfo:
    """Read the rank from these environment variables."""
    num_processes = _read_number(size, minimum=1)
    return RankInfo(
        _read_number(rank, maximum=num_processes - 1),
        num_processes,
        _read_number(local_rank, maximum=num_processes - 1),
    )


def _num_slurm_tasks() -> int:
    """Return the number of tasks of this process's SLURM step; 1 outside of one, where SLURM sets the number, too."""
    return _read_number("SLURM_NTASKS", minimum=1) if {"SLURM_NTASKS", "SLURM_STEP_ID"} <= os.environ.keys() else 1


def _read_number(name: str, *, minimum: int = 0, maximum: int | None = None) -> int:
    text = os.environ.get(name, "")
    is_allowed = (
        text.isdecimal() and len(text) < 10 and minimum <= int(text) and (maximum is None or int(text) <= maximum)
    )
    if not is_allowed:
        allowed = f"from {minimum}" + ("" if maximum is None else f" to {maximum}")
        raise UserError(f"environment variable {name}: found '{text}', allowed is a whole number {allowed}")
    return int(text)


def exit_with_parent(parent: int, *, folder: str | None = None) -> None:
    """End this process soon after its parent process (by pid) has ended; the parent may have ended already.

    `folder` is what a launcher would have removed.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        try:
            if folder is not None:
                remove_process_folder(Path(folder), LAUNCH)
                remove_own_folder()
        finally:
            os._exit(1)

    threading.Thread(target=watch, name="follow-parent", daemon=True).start()
