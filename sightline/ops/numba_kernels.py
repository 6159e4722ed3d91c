"""CPU kernels compiled by numba, and their threads; every caller has a torch form for use without numba.

A kernel is a plain function of arrays whose first two parameters, `first` and `last`, are its range of rows. Rows are
independent, so the result has the same bits for any number of threads. Threads are Python's, not numba's: kernels
release the interpreter's lock, and a second pool of OpenMP threads next to torch's would make both slow. A kernel
copies and adds arrays by loops: for `a[:] = b` numba compiles its message about unequal shapes too, which takes 2 s.
It takes the columns of a table one by one, `a = table[0]`: after `a, b = table`, its loops are not vectors.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import itertools
import logging
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

from sightline.ops.waits import is_transformed

_ENTRIES_AT_ONCE = 2**18
"""Numbers of a widened part: 1 MB in float32."""
_NUMBA_DTYPES = ({torch.float32}, {torch.float64})
LANES = 8
"""Numbers of a vector: one register of AVX2 in float32."""


class NumbaKernel:
    """Function that numba compiles at its first call and caches on disk; `plain` is the uncompiled one.

    Without numba a call runs the uncompiled one: slow, for kernels that have no torch form.
    """

    def __init__(self, function: Callable[..., Any], **options: bool) -> None:
        self.plain = function
        self._options = options
        self._machine_code: Callable[..., Any] | None = None
        update_wrapper(self, function)

    def __call__(self, *arguments: Any) -> Any:
        if not _has_numba():
            return self.plain(*arguments)
        if self._machine_code is None:
            with _collector_paused():
                return self.machine_code(*arguments)
        return self._machine_code(*arguments)

    @property
    def machine_code(self) -> Callable[..., Any]:
        """The compiled function (cached). Kernels that it calls by name are compiled into it.

        They must be in the same file: numba's copy on disk is renewed when that file changes, not when another does.
        """
        if self._machine_code is None:
            with _get_compile_timer().measure():
                importlib.import_module("numba")
            _register_listener()
            called = {
                name: value.machine_code
                for name in self.plain.__code__.co_names
                if isinstance(value := self.plain.__globals__.get(name), NumbaKernel)
            }
            function = FunctionType(self.plain.__code__, {**self.plain.__globals__, **called}, self.plain.__name__)
            update_wrapper(function, self.plain)
            self._machine_code = _compile_cached(function, **self._options)
        return self._machine_code


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Context without collections of garbage, which cost more than importing numba and loading machine code."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def numba_kernel(function: Callable[..., Any]) -> NumbaKernel:
    """Decorate a kernel. No fast-math: sums are taken in the order written, so that every machine rounds alike."""
    return NumbaKernel(function)


def inlined_kernel(function: Callable[..., Any]) -> NumbaKernel:
    """Decorate a small function that kernels call often: written into each of them, it takes no time to be called."""
    return NumbaKernel(function, forceinline=True)


def _jit(**options: Any) -> Callable[..., Callable[..., Any]]:
    import numba

    return cast(Callable[..., Callable[..., Any]], numba.njit(nogil=True, error_model="numpy", **options))


def _compile_cached(function: FunctionType, **options: bool) -> Callable[..., Any]:
    """Compile a kernel with its machine code cached on disk; warn if numba finds no writable folder.

    numba caches machine code next to the package, or in the user's cache folder if the package is read-only. That
    folder starts with the machine code that was compiled at installation.
    """
    try:
        kernel = _jit(cache=True, **options)(function)
    except RuntimeError:
        _warn_of_no_cache()
        return _jit(**options)(function)
    source = Path(function.__code__.co_filename)
    installed, stats = source.parent / "__pycache__", getattr(kernel, "stats", None)  # absent if numba is disabled
    if stats and not os.environ.get("NUMBA_CACHE_DIR") and Path(stats.cache_path) != installed:
        _copy_machine_code(source.stem, installed, Path(stats.cache_path))
    return kernel


def _copy_machine_code(module: str, installed: Path, cache: Path) -> None:
    """Copy a module's machine code that `cache` lacks; the index of a kernel last, as it names the other files."""
    for ending in ("nbc", "nbi"):
        for file in installed.glob(f"{module}.*.{ending}"):
            if not (cache / file.name).exists():
                temporary = cache / f"{file.name}.{os.getpid()}"
                shutil.copyfile(file, temporary)
                temporary.replace(cache / file.name)


@cache
def _warn_of_no_cache() -> None:
    sys.stderr.write(
        "warning: kernels are compiled at every start, since neither the package nor the home folder can be written;"
        " set NUMBA_CACHE_DIR to a folder that can\n"
    )


def compute_seconds() -> float:
    """Return this thread's CPU time without importing numba and compiling kernels: the time of a computation.

    Kernels are compiled once per machine, so a first run after an installation does not seem slower.
    """
    return time.thread_time() - _get_compile_timer().seconds


