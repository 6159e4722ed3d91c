"""`sightline faults`: plant faults in small runs, and measure whether the doctor finds them and names their causes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sightline.commands.prove import FaultsOptions
from sightline.contract.errors import UserError
from sightline.contract.schema import suggest
from sightline.faults.case import FaultCase, HealthyCase
from sightline.faults.catalog import FAULTS, HEALTHY
from sightline.faults.scoreboard import HealthyRun, Score, describe_trial, score_document, summarise, write_page
from sightline.faults.trial import run_healthy, run_trial
from sightline.runs.run_directory import collect_environment, write_document, write_file
from sightline.verbs.output import print_note, show_table

_HEALTHY_SEEDS = 5  # runs of a healthy case for each seed of a fault


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
    runnable = [case for case in chosen if not (isinstance(case, FaultCase) and case.needs_watch)]
    for case in chosen:
        if case not in runnable:
            print_note(f"{case.id}: needs sightline.watch, which looks into plain PyTorch loops; left out")
    is_verbose = not (options.all or options.healthy)
    scores = [_try_fault(case, options.seeds, is_verbose) for case in runnable if isinstance(case, FaultCase)]
    healthy = [case for case in runnable if not isinstance(case, FaultCase)]
    runs = [run for case in healthy for run in _run_healthy(case, options.seeds * _HEALTHY_SEEDS)]
    document = score_document(scores, runs)
    _show_scores(scores)
    print_note(summarise(document))
    write_document(options.json, document)
    if options.write is not None:
        commit = str(collect_environment().get("commit", ""))[:8]
        command = " ".join(["sightline", *options.command_line()])
        write_file(options.write, write_page(document, scores, command=command, commit=commit or "unknown"))
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


def _try_fault(case: FaultCase, num_seeds: int, is_verbose: bool) -> Score:
    """Run a fault with each seed; print its result, or with `is_verbose` all that the doctor prints."""
    score = Score(case, tuple(run_trial(case, seed=seed) for seed in range(num_seeds)))
    print_note(f"{case.id}, {case.bench}: {case.title} (true cause: {case.cause})")
    for trial in score.trials[: 1 if is_verbose else 0]:
        print_note("\n".join(f"  {line}" for alarm in trial.alarms for line in alarm.text.split("\n")))
    for trial in score.trials:
        verdict, moment, seconds, rank, code = describe_trial(trial)
        words = [f"at the moment '{moment}'", f"by {code}", f"place of the cause: {rank}"] if trial.is_found else [code]
        print_note(f"  seed {trial.seed}: {', '.join([verdict.upper(), *filter(None, words), f'{seconds} s of CPU'])}")
    return score


def _run_healthy(case: HealthyCase, num_seeds: int) -> list[HealthyRun]:
    runs = [HealthyRun(case, seed, run_healthy(case, seed=seed)) for seed in range(num_seeds)]
    false = [alarm for run in runs for alarm in run.alarms]
    print_note(f"{case.id}, {case.bench}: {case.title}: {len(runs)} runs, {len(false)} false alarms")
    for alarm in {alarm.key: alarm for alarm in false}.values():
        print_note("\n".join(f"  {line}" for line in alarm.text.split("\n")))
    return runs


def _show_scores(scores: Sequence[Score]) -> None:
    rows: list[tuple[Any, ...]] = [
        (score.case.id, score.case.bench, score.case.title, *describe_trial(trial)[:4], score.case.cause)
        for score in scores
        for trial in score.trials
    ]
    columns = ("case", "bench", "fault", "", "moment", "CPU s", "place", "true cause")
    if rows:
        show_table("faults", columns, rows, unbroken="case", droppable=("fault", "true cause"))
