"""Each loop of the table under `watch`: its bug is named by a cause of its own, and correct loops raise nothing."""

from __future__ import annotations

import pytest
import torch

from tests.doctor.cases import ROWS
from tests.doctor.row import Row
from tests.marks import long_but

OF_OTHERS = ("loop/loaders", "loop/mirrored", "loop/planted")
"""Rows whose loaders are checked, and those that tests/runtime/test_watch.py asks for their steps."""
LOOPS = {row.id: row for row in ROWS if row.kind == "loop" and not row.id.startswith(OF_OTHERS)}
KEPT = [name for name in LOOPS if name.count("/") == 1 or name.startswith(("loop/blind", "loop/healthy"))]
KEPT += [name for name, row in LOOPS.items() if name.startswith("loop/odd") and (row.has_bug or row.twin)]
MISSED = (
    *("M8/short_cosine", "M8/exchanged_gan_targets", "M8/divergence_with_a_wrong_sign", "losses/own_backward"),
    *("losses/boxes_of_two_formats", "losses/padding_with_targets", "losses/weights_of_frequent_classes"),
    *("losses/weights_of_frequent_pixels", "losses/images_of_two_divisions", "losses/angles_without_wrapping"),
    *("geometry/anchors_by_center", "geometry/targets_by_width", "geometry/segments_by_length"),
    *("geometry/targets_in_a_giou_loss", "geometry/quaternions_by_squares", "geometry/poses_by_distances"),
    *("geometry/logarithms_of_all", "geometry/logarithms_of_other_holes", "geometry/logarithms_without_a_gradient"),
)
"""Loops of whose bugs nothing is known: most need the targets, which `sightline.check` is given."""


@pytest.mark.parametrize("name", long_but(KEPT, LOOPS))
def test_a_loop_has_its_result(name: str) -> None:
    row: Row = LOOPS[name]
    torch.manual_seed(0)
    alarms = [alarm for alarm in row.run(0, frozenset()) if alarm.severity != "note"]
    is_named = bool({cause for alarm in alarms for cause in alarm.causes} & set(row.causes))
    assert is_named == (row.has_bug and name.removeprefix("loop/") not in MISSED), alarms
    assert row.has_bug or not alarms
