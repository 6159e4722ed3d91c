"""Runner of benchmark cases: agreement of the implementations, interleaved times, then peak memory."""

from __future__ import annotations

import dataclasses
import math
import os
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from benchmarks.case import BenchmarkCase, BenchmarkResult, Implementation, Quartiles, Run, Seconds
from benchmarks.memory import MemoryMeter
from sightline.engine.device.freed_memory import keep_freed_memory
from sightline.runs.environment import collect_environment, read_version

ENOUGH_S = 0.02
"""Minimum duration of a measurement (shorter calls are repeated): more than ten thousand clock ticks."""
_PEERS = ("numba", "scikit-learn", "faiss-cpu", "fpsample")
"""Packages whose versions a report states beside those of a run."""


@dataclass
class BenchmarkReport:
    """Report of a benchmark: results so far, variants with other numbers, and missing packages."""

    results: list[BenchmarkResult] = dataclasses.field(default_factory=list)
    mismatches: list[str] = dataclasses.field(default_factory=list)
    missing: list[str] = dataclasses.field(default_factory=list)


class Runner:
    """Runner of cases with `repeats` rounds, on torch's number of threads.

    With `keeps_memory` malloc keeps freed memory for the rest of the process, as in a training run: large computations
    then have fewer page faults.
    """

    def __init__(self, *, repeats: int, is_quick: bool, meter: MemoryMeter, keeps_memory: bool = False) -> None:
        self.repeats = repeats
        self.is_quick = is_quick
        self.meter = meter
        self.keeps_memory = keeps_memory

    def run(self, cases: Sequence[BenchmarkCase], report: BenchmarkReport, note: Callable[[str], None]) -> None:
        """Run the cases and add each result to the report, so that an interrupted run keeps its results."""
        if self.keeps_memory:
            keep_freed_memory()
        for case in cases:
            note(case.name)
            present = self._list_present(case, report, note)
            for result in self._compare(case, present, report, note) if present else ():
                report.results.append(result)

    def _list_present(
        self, case: BenchmarkCase, report: BenchmarkReport, note: Callable[[str], None]
    ) -> list[Implementation]:
        for form in case.forms:
            if form.needs is not None and not form.is_present:
                subject = case.name if form is case.baseline else f"the row '{form.name}'"
                line = f"{subject} needs the package '{form.needs}': pip install '.[peers]' pycocotools"
                if line not in report.missing:
                    report.missing.append(line)
                    note(line)
        return [form for form in case.variants if form.is_present and case.baseline.is_present]

    def _compare(
        self,
        case: BenchmarkCase,
        present: Sequence[Implementation],
        report: BenchmarkReport,
        note: Callable[[str], None],
    ) -> Iterator[BenchmarkResult]:
        sized = case.smaller() if self.is_quick else case
        with ExitStack() as stack:
            inputs = sized.inputs()
            faults = _find_exact_disagreements(sized, present, inputs)
            agreeing = [form for form in present if form.name not in faults]
            runs = {form.name: stack.enter_context(form.open(inputs)) for form in (case.baseline, *agreeing)}
            faults |= _find_disagreements(case, agreeing, inputs, runs)
            for name, fault in faults.items():
                runs.pop(name, None)
                line = f"{case.name}/{name}: other numbers than {case.baseline.name}: {fault}"
                report.mismatches.append(line)
                note(f"FAILED {line}")
            if len(runs) == 1:
                return
            seconds = interleave(runs, repeats=self.repeats)
        peaks = {name: self.meter.peak_bytes(case.name, name, is_quick=self.is_quick) for name in runs}
        base = case.baseline.name
        for name in [name for name in runs if name != base]:
            yield BenchmarkResult(
                name=f"{case.name}/{name}",
                baseline=base,
                ratio=ratios(seconds[base], seconds[name]),
                seconds=_median_seconds(seconds[name]),
                baseline_seconds=_median_seconds(seconds[base]),
                peak_bytes=peaks[name],
                baseline_peak_bytes=peaks[base],
                size=sized.size,
            )


def describe_machine(*, num_threads: int) -> dict[str, Any]:
    """Describe the machine of a measurement: versions, CPU, threads, commit and load average."""
    environment = collect_environment()
    keys = ("time", "versions", "platform", "cpu", "num_cores", "num_usable_cores", "memory_bytes", "git")
    return {name: environment[name] for name in keys} | {
        "versions": environment["versions"] | {package: read_version(package) for package in _PEERS},
        "num_threads": num_threads,
        "load_average": list(os.getloadavg()),
    }


def _find_exact_disagreements(case: BenchmarkCase, present: Sequence[Implementation], inputs: Any) -> dict[str, str]:
    """Describe how variants differ on inputs that are insensitive to rounding, if the case has them; by name."""
    if case.exactly is None:
        return {}
    narrow = case.exactly.narrow(inputs)
    with case.baseline.open(narrow) as run:
        expected = run()
    faults = {}
    for form in present:
        with form.open(narrow) as run:
            faults[form.name] = case.exactly.agrees(narrow, expected, run())
    return {name: fault for name, fault in faults.items() if fault is not None}


def _find_disagreements(
    case: BenchmarkCase, present: Sequence[Implementation], inputs: Any, runs: dict[str, Run]
) -> dict[str, str]:
    """Describe how variants differ from the baseline, by name. Calls each once, which also warms it up."""
    expected = runs[case.baseline.name]()
    faults = {form.name: form.compare(inputs, expected, runs[form.name]()) for form in present}
    return {name: fault for name, fault in faults.items() if fault is not None}


def _median_seconds(seconds: Sequence[Seconds]) -> Seconds:
    return Seconds(
        Quartiles.from_values([item.cpu for item in seconds]).median,
        Quartiles.from_values([item.wall for item in seconds]).median,
    )


# --- times -----------------------------------------------------------------------------------------------------------


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


def ratios(baseline: Sequence[Seconds], variant: Sequence[Seconds]) -> Quartiles:
    """Compute the speed-up over the baseline per round: CPU time of the baseline / CPU time."""
    return Quartiles.from_values(
        [
            baseline_seconds.cpu / variant_seconds.cpu
            for baseline_seconds, variant_seconds in zip(baseline, variant, strict=True)
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
