"""Loops compiled for the CPU by numba, and their threads; every caller has a torch form for where numba is not.

A kernel is a plain function of arrays that starts with two numbers, `first` and `last`: the rows it is to do. Rows are
independent, so the answer has the same bits for any number of threads. Threads are Python's, not numba's: kernels let
go of the interpreter's lock, and a second pool of OpenMP threads beside torch's would make both slow. A kernel copies
and adds arrays by loops: for `a[:] = b` numba compiles its message about unequal shapes too, which takes 2 s.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, update_wrapper
from pathlib import Path
from types import FunctionType
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import profiler

__all__ = ["NumbaKernel", "can_use_numba", "compute_seconds", "cpu_autocast_dtype", "numba_kernel", "run_parallel"]


class NumbaKernel:
    """A function that numba compiles at its first call, keeping the result on disk; `plain` is the uncompiled one.

    Without numba a call runs the uncompiled one: slow, for kernels that have no torch form.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.plain = function
        self._machine_code: Callable[..., Any] | None = None
        update_wrapper(self, function)

    def __call__(self, *arguments: Any) -> Any:
        return (self.machine_code if _has_numba() else self.plain)(*arguments)

    @property
    def machine_code(self) -> Callable[..., Any]:
        """What numba made of it. Kernels that it calls by name are compiled into it.

        They have to stand in the same file: numba's copy on disk is made anew when that file changes, and no other.
        """
        if self._machine_code is None:
            with _compiling().timed():
                importlib.import_module("numba")
            _listen()
            called = {
                name: value.machine_code
                for name in self.plain.__code__.co_names
                if isinstance(value := self.plain.__globals__.get(name), NumbaKernel)
            }
            function = FunctionType(self.plain.__code__, {**self.plain.__globals__, **called}, self.plain.__name__)
            update_wrapper(function, self.plain)
            self._machine_code = _kept(function)
        return self._machine_code


def numba_kernel(function: Callable[..., Any]) -> NumbaKernel:
    """Marks a kernel. No fast-math: sums are taken in the order written, so that every machine rounds alike."""
    return NumbaKernel(function)


def _jit(**options: Any) -> Callable[..., Callable[..., Any]]:
    import numba

    return cast(Callable[..., Callable[..., Any]], numba.njit(nogil=True, error_model="numpy", **options))


def _kept(function: FunctionType) -> Callable[..., Any]:
    """The kernel, with its machine code on disk; a warning says so where numba finds no folder that it can write.

    numba keeps machine code beside the package, or in the user's cache folder where the package is read-only. That
    folder begins with what was compiled when the package was installed.
    """
    try:
        kernel = _jit(cache=True)(function)
    except RuntimeError:
        _warn_of_no_cache()
        return _jit()(function)
    source = Path(function.__code__.co_filename)
    installed, stats = source.parent / "__pycache__", getattr(kernel, "stats", None)  # none if numba is not to compile
    if stats and not os.environ.get("NUMBA_CACHE_DIR") and Path(stats.cache_path) != installed:
        _copy_machine_code(source.stem, installed, Path(stats.cache_path))
    return kernel


def _copy_machine_code(module: str, installed: Path, kept: Path) -> None:
    """Copies what `kept` lacks of a module's machine code; the index of a kernel last, for it names the other files."""
    for ending in ("nbc", "nbi"):
        for file in installed.glob(f"{module}.*.{ending}"):
            if not (kept / file.name).exists():
                part = kept / f"{file.name}.{os.getpid()}"
                shutil.copyfile(file, part)
                part.replace(kept / file.name)


@cache
def _warn_of_no_cache() -> None:
    sys.stderr.write(
        "warning: kernels are compiled at every start, since neither the package nor the home folder can be written;"
        " set NUMBA_CACHE_DIR to a folder that can\n"
    )


