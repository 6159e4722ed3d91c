"""`sightline faults`: plant faults in small runs, and measure whether the doctor finds them and names their causes."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from sightline.commands.prove import FaultsOptions
from sightline.contract.errors import UserError
from sightline.contract.schema import suggest
from sightline.runs.run_directory import collect_environment, write_document, write_file
from sightline.verbs.output import print_note, show_table
from sightline.workbench.faults.catalog import FAULTS, HEALTHY, FaultCase, HealthyCase
from sightline.workbench.faults.scoreboard import HealthyRun, describe_row, make_document, summarise, write_page
from sightline.workbench.faults.trial import Alarm, Trial, run_healthy, run_trial

_HEALTHY_SEEDS = 5
"""Runs of a healthy case for each seed of a fault."""


def faults(options: FaultsOptions) -> int:
    """List the cases, or run some and print what the doctor finds; exit code 1 for a missed fault or a false alarm."""
    by_id: dict[str, HealthyCase] = {case.id: case for case in (*FAULTS, *HEALTHY)}
    for word in options.cases:
        if word not in by_id:
            raise UserError(f"faults: there is no case '{word}'{suggest(word, by_id)}; `sightline faults` lists them")
    if not (options.cases or options.all or options.healthy):
        _list_cases()
        return 0
    chosen = [by_id[word] for word in options.cases]
    chosen += [*FAULTS, *HEALTHY] if options.all else list(HEALTHY) if options.healthy else []
    for unwatched in [case for case in chosen if isinstance(case, FaultCase) and case.needs_watch]:
        print_note(f"{unwatched.id}: needs sightline.watch, which looks into plain PyTorch loops; left out")
        chosen.remove(unwatched)
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
        command = " ".join(["sightline", *options.command_line()])
        write_file(options.write, write_page(document, command=command, commit=commit))
    is_good = document["found"] == document["injected"] and not document["false_errors"] + document["false_warnings"]
    return 0 if is_good else 1


def _list_cases() -> None:
    rows = [
        (case.id, case.bench, case.title, case.cause + (" (needs sightline.watch)" if case.needs_watch else ""))
        for case in FAULTS
    ]
    show_table("faults", ("case", "bench", "fault", "true cause"), rows, unbroken="case")
    show_table("healthy runs", ("case", "bench", "odd, but legal"), [(c.id, c.bench, c.title) for c in HEALTHY])
    print_note("sightline faults O3 O21 runs these; --all runs every case, --healthy the healthy runs")


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
        results = run(_run_case, keys)
        for case, count in zip(cases, counts, strict=True):
            yield case, list(itertools.islice(results, count))


def _run_case(key: tuple[str, int]) -> Trial | tuple[Alarm, ...]:
    """Run a case by its id with a seed: the trial of a fault, or the alarms of a healthy run."""
    name, seed = key
    case = next(case for case in (*FAULTS, *HEALTHY) if case.id == name)
    return run_trial(case, seed=seed) if isinstance(case, FaultCase) else run_healthy(case, seed=seed)


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
