"""Counted work: by hand, the same whatever a clock says, and of operators that torch has no formula for."""

from __future__ import annotations

import contextlib
import itertools
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from sightline.doctor import evidence
from sightline.instrument.work import WorkCounter
from tests.planted.catalog import FAULTS
from tests.planted.planting import Planter
from tests.planted.trial import list_alarms


def test_work_is_calls_numbers_and_products() -> None:
    first, second = torch.ones(2, 3), torch.ones(3, 4)
    with WorkCounter() as work:
        (first @ second).transpose(0, 1)  # a view is no work
    assert (work.num_calls, work.num_numbers, work.num_products) == (1, 8, 24)
    with WorkCounter() as more:
        (first @ second).relu()
    assert (more.num_calls, more.num_numbers, more.num_products) == (2, 16, 24)
    assert more.nominal_s > work.nominal_s > 0


@pytest.mark.filterwarnings("ignore")
def test_attention_with_a_function_of_scores_is_run() -> None:
    query = torch.randn(1, 1, 16, 16)
    expected = flex_attention(query, query, query)
    with WorkCounter() as work:
        found = flex_attention(query, query, query)
    assert torch.equal(found, expected)
    assert work.num_calls > 0


def start_with_clock(case: str, step_s: float | None, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return the codes of errors at a start; each look at the clock of the budget is `step_s` later than the last."""
    fault = next(fault for fault in FAULTS if fault.id == case)
    with Planter() as planter, monkeypatch.context() as patch:
        if step_s is not None:
            patch.setattr(evidence, "time", SimpleNamespace(process_time=itertools.count(0, step_s).__next__))
        fault.plant_into(planter)
        with contextlib.closing(list_alarms(fault.bench, planter, seed=0)) as moments:
            alarms = next(found for moment, found in moments if moment == "start")
    return {alarm.code for alarm in alarms if alarm.severity == "error"}


def test_a_slow_clock_starts_no_run_that_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = start_with_clock("L9", None, monkeypatch)
    assert expected
    assert start_with_clock("L9", 5.0, monkeypatch) == expected
