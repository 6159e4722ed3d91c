"""Environment of a run: versions, machine and git commit, in plain values."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

_PACKAGES = (
    "sightline",
    "torch",
    "numpy",
    "scipy",
    "numba",
    "pydantic",
    "PyYAML",
    "h5py",
    "pillow",
    "safetensors",
    "scikit-learn",
)


def collect_environment() -> dict[str, Any]:
    """Collect the environment of a run (versions, machine, git commit), in plain values."""
    import torch  # readers of run directories do without

    packages = {package: read_version(package) for package in _PACKAGES}
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command_line": list(sys.argv),
        "directory": os.getcwd(),
        "versions": {"python": platform.python_version(), **packages, "cuda": torch.version.cuda},
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "cpu": read_processor(),
        "num_cores": os.cpu_count(),
        "num_usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "gpus": _list_gpus(),
        "git": _read_git_state(Path(__file__).resolve().parents[2]),
    }


@functools.cache
def read_version(package: str) -> str | None:
    """Read the version of an installed package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def read_processor() -> str:
    """Read the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def describe_int8_products() -> str:
    """Say whether an x86 processor multiplies 8-bit numbers by instructions of their own; nothing of others."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), None)
    if flags is None:
        return ""
    return "with VNNI" if {"avx512_vnni", "avx_vnni"} & set(flags) else "without VNNI"


def _list_gpus() -> list[dict[str, Any]]:
    import torch

    if not torch.cuda.is_available():
        return []
    properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [{"name": gpu.name, "memory_bytes": gpu.total_memory} for gpu in properties]


def _read_git_state(root: Path) -> dict[str, Any] | None:
    """Return the commit of the project's repository and whether tracked files differ; None if `root` is not one."""
    top = _run_git(root, "rev-parse", "--show-toplevel")
    commit = _run_git(root, "rev-parse", "HEAD")
    if top is None or commit is None or Path(top).resolve() != root:
        return None
    return {"commit": commit, "is_dirty": bool(_run_git(root, "status", "--porcelain", "--untracked-files=no"))}


def _run_git(root: Path, *arguments: str) -> str | None:
    """Run git and return its output, None if it fails; it takes no locks, so it never disturbs the user's git."""
    try:
        result = subprocess.run(
            ["git", "-C", str(root), *arguments],
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
