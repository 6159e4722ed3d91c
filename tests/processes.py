"""Starting several processes of a test as a launcher would, and waiting for them with a limit."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_ranks(
    arguments: Sequence[str],
    num_processes: int,
    *,
    timeout_s: float = 120.0,
    is_slurm: bool = False,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run `python <arguments>` once per rank with a launcher's environment; fails with what they printed."""
    port = free_port()
    children = [
        subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=os.environ
            | (_slurm if is_slurm else _launcher)(rank, num_processes)
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
            | dict(environment or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(num_processes)
    ]
    try:
        outputs = [child.communicate(timeout=timeout_s)[0] for child in children]
    finally:
        for child in children:
            child.kill()
    codes = [child.returncode for child in children]
    assert codes == [0] * num_processes, f"exit codes {codes}\n" + "\n".join(outputs)


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
