"""Logs of these programs are not read, nor what `check` measures on a copy that it trains."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from sightline.doctor.evidence.data import statistics
from sightline.doctor.watch import watch as watch_room


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("sightline")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


@pytest.fixture(autouse=True)
def _barely_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy is trained for a twentieth of its second, whatever the budget: what it leaves is not what it learns."""
    monkeypatch.setattr(statistics, "_MAX_TRAIN_S", 0.05)


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a first step nothing is measured that costs passes; in the programs of test_cells.py it is."""
    monkeypatch.setattr(watch_room, "BUDGET_S", 0.0)
