"""Command line of the benchmarks: chosen cases, their rows as a table and a document, and curves of growth."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import growth
from benchmarks.case import BenchmarkCase, BenchmarkResult
from benchmarks.memory import MemoryMeter
from benchmarks.runner import BenchmarkReport, Runner, describe_machine
from benchmarks.suites import SUITES, select_cases
from sightline.contract.errors import RunError, UserError
from sightline.runs.output_files import assert_writable, write_document, write_file
from sightline.verbs.output import print_note, show_table

COLUMNS = ("case", "times as fast as", "ratio (quartiles)", "CPU, theirs", "wall, theirs", "peak, theirs")
GROWTH = ("what", "along", "form", "value", "from, to", "grows as its power")
DESCRIPTION = """
Time implementations of the same computation against a baseline: ratios of CPU time, and peak memory. Their results are
compared first: exit code 1 if one differs from its baseline. Ratios are medians over the rounds, in which all
implementations take turns. An interrupted run keeps its finished rows, and ends with code 130.
"""


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; a wrong word exits with code 2."""
    parser = argparse.ArgumentParser("python -m benchmarks", description=DESCRIPTION)
    names = f"{', '.join(SUITES)} or all [all]"
    parser.add_argument("suites", metavar="SUITE", nargs="*", help=names)
    parser.add_argument("--case", metavar="PATTERN", help="run only cases whose name matches: knn_*, models/*step*")
    parser.add_argument("--repeats", metavar="N", type=int, default=5, help="rounds; each times all implementations")
    parser.add_argument("--threads", metavar="N", type=int, default=1, help="threads of every implementation")
    parser.add_argument("--quick", action="store_true", help="use tiny sizes, to test that the cases run")
    axes = "|".join((*growth.AXES, "all"))
    parser.add_argument("--grow", metavar=axes, help="measure how time and memory grow, for geometry and models")
    parser.add_argument("--svg", metavar="FILE", type=Path, help="draw the measurements of --grow")
    parser.add_argument("--keep-memory", action="store_true", help="let malloc keep freed memory, as a training does")
    parser.add_argument("--list", action="store_true", help="list the cases without running them")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the result as JSON")
    options = parser.parse_args(words)
    if min(options.repeats, options.threads) < 1:
        parser.error("--repeats and --threads must be at least 1")
    return options


def run(words: Sequence[str]) -> int:
    """Run a command line and return its exit code; an error is one line."""
    options = parse(words)
    try:
        return _run(options)
    except (UserError, RunError) as error:
        print_note(f"error: {error}")
        return 2 if isinstance(error, UserError) else 1


def _run(options: argparse.Namespace) -> int:
    grown = _list_grown_cases(options)
    cases = [grown_case.case for grown_case in grown] if options.grow else select_cases(options.suites, options.case)
    if options.list:
        print("".join(f"{case.name}  ({', '.join(form.name for form in case.forms)})\n" for case in cases), end="")  # noqa: T201
        return 0
    for option in ("json", "svg"):
        if (path := getattr(options, option)) is not None:
            assert_writable(path, option=f"--{option}")
    torch.set_num_threads(options.threads)
    report = BenchmarkReport()
    is_complete = _run_cases(cases, options, report)
    tiny = ", at tiny sizes instead of those in the names" if options.quick and not options.grow else ""
    show_table(f"medians of {options.repeats} rounds in turn{tiny}", COLUMNS, map(_format_row, report.results))
    if options.grow:
        rows = growth.panels(grown, report.results)
        show_table("growth", GROWTH, growth.describe_growth(rows))
        if options.svg is not None and any(panel for row in rows for panel in row):
            write_file(options.svg, growth.render_growth(rows))
    if not is_complete:
        saved = f"; they are in {options.json}" if options.json else ""
        print_note(f"interrupted after {len(report.results)} rows{saved}")
        return 130
    return 1 if report.mismatches else 0


def _list_grown_cases(options: argparse.Namespace) -> list[growth.GrowthCase]:
    if options.grow is None:
        if options.svg is not None:
            raise UserError("--svg draws what --grow measures; give --grow points, neighbours, batch or all")
        return []
    if options.case is not None:
        raise UserError("--case chooses cases of a suite, and --grow has its own cases; leave out one of them")
    return growth.growth_cases(options.suites, options.grow, is_quick=options.quick)


def _run_cases(cases: Sequence[BenchmarkCase], options: argparse.Namespace, report: BenchmarkReport) -> bool:
    """Run the cases and return True if all were run; the document is written in any case, with the finished rows."""
    machine = describe_machine(num_threads=options.threads)
    is_quick = options.quick and not options.grow  # with --grow, quick means smaller values, not other sizes
    is_complete = False
    try:
        with MemoryMeter(num_threads=options.threads) as meter:
            runner = Runner(repeats=options.repeats, is_quick=is_quick, meter=meter, keeps_memory=options.keep_memory)
            runner.run(cases, report, print_note)
        is_complete = True
    except KeyboardInterrupt:
        pass  # the finished rows remain valid
    finally:
        settings: dict[str, Any] = {
            "repeats": options.repeats,
            "is_quick": options.quick,
            "is_complete": is_complete,
            "keeps_memory": options.keep_memory,
            "mismatches": report.mismatches,
            "missing": report.missing,
            "quick_sizes": {result.name: dict(result.size) for result in report.results} if is_quick else {},
        }
        rows = [result.to_dict() for result in report.results]
        write_document(options.json, {"cases": rows, "environment": machine | settings})
    return is_complete


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
