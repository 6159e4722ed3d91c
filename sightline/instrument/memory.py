"""Peak memory of the tensors on a device while something runs, and a bound for what is built."""

from __future__ import annotations

import itertools
import math
import os
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from sightline.contract.errors import UserError


def measure_peak(run: Callable[[], object], device: torch.device) -> int:
    """Measure by how many bytes the tensors on a device rise while `run` runs."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    return peak_rise(profiler.profiler.kineto_results.events(), device)


def peak_rise(events: Iterable[Any], device: torch.device) -> int:
    """Sum the changes of a device's memory in the order of time, and return the largest rise, in bytes."""
    kind = device.type.upper()
    changes = [event for event in events if event.name() == "[memory]" and event.device_type().name == kind]
    changes.sort(key=lambda event: event.start_ns())
    return max(0, *itertools.accumulate((event.nbytes() for event in changes), initial=0))


def measure_machine() -> int:
    """Return the bytes of this machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


_EMPTY = ("empty", "zeros", "ones", "full", "rand", "randn")
_FACTORIES = {
    getattr(getattr(torch.ops.aten, name), "memory_format" if name == "empty" else "default") for name in _EMPTY
}
"""Operations that make a tensor of the size that is their first argument."""


class MemoryBound(TorchDispatchMode):
    """Context in which tensors of the CPU that are made of a size alone take `max_bytes` at most, while they live.

    All parameters are made so. What is made is the same as without the context. Raises UserError before a tensor that
    would be too much.
    """

    def __init__(self, max_bytes: int) -> None:
        super().__init__()
        self._max_bytes, self._num_bytes = max_bytes, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function not in _FACTORIES or getattr(kwargs.get("device"), "type", "cpu") != "cpu":
            return function(*args, **kwargs)
        num_bytes = math.prod(map(int, args[0])) * (kwargs.get("dtype") or torch.get_default_dtype()).itemsize
        if self._num_bytes + num_bytes > self._max_bytes:
            raise UserError(
                f"its tensors would take {(self._num_bytes + num_bytes) / 1e9:,.3g} GB or more, this machine has "
                f"{self._max_bytes / 1e9:,.3g} GB of memory"
            )
        made: Tensor = function(*args, **kwargs)
        self._num_bytes += num_bytes
        weakref.finalize(made.untyped_storage(), self._forget, num_bytes)
        return made

    def _forget(self, num_bytes: int) -> None:
        self._num_bytes -= num_bytes
