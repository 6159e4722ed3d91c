"""Starting processes of a test: forked from one that has imported the package, or as a launcher would start them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import socket
import stat
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

from tests.limits import HANG_S

ROOT = Path(__file__).resolve().parents[1]
_PRELOADED = (
    "sightline.verbs.train",
    "tensorboard.compat.proto.event_pb2",
    "tensorboard.summary.writer.record_writer",
    "torch._dynamo",
    "tests.processes",
    "tests.preloaded",
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def forked(target: Callable[..., object], *arguments: object) -> BaseProcess:
    """A process that runs this, forked from one that has imported the package: seconds earlier than a new one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    process = context.Process(target=target, args=arguments)
    process.start()
    return process


@contextlib.contextmanager
def launched_as_forks(log: Path) -> Iterator[None]:
    """Inside, the processes of `--processes` are forked as `forked` does, for the same agent of torch; they print here.

    tests/runs/test_processes.py has new interpreters started.
    """
    from torch.distributed.launcher import api

    launch = api.elastic_launch
    forked(os.getpid).join()  # later ones too are forked from what starts here, with no variable of a launcher

    def launch_forks(settings: Any, program: str) -> Callable[..., object]:
        assert program == sys.executable
        settings.start_method = "forkserver"
        place = (str(log), os.getcwd(), dict(os.environ))
        return lambda *words: launch(settings, _run_launched)(list(words), *place)

    with mock.patch.object(api, "elastic_launch", launch_forks):
        yield


def _run_launched(words: list[str], log: str, folder: str, environment: Mapping[str, str]) -> None:
    own = {"SIGHTLINE_LAUNCHED": str(os.getppid())}  # with which a rank ends: the process that it is forked from
    os.environ |= dict(environment) | dict(os.environ) | own
    os.chdir(folder)
    _run_words(words, log)


def skip_sync() -> Callable[[int], None]:
    """Keep this process, and what it forks, from waiting for the disk; return the true `os.fsync`."""
    sync = os.fsync

    def sync_special(descriptor: int) -> None:
        mode = os.fstat(descriptor).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            sync(descriptor)  # a pipe is refused

    os.fsync = sync_special  # type: ignore[assignment]
    return sync


def run_ranks(
    arguments: Sequence[str],
    num_processes: int,
    *,
    timeout_s: float = HANG_S,
    is_slurm: bool = False,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run what `python <arguments>` would once per rank with a launcher's environment; fails with what they printed.

    The arguments are `-m MODULE ...` or `-c PROGRAM`, after `-W error` where warnings are errors.
    """
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    variables = _slurm if is_slurm else _launcher
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder) / f"{rank}.log" for rank in range(num_processes)]
        ranks = [variables(rank, num_processes) | shared | dict(environment or {}) for rank in range(num_processes)]
        children = [forked(_run, list(arguments), str(log), each) for log, each in zip(logs, ranks, strict=True)]
        for child in children:
            child.join(timeout_s)
        codes = [child.exitcode for child in children]  # None for one that still runs
        for child in children:
            child.kill()
        assert codes == [0] * num_processes, f"exit codes {codes}\n" + "\n".join(log.read_text() for log in logs)


def run_program(program: str) -> subprocess.CompletedProcess[str]:
    """Run what `python -c` would in the root of the checkout, in a session of its own, seconds earlier."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        process = forked(_run_program, program, str(out), str(err))
        process.join(HANG_S)
        code = process.exitcode
        process.kill()
        assert code is not None, out.read_text() + err.read_text()
        return subprocess.CompletedProcess(["-c", program], code, out.read_text(), err.read_text())


def _run_program(program: str, out: str, err: str) -> None:
    print_to(out, 1)
    print_to(err, 2)
    os.chdir(ROOT)
    sys.argv = ["-c"]
    exec(program, sys.modules["__main__"].__dict__)


def _run(arguments: Sequence[str], log: str, environment: Mapping[str, str]) -> None:
    os.chdir(ROOT)
    os.environ.update(environment)
    _run_words(arguments, log)


def _run_words(arguments: Sequence[str], log: str) -> None:
    import torch

    print_to(log)
    torch.set_num_threads(1)
    if arguments[:2] == ["-W", "error"]:
        warnings.simplefilter("error")
        arguments = arguments[2:]
    option, what, *rest = arguments
    if option == "-c":
        sys.argv = [option, *rest]
        exec(what, {"__name__": "__main__"})
    else:
        assert option == "-m", arguments
        sys.argv = [what, *rest]
        runpy.run_module(what, run_name="__main__", alter_sys=True)


def print_to(log: str, *descriptors: int) -> None:
    """Let this process and its children print to the end of a file; without descriptors, output and errors."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in descriptors or (1, 2):
        os.dup2(file, descriptor)


def _launcher(rank: int, size: int) -> dict[str, str]:
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}


def _slurm(rank: int, size: int) -> dict[str, str]:
    """As `srun -n SIZE` sets them."""
    return {
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "SLURM_NTASKS": str(size),
        "SLURM_STEP_ID": "0",
        "SLURM_JOB_ID": "7",
    }
