"""Each module and loop of the table: its bug is named by a cause of its own, and correct ones raise nothing."""

from __future__ import annotations

import logging
import random
import re
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sightline.doctor import evidence
from sightline.doctor.evidence.data import source, statistics
from tests.doctor.cases import ROWS
from tests.doctor.row import Row
from tests.doctor.rows import sound
from tests.marks import long_but

OF_OTHERS = ("loop/loaders", "loop/mirrored", "loop/planted", "loop/robust")
"""Loops whose loaders are checked, those that tests/runtime/test_watch.py asks for their steps, and for their bits."""
CASES = {row.id: row for row in ROWS if row.kind in ("loop", "module") and not row.id.startswith(OF_OTHERS)}
MISSED = (
    *("module/M7/one_direction", "module/M7/both_directions", "module/self_pairs", "module/boxes_of_two_formats"),
    *("module/nearest_other", "module/mask_of_bytes", "loop/M8/short_cosine", "loop/M8/exchanged_gan_targets"),
    *("loop/losses/boxes_of_two_formats", "loop/geometry/targets_in_a_giou_loss", "loop/geometry/poses_by_distances"),
    *("module/data/labels_of_other_samples", "module/data/numbers_of_other_samples"),  # a note: so are weak signals
    *(row for row in CASES if re.fullmatch(r"loop/drawn/\w+_drawn_once(_\w+)?", row)),  # notes: it may be meant
)
"""Rows whose cause is not named."""
FLAGGED = ("loop/odd/a_block_is_shared_on_purpose",)
"""Correct rows that may raise a false alarm today."""
FAMILIES = {
    **dict.fromkeys(("module/data", "module/losses", "module/model", "loop/run", "loop/methods", "loop/healthy"), 2),
    **dict.fromkeys(("module/odd", "module/robust", "module/reviewed", "loop/odd", "loop/blind"), 4),
}
"""Families of which one row of so many runs in `make test`, with its twin; of others one in eight."""


def _list_kept() -> set[str]:
    kept: set[str] = set()
    families: dict[str, list[Row]] = {}
    for row in CASES.values():
        family = row.id.rpartition("/")[0]
        if row.has_bug or not row.id.endswith(":ok"):
            families.setdefault(family, []).append(row)
    for family, rows in families.items():
        for row in rows[:: FAMILIES.get(family, 8)]:
            kept |= {row.id, row.twin} & CASES.keys()
    return kept


@pytest.fixture
def _clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow folders wait by a clock that nobody waits for; a quarter of a counted second teaches these networks.

    They wait thrice as long by it: the time for reading ends before all labels are read.
    """
    waited: list[float] = []
    monkeypatch.setattr(sound, "time", SimpleNamespace(sleep=waited.append))
    clocks = {"perf_counter": lambda: 3 * sum(waited), "thread_time": time.thread_time}
    monkeypatch.setattr(source, "time", SimpleNamespace(**clocks))
    monkeypatch.setattr(statistics, "_MAX_TRAIN_S", 0.25)


@pytest.mark.usefixtures("_clocks")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", long_but(_list_kept(), CASES))
def test_a_row_has_its_result(name: str, caplog: pytest.LogCaptureFixture) -> None:
    row = CASES[name]
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(0)
    alarms = [alarm for alarm in row.run(0, frozenset()) if alarm.severity in ("error", "warning")]
    is_named = bool({cause for alarm in alarms for cause in alarm.causes} & set(row.causes))
    assert is_named == (row.has_bug and name not in MISSED), alarms
    if not row.has_bug and name not in FLAGGED:
        assert alarms == []
        records = [each for each in caplog.records if each.name != evidence.__name__]  # it says how long a check takes
        assert [each.getMessage() for each in records if each.levelno >= logging.WARNING] == []
