"""Forms timed in turn within one run, and what their times say: medians, and the ratio of neighbours in time."""

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
"""A shorter call is repeated until one measurement takes as long: ten thousand ticks of the clock and more."""


@dataclass(frozen=True, slots=True)
class Seconds:
    """CPU time of the process, its threads and the processes it started that ended, and time on the wall, per call."""

    cpu: float
    wall: float


@dataclass(frozen=True, slots=True)
class Quartiles:
    """Median, and first and third quartile."""

    median: float
    low: float
    high: float

    @classmethod
    def from_values(cls, values: Sequence[float]) -> Quartiles:
        """Quartiles of the values themselves, interpolated between neighbours; a single value is all three.

        Source: Hyndman and Fan 1996, definition 7.
        """
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


def read_clocks() -> Seconds:
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)  # in microseconds; `os.times` counts hundredths of a second
    return Seconds(time.process_time() + ended.ru_utime + ended.ru_stime, time.perf_counter())


def interleave(
    runs: Mapping[str, Run], *, repeats: int, clocks: Callable[[], Seconds] = read_clocks
) -> dict[str, list[Seconds]]:
    """Seconds per call of each run: A B C, then C B A, and so on for `repeats` rounds, after a call of each unmeasured.

    A machine that slows down for a while so slows all of them, and none is always the one that finds the caches cold.
    """
    calls = {name: _calls_needed(run, clocks) for name, run in runs.items()}
    found: dict[str, list[Seconds]] = {name: [] for name in runs}
    order = list(runs)
    for _ in range(repeats):
        for name in order:
            found[name].append(_measure(runs[name], calls[name], clocks))
        order.reverse()
    return found


def ratios(baseline: Sequence[Seconds], found: Sequence[Seconds]) -> Quartiles:
    """How many times less CPU time than the baseline, round by round."""
    return Quartiles.from_values([before.cpu / after.cpu for before, after in zip(baseline, found, strict=True)])


def _calls_needed(run: Run, clocks: Callable[[], Seconds]) -> int:
    once = _measure(run, 1, clocks).cpu
    return max(1, math.ceil(ENOUGH_S / max(once, 1e-6)))


def _measure(run: Run, calls: int, clocks: Callable[[], Seconds]) -> Seconds:
    before = clocks()
    for _ in range(calls):
        run()
    after = clocks()
    return Seconds((after.cpu - before.cpu) / calls, (after.wall - before.wall) / calls)