class _CompileTimer(threading.local):
    """Timer of the CPU time that a thread spends on compiling, nested kernels included."""

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
    def measure(self) -> Iterator[None]:
        self.begin()
        try:
            yield
        finally:
            self.end()


@cache
def _get_compile_timer() -> _CompileTimer:
    return _CompileTimer()


@cache
def _register_listener() -> None:
    """Register a listener for numba's compilations; reading cached machine code, and running it, do not count."""
    from numba.core import event

    class Listener(event.Listener):
        def on_start(self, event: Any) -> None:
            _announce_compilation()
            _get_compile_timer().begin()

        def on_end(self, event: Any) -> None:
            _get_compile_timer().end()

    event.register("numba:compile", Listener())


@cache
def _announce_compilation() -> None:
    """Tell the user at a terminal, once per process, that kernels without a cached copy are being compiled."""
    if sys.stderr.isatty():
        sys.stderr.write("compiling kernels for this CPU, once after an installation\n")


def cpu_autocast_dtype(values: Tensor) -> torch.dtype | None:
    """Return the dtype to which autocast lowers products of `values` on the CPU; None for float64 and outside of it."""
    is_lowered = torch.is_autocast_enabled("cpu") and values.dtype != torch.float64
    return torch.get_autocast_dtype("cpu") if is_lowered else None


def can_use_numba(*tensors: Tensor, extra_dtype: torch.dtype | None = None, of_indices: bool = False) -> bool:
    """Return True if kernels can take these tensors: numba is installed, and all are on the CPU, of float32 or float64.

    Tensors of `extra_dtype`, which the caller widens, may be mixed with float32. A kernel `of_indices` needs none.
    Under torch.compile, torch.export and the transforms of torch.func, and while TorchScript records, the result is
    False: kernels are opaque to them.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or is_transformed() or not _has_numba():
        return False
    dtypes = {tensor.dtype for tensor in tensors}
    if extra_dtype is not None and torch.float32 in dtypes:
        dtypes -= {extra_dtype}
    return (dtypes in _NUMBA_DTYPES or (of_indices and not dtypes)) and all(tensor.is_cpu for tensor in tensors)


def widen_in_parts(values: Tensor, dtype: torch.dtype, offset: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
    """Yield parts of the samples in `values` (B, N, C), cast to `dtype`, plus `offset` (B, 1, C) if given.

    Kernels read bfloat16 so: a part stays in the cache, and its memory is used again. Values that need no cast and no
    offset are one part, themselves.
    """
    if values.dtype == dtype and offset is None:
        yield slice(0, len(values)), values
        return
    at_once = max(torch.get_num_threads(), _ENTRIES_AT_ONCE // max(1, values[:1].numel()))
    scratch = values.new_empty((min(at_once, len(values)), *values.shape[1:]), dtype=dtype)
    for start in range(0, max(1, len(values)), at_once):
        part = slice(start, start + at_once)
        wide = scratch[: len(values[part])].copy_(values[part])
        yield part, wide if offset is None else wide.add_(offset[part])


def run_parallel(kernel: Callable[..., Any], num_rows: int, *arguments: Any) -> None:
    """Run `kernel(first, last, *arguments)` over all rows, divided among torch's number of threads; wait for all.

    An exception in one thread is raised here after the others have ended. A profiler sees it under the kernel's name.
    """
    if profiler._is_profiler_enabled:
        with profiler.record_function(f"numba::{kernel.__module__.removeprefix('sightline.')}.{kernel.__name__}"):
            return _run_threads(kernel, num_rows, *arguments)
    return _run_threads(kernel, num_rows, *arguments)


def _run_threads(kernel: Callable[..., Any], num_rows: int, *arguments: Any) -> None:
    count = min(torch.get_num_threads(), num_rows)
    if count <= 1:
        kernel(0, num_rows, *arguments)
        return
    bounds = [num_rows * part // count for part in range(count + 1)]
    pool = _pool(os.getpid(), torch.get_num_threads())
    futures = [pool.submit(kernel, *part, *arguments) for part in itertools.pairwise(bounds[:-1])]
    try:  # the calling thread takes the last part
        kernel(bounds[-2], bounds[-1], *arguments)
    finally:
        failures = [other.exception() for other in futures]
    for failure in failures:
        if failure is not None:
            raise failure


@cache
def _pool(process: int, size: int) -> ThreadPoolExecutor:
    """Return the thread pool of a process: a forked child has none of its parent's threads."""
    return ThreadPoolExecutor(size, thread_name_prefix="sightline-kernel")


@cache
def _has_numba() -> bool:
    return importlib.util.find_spec("numba") is not None


@cache
def report_missing_numba() -> None:
    """Log one line, once, if numba is not installed."""
    if importlib.util.find_spec("numba") is None:
        logging.getLogger("sightline.ops").warning(
            "sightline: numba is not installed, so operators on the CPU run in torch: slower, with the same results; "
            "pip install 'sightline[ops]'"
        )
