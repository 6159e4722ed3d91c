"""How often planted bugs are found over seeds, and what checks cost: what the tables of planted bugs have in common."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

from sightline.doctor.finding import Finding
from sightline.engine.build import TrainingSetup
from sightline.engine.distributed import World
from sightline.workbench.check.context import CHECKS, Context
from sightline.workbench.check.suite import all_checks
from tests.planted.catalog import FAULTS, FaultCase

__all__ = ["Bug", "case_table", "is_found", "list_findings", "print_alarms", "processor_time", "quick", "table"]

QUICK_S = 1.5  # what a step may take at the start of a training


class Bug(NamedTuple):
    """A planted fault, and the code of the check that must find it."""

    code: str
    case: FaultCase


def case_table(codes: Mapping[str, str]) -> dict[str, Bug]:
    """The cases by their titles, from their ids under the code of the check that must find them."""
    by_id = {case.id: case for case in FAULTS}
    bugs = [Bug(code, by_id[name]) for code, names in codes.items() for name in names.split()]
    return {bug.case.title: bug for bug in bugs}


def quick(built: TrainingSetup) -> Context:
    """As at the start of a training."""
    return Context(built, World(), QUICK_S)


def list_findings(context: Context, codes: Iterable[str]) -> list[Finding]:
    """What some checks find, without notes."""
    all_checks()
    return [each for code in codes for each in CHECKS[code](context) if each.severity != "note"]


def is_found(bug: Bug, planted: AbstractContextManager[TrainingSetup]) -> bool:
    """Whether the check of a bug finds it at the start of a training, with its cause among those that are named."""
    with planted as built:
        found = list_findings(quick(built), (bug.code,))
        return any(bug.case.cause in (each.cause, *each.alternatives) for each in found)


def processor_time(codes: Iterable[str], context: Context) -> dict[str, float]:
    """The processor time of each check, in seconds; what checks share is computed before, by the caller."""
    found = {}
    for code in codes:
        started = time.process_time()
        CHECKS[code](context)
        found[code] = time.process_time() - started
    return found


def table(bugs: Mapping[str, Bug], is_found: Callable[[Bug, int], bool], num_seeds: int) -> None:
    """Print, of so many seeds, with how many each bug is found."""
    sys.stdout.write(f"| planted bug | check | found, of {num_seeds} seeds |\n|---|---|---|\n")
    for name, bug in bugs.items():
        count = sum(is_found(bug, seed) for seed in range(num_seeds))
        sys.stdout.write(f"| {name} | `{bug.code}` | {count} |\n")
        sys.stdout.flush()


def print_alarms(runs: Iterable[tuple[str, Sequence[object]]]) -> None:
    """Print what was found in runs without a bug, and how many they are."""
    count = 0
    for name, found in runs:
        count += 1
        for each in found:
            sys.stdout.write(f"{name}: {each}\n")
    sys.stdout.write(f"{count} runs\n")
