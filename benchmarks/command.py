"""`sightline bench`: time implementations of the same computation against each other, as ratios."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sightline.commands.look import BenchOptions
from sightline.contract.errors import UserError
from sightline.draw.charts import render_svg
from sightline.runs.run_directory import write_document, write_file
from sightline.verbs.output import print_note, show_table
from sightline.workbench.bench.case import (
    CHECKOUT,
    BenchmarkCase,
    BenchmarkResult,
    CaseLibrary,
    Growth,
    GrowthCase,
    load_library,
)
from sightline.workbench.bench.memory import MemoryMeter
from sightline.workbench.bench.runner import BenchmarkReport, Runner, describe_machine

COLUMNS = ("case", "times as fast as", "ratio (quartiles)", "CPU, theirs", "wall, theirs", "peak, theirs")
GROWTH = ("what", "along", "form", "value", "from, to", "grows as its power")


def bench(options: BenchOptions, *, home: str = "sightline.workbench.bench") -> int:
    """Run the chosen cases of a home and show a row per implementation; return 1 if a result differs from its baseline.

    An interrupted run shows and saves the rows that it has, and returns 130.
    """
    library = load_library(home)
    growth = _growth_cases(library, options)
    cases = (
        [growth_case.case for growth_case in growth]
        if options.grow
        else library.select(options.suites, options.pattern)
    )
    if options.lists_only:
        sys.stdout.write("".join(f"{case.name}  ({', '.join(form.name for form in case.forms)})\n" for case in cases))
        _note_checkout(library)
        return 0
    torch.set_num_threads(options.threads)
    report = BenchmarkReport()
    is_complete = _run_cases(cases, options, report, home)
    tiny = ", at tiny sizes instead of those in the names" if options.is_quick and not options.grow else ""
    show_table(f"medians of {options.repeats} rounds in turn{tiny}", COLUMNS, map(_format_row, report.results))
    if library.growth is not None and options.grow:
        _show_growth(library.growth, growth, report, options.svg)
    _note_checkout(library)
    if not is_complete:
        print_note(
            f"interrupted after {len(report.results)} rows" + (f"; they are in {options.json}" if options.json else "")
        )
        return 130
    return 1 if report.mismatches else 0


def _growth_cases(library: CaseLibrary, options: BenchOptions) -> list[GrowthCase]:
    if options.svg is not None and options.grow is None:
        raise UserError("bench: --svg draws what --grow measures; give --grow points, neighbours, batch or all")
    if options.grow is None:
        return []
    if options.pattern is not None:
        raise UserError("bench: --case chooses cases of a suite, and --grow has its own cases; leave out one of them")
    return library.grown_cases(options.suites, options.grow, is_quick=options.is_quick)


def _run_cases(cases: Sequence[BenchmarkCase], options: BenchOptions, report: BenchmarkReport, home: str) -> bool:
    """Run the cases and return True if all were run; the document is written in any case, with the finished rows."""
    machine = describe_machine(num_threads=options.threads)
    is_quick = options.is_quick and not options.grow  # with --grow, quick means smaller values, not other sizes
    is_complete = False
    try:
        with MemoryMeter(num_threads=options.threads, home=home) as meter:
            runner = Runner(repeats=options.repeats, is_quick=is_quick, meter=meter, keeps_memory=options.keeps_memory)
            runner.run(cases, report, print_note)
        is_complete = True
    except KeyboardInterrupt:
        pass  # the finished rows remain valid
    finally:
        settings: dict[str, Any] = {
            "repeats": options.repeats,
            "is_quick": options.is_quick,
            "is_complete": is_complete,
        }
        settings |= {"keeps_memory": options.keeps_memory}
        settings |= {"mismatches": report.mismatches, "missing": report.missing}
        settings |= {"quick_sizes": {result.name: dict(result.size) for result in report.results} if is_quick else {}}
        rows = [result.to_dict() for result in report.results]
        write_document(options.json, {"cases": rows, "environment": machine | settings})
    return is_complete


def _show_growth(curves: Growth, growth: Sequence[GrowthCase], report: BenchmarkReport, svg: Path | None) -> None:
    rows = curves.make_panels(growth, report.results)
    show_table("growth", GROWTH, curves.describe(rows))
    if svg is not None and any(panel for row in rows for panel in row):
        write_file(svg, render_svg(rows))


def _note_checkout(library: CaseLibrary) -> None:
    if library.growth is None:
        print_note(CHECKOUT)


def _format_row(result: BenchmarkResult) -> Sequence[str]:
    ratio = result.ratio
    return (
        result.name,
        result.baseline,
        f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})",
        f"{format_time(result.seconds.cpu)}, {format_time(result.baseline_seconds.cpu)}",
        f"{format_time(result.seconds.wall)}, {format_time(result.baseline_seconds.wall)}",
        f"{_format_memory(result.peak_bytes)}, {_format_memory(result.baseline_peak_bytes)}",
    )


def format_time(seconds: float) -> str:
    """Format seconds with three digits in s, ms or µs."""
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def _format_memory(size: int | None) -> str:
    if size is None:
        return "?"
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.1f} KiB"
