"""Pictures of priors and assignments: what they show is where it is, and colours differ for every reader."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sightline.areas.detect.fcos import FCOS
from sightline.areas.detect.pictures import (
    LEVEL_COLORS,
    show_assignments,
    show_priors,
)
from sightline.areas.detect.retinanet import MaxIoU
from sightline.ops.boxes.priors import PRESETS, make_anchors, make_points
from sightline.parts.boxes.assignment_report import compare_assigners, report_assignment

MAPS, STRIDES = [(48, 64), (24, 32)], [8, 16]
POINTS = make_points(MAPS, STRIDES)
ANCHORS = make_anchors(MAPS, STRIDES, PRESETS["retinanet"])
BLACK = np.zeros((384, 512, 3), dtype=np.uint8)
BOXES = torch.tensor([[40.0, 40, 140, 140], [200.5, 200.5, 203, 203], [300, 40, 400, 140]])
HIDDEN = torch.tensor([False, False, True])
RED = (230, 45, 30)


def spread(pixels: np.ndarray, color: tuple[int, ...]) -> list[int]:
    """Left, top, right, bottom of what has a colour."""
    rows, columns = np.nonzero((pixels == color).all(axis=2))
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


def test_a_box_between_all_points_is_crossed_in_red_and_the_others_are_not() -> None:
    """The nearest points to (201.75, 201.75) lie at 196 and 204: outside of a box of 2.5 pixels."""
    (fcos,), reports = show_assignments(BLACK, POINTS, BOXES, HIDDEN, {"fcos": FCOS()})
    assert reports["fcos"]["unmatched_boxes"] == [1]
    assert reports["fcos"]["box_px"] == [100.0, 2.5, -1.0]
    drawn = fcos.pixels[:384]
    left, top, right, bottom = spread(drawn, RED)
    assert left >= 198
    assert top >= 198
    assert right <= 206
    assert bottom <= 206
    assert fcos.caption == f"{reports['fcos']['num_positive']} positives, 1 unmatched"


def test_every_positive_has_a_dot_of_its_level_at_its_place_and_nothing_else_has_one() -> None:
    (fcos,), _ = show_assignments(BLACK, POINTS, BOXES, HIDDEN, {"fcos": FCOS()})
    matched = FCOS()(POINTS, BOXES, HIDDEN).matched
    levels = [LEVEL_COLORS[level] for level in POINTS.prior_level.tolist()]
    for (x, y), color, is_positive in zip(
        POINTS.coordinates.long().tolist(), levels, (matched >= 0).tolist(), strict=True
    ):
        assert (tuple(fcos.pixels[y, x]) == color) == is_positive


def test_the_anchors_of_the_middle_cell_are_drawn_and_get_the_room_they_need() -> None:
    """The largest are of the third octave of 64, twice as high as wide; cell (12, 16) of stride 16 is at (264, 200)."""
    fine, coarse = show_priors(BLACK, ANCHORS, torch.zeros(0, 4))
    assert (fine.name, coarse.name) == ("stride 8", "stride 16")
    assert coarse.caption.startswith("24 x 32 cells, 9 anchors, roots of areas 64 to 102 px")
    reach = 64 * 2 ** (2 / 3) * 2**0.5 / 2
    expected = [264 - reach, 200 - reach, 264 + reach, 200 + reach]
    assert spread(coarse.pixels[:384], LEVEL_COLORS[1]) == pytest.approx(expected, abs=1)
    small = show_priors(BLACK[:64, :64], make_anchors([(4, 4)], [16], PRESETS["retinanet"]), torch.zeros(0, 4))[0]
    assert spread(small.pixels, LEVEL_COLORS[0])[2] >= 2 * reach


def test_assigners_are_compared_by_hand() -> None:
    """Two images: boxes of 10, 40 and 45 pixels with 1, 6 and 0 positives; an ignore region counts for nothing."""
    both = [
        {
            "box_px": [10.0, -1.0, 40.0],
            "positives_per_box": [1, 0, 6],
            "positives_per_level": [3, 4],
            "num_ambiguous": 2,
        },
        {"box_px": [45.0], "positives_per_box": [0], "positives_per_level": [0, 0], "num_ambiguous": 0},
    ]
    reports = [{**one, "unmatched_boxes": unmatched} for one, unmatched in zip(both, ([], [0]), strict=True)]
    assert compare_assigners({"one": reports}) == [
        {
            "assigner": "one",
            "boxes": 3,
            "unmatched": 1,
            "positives": 7,
            "ambiguous": 2,
            "per_level": [3, 4],
            "of_size": {"0-16": {"boxes": 1, "positives": 1.0}, "32-64": {"boxes": 2, "positives": 3.0}},
        }
    ]


def test_an_image_without_boxes_has_a_report() -> None:
    empty = report_assignment(MaxIoU()(ANCHORS, BOXES[:0], HIDDEN[:0]), ANCHORS, BOXES[:0], HIDDEN[:0])
    assert compare_assigners({"max_iou": [empty]})[0]["of_size"] == {}
