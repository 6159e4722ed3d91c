"""What keeps a run from starting on a quiet machine keeps it from starting on a busy one."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Iterator

import pytest

from tests.planted.catalog import FAULTS
from tests.planted.planting import Planter
from tests.planted.trial import list_alarms

KINDS = ("L1", "L6", "L7", "L9", "N2", "N10", "N11", "O6", "O8", "D3")
"""Losses, layers, axes and data that are wrong, each an error of the checks with which a training starts."""
NUM_BUSY, NUM_RUNS = 8, 10


def _be_busy() -> None:
    while True:
        pass


@contextlib.contextmanager
def busy_machine(count: int) -> Iterator[None]:
    """Processes that compute all the time; ended at the end."""
    processes = [multiprocessing.get_context("spawn").Process(target=_be_busy, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def list_errors(case: str) -> set[str]:
    """Return the codes of the errors with which a training of a fault is refused at its start."""
    fault = next(fault for fault in FAULTS if fault.id == case)
    with Planter() as planter:
        fault.plant_into(planter)
        moments = list_alarms(fault.bench, planter, seed=0)
        with contextlib.closing(moments):
            alarms = next(found for moment, found in moments if moment == "start")
    return {alarm.code for alarm in alarms if alarm.severity == "error"}


@pytest.mark.parametrize("case", KINDS)
def test_a_refusal_does_not_depend_on_other_programs(case: str) -> None:
    expected = list_errors(case)
    assert expected, "nothing keeps it from starting on a quiet machine"
    with busy_machine(NUM_BUSY):
        found = [list_errors(case) for _ in range(NUM_RUNS)]
    assert found == [expected] * NUM_RUNS