def compute_seconds() -> float:
    """This thread's processor time but for importing numba and compiling kernels: what a computation takes by itself.

    Kernels are compiled once on a machine, so a first run after an installation takes no more of it than others.
    """
    return time.thread_time() - _compiling().seconds


class _Compiling(threading.local):
    """What a thread has spent on compiling, kernels that a kernel calls within it."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.depth = 0
        self.started = 0.0

    def begin(self) -> None:
        self.depth += 1
        if self.depth == 1:
            self.started = time.thread_time()

    def end(self) -> None:
        self.depth -= 1
        if self.depth == 0:
            self.seconds += time.thread_time() - self.started

    @contextmanager
    def timed(self) -> Iterator[None]:
        self.begin()
        try:
            yield
        finally:
            self.end()


@cache
def _compiling() -> _Compiling:
    return _Compiling()


@cache
def _listen() -> None:
    """Have numba report when it begins and ends to compile; reading what it kept on disk, and running, are no part."""
    from numba.core import event

    class Listener(event.Listener):
        def on_start(self, event: Any) -> None:
            _announce()
            _compiling().begin()

        def on_end(self, event: Any) -> None:
            _compiling().end()

    event.register("numba:compile", Listener())


@cache
def _announce() -> None:
    """One line on a terminal, before the first kernel that this machine has no machine code of yet."""
    if sys.stderr.isatty():
        sys.stderr.write("compiling kernels for this CPU, once after an installation\n")


def cpu_autocast_dtype() -> torch.dtype | None:
    """The format to which autocast lowers matrix products on the CPU; None outside of it."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None


def can_use_numba(*tensors: Tensor, extra_dtype: torch.dtype | None = None) -> bool:
    """Whether kernels can take these tensors: numba is installed, and all are on the CPU, in float32 or all in float64.

    Tensors in the format `extra_dtype`, which the caller widens, may stand beside those in float32. Under torch.compile
    never: kernels are opaque to it, and it fuses the torch forms by itself.
    """
    if torch.compiler.is_compiling() or not _has_numba():
        return False
    dtypes = {tensor.dtype for tensor in tensors}
    if extra_dtype is not None and torch.float32 in dtypes:
        dtypes -= {extra_dtype}
    return dtypes in ({torch.float32}, {torch.float64}) and all(tensor.device.type == "cpu" for tensor in tensors)


def run_parallel(kernel: Callable[..., Any], num_rows: int, *arguments: Any) -> None:
    """`kernel(first, last, *arguments)` over all rows, dealt to as many threads as torch has; waits for all of them.

    An exception in one thread is raised here after the others have ended. A profiler sees it under the kernel's name.
    """
    if profiler._is_profiler_enabled:
        with profiler.record_function(f"numba::{kernel.__module__.removeprefix('sightline.')}.{kernel.__name__}"):
            return _in_threads(kernel, num_rows, *arguments)
    return _in_threads(kernel, num_rows, *arguments)


def _in_threads(kernel: Callable[..., Any], num_rows: int, *arguments: Any) -> None:
    count = max(1, min(torch.get_num_threads(), num_rows))
    bounds = [num_rows * part // count for part in range(count + 1)]
    # The calling thread takes the last part: with one thread no pool is made at all.
    parts = list(itertools.pairwise(bounds[:-1]))
    pool = _pool(os.getpid(), torch.get_num_threads()) if parts else None
    others = [pool.submit(kernel, *part, *arguments) for part in parts if pool is not None]
    try:
        kernel(bounds[-2], bounds[-1], *arguments)
    finally:
        failures = [other.exception() for other in others]
    for failure in failures:
        if failure is not None:
            raise failure


@cache
def _pool(process: int, size: int) -> ThreadPoolExecutor:
    """One pool per process: a forked child has none of its parent's threads."""
    return ThreadPoolExecutor(size, thread_name_prefix="sightline-kernel")


@cache
def _has_numba() -> bool:
    return importlib.util.find_spec("numba") is not None
