"""Peak memory of the tensors on a device while something runs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


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
