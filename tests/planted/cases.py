"""Cases by their ids, in a module that processes started afresh can import: they cannot import a `__main__`."""

from __future__ import annotations

from collections.abc import Mapping

from tests.planted.catalog import FAULTS, HEALTHY, FaultCase, HealthyCase
from tests.planted.trial import Alarm, Trial, run_healthy, run_trial

CASES: Mapping[str, HealthyCase] = {case.id: case for case in (*FAULTS, *HEALTHY)}


def run_case(key: tuple[str, int]) -> Trial | tuple[Alarm, ...]:
    """Run a case by its id with a seed: the trial of a fault, or the alarms of a healthy run."""
    name, seed = key
    case = CASES[name]
    return run_trial(case, seed=seed) if isinstance(case, FaultCase) else run_healthy(case, seed=seed)
