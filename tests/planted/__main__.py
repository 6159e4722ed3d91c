"""Plant faults in small runs, and measure whether the doctor finds them and names their causes.

Without arguments the cases are listed. A case is run up to the first moment in which the doctor raises an error or a
warning that the same run without the fault does not raise. Healthy runs that only look odd must raise none. Exit code 0
if every fault was found and no alarm was false.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from sightline.contract.schema import suggest
from sightline.runs.run_directory import collect_environment, write_document, write_file
from sightline.verbs.output import print_note, show_table
from tests.planted.cases import CASES, run_case
from tests.planted.catalog import FAULTS, HEALTHY, FaultCase, HealthyCase
from tests.planted.scoreboard import HealthyRun, describe_row, make_document, summarise, write_page
from tests.planted.trial import Alarm, Trial

_HEALTHY_SEEDS = 5
"""Runs of a healthy case for each seed of a fault."""


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; a wrong word exits with code 2."""
    parser = argparse.ArgumentParser("python -m tests.planted", description=__doc__)
    parser.add_argument("cases", metavar="CASE", nargs="*", help="cases to run: O3 O21")
    parser.add_argument("--all", action="store_true", help="run every case, and the healthy runs")
    parser.add_argument("--healthy", action="store_true", help="run the healthy runs")
    parser.add_argument(
        "--seeds", metavar="N", type=int, default=1, help="seeds of each fault, healthy runs have five times as many"
    )
    parser.add_argument("--workers", metavar="N", type=int, default=1, help="processes that run cases side by side")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the result as JSON")
    parser.add_argument("--write", metavar="FILE.md", type=Path, help="write a page with the score by true cause")
    options = parser.parse_args(words)
    for word in options.cases:
        if word not in CASES:
            parser.error(f"there is no case '{word}'{suggest(word, CASES)}; without a case they are listed")
    if min(options.seeds, options.workers) < 1:
        parser.error("--seeds and --workers must be at least 1")
    return options


def main() -> None:
    """List the cases, or run some and print what the doctor finds; exit code 1 for a missed fault or a false alarm."""
    options = parse(sys.argv[1:])
    chosen = [CASES[word] for word in options.cases]
    chosen += [*FAULTS, *HEALTHY] if options.all else list(HEALTHY) if options.healthy else []
    if not chosen:
        _list_cases()
        sys.exit(0)
    trials: list[tuple[FaultCase, Trial]] = []
    runs: list[HealthyRun] = []
    for case, results in _run_cases(chosen, options.seeds, options.workers):
        if isinstance(case, FaultCase):
            trials += [(case, trial) for trial in results]
            _print_trials(case, results, is_verbose=bool(options.cases))
        else:
            runs += [HealthyRun(case, seed, alarms) for seed, alarms in enumerate(results)]
            _print_healthy(case, results)
    document = make_document(trials, runs)
    _show_rows(document)
    print_note(summarise(document))
    write_document(options.json, document)
    if options.write is not None:
        commit = str(collect_environment().get("commit") or "unknown")[:8]
        command = " ".join(["python -m tests.planted", *sys.argv[1:]])
        write_file(options.write, write_page(document, command=command, commit=commit))
    is_good = document["found"] == document["injected"] and not document["false_errors"] + document["false_warnings"]
    sys.exit(0 if is_good else 1)


def _list_cases() -> None:
    rows = [(case.id, case.bench, case.title, case.cause) for case in FAULTS]
    show_table("faults", ("case", "bench", "fault", "true cause"), rows, unbroken="case")
    show_table("healthy runs", ("case", "bench", "odd, but legal"), [(c.id, c.bench, c.title) for c in HEALTHY])
    print_note("python -m tests.planted O3 O21 runs these; --all runs every case, --healthy the healthy runs")


def _run_cases(
    cases: Sequence[HealthyCase], num_seeds: int, num_workers: int
) -> Iterator[tuple[HealthyCase, list[Any]]]:
    """Yield each case with the results of its seeds, in order; several processes run seeds side by side."""
    counts = [num_seeds * (1 if isinstance(case, FaultCase) else _HEALTHY_SEEDS) for case in cases]
    keys = [(case.id, seed) for case, count in zip(cases, counts, strict=True) for seed in range(count)]
    with contextlib.ExitStack() as stack:
        run: Callable[..., Iterator[Any]] = map
        if num_workers > 1:
            context = multiprocessing.get_context("spawn")
            run = stack.enter_context(ProcessPoolExecutor(num_workers, context, torch.set_num_threads, (1,))).map
        results = run(run_case, keys)
        for case, count in zip(cases, counts, strict=True):
            yield case, list(itertools.islice(results, count))


def _print_trials(case: FaultCase, trials: Sequence[Trial], *, is_verbose: bool) -> None:
    """Print the results of a fault's seeds; with `is_verbose` also all that the doctor prints."""
    print_note(f"{case.id}, {case.bench}: {case.title} (true cause: {case.cause})")
    for trial in trials:
        if is_verbose and trial.seed == 0 and trial.is_found:
            print_note("\n".join(f"  {line}" for alarm in trial.alarms for line in alarm.text.split("\n")))
        place = "the true cause is not named" if trial.rank is None else f"the true cause is number {trial.rank}"
        found = f"found at the moment '{trial.moment}', {place}" if trial.is_found else f"MISSED {trial.crash}".strip()
        print_note(f"  seed {trial.seed}: {found}; {trial.seconds:.1f} s of CPU")


def _print_healthy(case: HealthyCase, alarms_by_seed: Sequence[tuple[Alarm, ...]]) -> None:
    """Print the number of false alarms of a healthy case, and each kind of them once."""
    false = [alarm for alarms in alarms_by_seed for alarm in alarms]
    print_note(f"{case.id}, {case.bench}: {case.title}: {len(alarms_by_seed)} runs, {len(false)} false alarms")
    for alarm in {alarm.key: alarm for alarm in false}.values():
        print_note("\n".join(f"  {line}" for line in alarm.text.split("\n")))


def _show_rows(document: Mapping[str, Any]) -> None:
    rows = [(r["id"], r["bench"], r["title"], *describe_row(r), r["cause"]) for r in document["cases"]]
    columns = ("case", "bench", "fault", "", "moment", "CPU s", "place", "true cause")
    if rows:
        show_table("faults", columns, rows, unbroken="case", droppable=("fault", "true cause"))


if __name__ == "__main__":
    main()
