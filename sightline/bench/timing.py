"""Interleaved timing of implementations: quartiles, and ratios of neighbouring measurements."""

from __future__ import annotations

import math
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sightline.bench.case import Run

__all__ = ["Quartiles", "Seconds", "interleave", "ratios", "read_clocks"]

ENOUGH_S = 0.02
"""Minimum duration of a measurement (shorter calls are repeated): more than ten thousand clock ticks."""


@dataclass(frozen=True, slots=True)
class Seconds:
    """CPU time (process, threads and finished child processes) and wall time, in seconds per call."""

    cpu: float
    wall: float


@dataclass(frozen=True, slots=True)
class Quartiles:
    """Median, first and third quartile."""

    median: float
    low: float
    high: float

    @classmethod
    def from_values(cls, values: Sequence[float]) -> Quartiles:
        """Compute quartiles, interpolated between neighbouring values; a single value is all three.

        Source: Hyndman and Fan 1996, definition 7.
        """
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


def read_clocks() -> Seconds:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)  # in microseconds; `os.times` counts hundredths of a second
    return Seconds(time.process_time() + children.ru_utime + children.ru_stime, time.perf_counter())


def interleave(
    runs: Mapping[str, Run], *, repeats: int, clocks: Callable[[], Seconds] = read_clocks
) -> dict[str, list[Seconds]]:
    """Measure seconds per call of each run in the order A B C, C B A, ... for `repeats` rounds, after a warm-up.

    So a machine that slows down for a while slows all runs, and no run always meets cold caches.
    """
    calls = {name: _count_calls(run, clocks) for name, run in runs.items()}
    seconds: dict[str, list[Seconds]] = {name: [] for name in runs}
    order = list(runs)
    for _ in range(repeats):
        for name in order:
            seconds[name].append(_measure(runs[name], calls[name], clocks))
        order.reverse()
    return seconds


def ratios(baseline: Sequence[Seconds], found: Sequence[Seconds]) -> Quartiles:
    """Compute the speed-up over the baseline per round: CPU time of the baseline / CPU time."""
    return Quartiles.from_values(
        [
            baseline_seconds.cpu / variant_seconds.cpu
            for baseline_seconds, variant_seconds in zip(baseline, found, strict=True)
        ]
    )


def _count_calls(run: Run, clocks: Callable[[], Seconds]) -> int:
    once = _measure(run, 1, clocks).cpu
    return max(1, math.ceil(ENOUGH_S / max(once, 1e-6)))


def _measure(run: Run, calls: int, clocks: Callable[[], Seconds]) -> Seconds:
    start = clocks()
    for _ in range(calls):
        run()
    end = clocks()
    return Seconds((end.cpu - start.cpu) / calls, (end.wall - start.wall) / calls)
