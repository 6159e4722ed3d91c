"""Pictures of priors and assignments: what they show is where it is, and colours differ for every reader."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from sightline.areas.detect.assignment_pictures import (
    BOX_COLORS,
    LEVEL_COLORS,
    ImageBoxes,
    show_assignments,
    show_matching,
    show_priors,
)
from sightline.areas.detect.fcos import FCOS
from sightline.areas.detect.retinanet import MaxIoU
from sightline.ops.boxes.priors import BACKGROUND, IGNORED, PRESETS, make_anchors, make_points
from sightline.parts.boxes.assigner import Assignment
from sightline.parts.boxes.assignment_report import compare_assigners, report_assignment

MAPS, STRIDES = [(48, 64), (24, 32)], [8, 16]
POINTS = make_points(MAPS, STRIDES)
ANCHORS = make_anchors(MAPS, STRIDES, PRESETS["retinanet"])
BLACK = np.zeros((384, 512, 3), dtype=np.uint8)
BOXES = torch.tensor([[40.0, 40, 140, 140], [200.5, 200.5, 203, 203], [300, 40, 400, 140]])
HIDDEN = torch.tensor([False, False, True])
IMAGE = ImageBoxes(BOXES, HIDDEN, torch.tensor([0, 1, 0]), ("cup", "spoon"))
RED, GREY = (230, 45, 30), (160, 166, 174)


def spread(pixels: np.ndarray, color: tuple[int, ...]) -> list[int]:
    """Left, top, right, bottom of what has a colour."""
    rows, columns = np.nonzero((pixels == color).all(axis=2))
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


def test_a_box_between_all_points_is_crossed_in_red_and_the_others_are_not() -> None:
    """The nearest points to (201.75, 201.75) lie at 196 and 204: outside of a box of 2.5 pixels."""
    (fcos,), reports = show_assignments(BLACK, POINTS, IMAGE, {"fcos": FCOS()})
    assert reports["fcos"]["unmatched_boxes"] == [1]
    assert reports["fcos"]["box_px"] == [100.0, 2.5, -1.0]
    left, top, right, bottom = spread(fcos.pixels[198:384], RED)
    assert (left, top) >= (198, 0)
    assert right <= 206 + 60, "the name, which is to the right"
    assert bottom <= 206 - 198
    assert (fcos.pixels[40, 40:139] == BOX_COLORS[0]).all()
    counts = [reports["fcos"][f"num_{kind}"] for kind in ("positive", "ignored")]
    expected = f"1 of 2 boxes not assigned; {counts[0]} of 3,840 points positive, {counts[1]} ignored"
    assert fcos.caption == expected


def test_every_positive_has_a_dot_in_the_colour_of_its_box_and_nothing_else_has_one() -> None:
    """Ignored points are grey, those of the background are not drawn; the sides of boxes lie between points."""
    boxes = torch.tensor([[42.0, 42, 140, 140], [202, 202, 300, 300], [302, 42, 400, 140]])
    (fcos,), reports = show_assignments(BLACK, POINTS, IMAGE._replace(boxes=boxes), {"fcos": FCOS()})
    matched = FCOS()(POINTS, boxes, HIDDEN).matched.tolist()
    assert {*matched} == {0, 1, BACKGROUND, IGNORED}
    for (x, y), box in zip(POINTS.coordinates.long().tolist(), matched, strict=True):
        drawn = tuple(fcos.pixels[y, x].tolist())
        if box >= 0:
            assert drawn == BOX_COLORS[box]
        elif box == IGNORED:
            assert drawn == GREY
        elif not (20 < y < 42 or 180 < y < 202):  # where the names are
            assert drawn not in (*BOX_COLORS, GREY)
    assert reports["fcos"]["num_ignored"] == matched.count(IGNORED)
    assert fcos.caption.startswith("all boxes assigned; ")


def test_boxes_with_anchors_of_one_cell_are_both_seen() -> None:
    """And a box that is only the second one of an anchor is assigned."""
    cell, none = 1000, torch.full((len(ANCHORS),), BACKGROUND)
    x, y = ANCHORS.centres[9 * cell].long().tolist()

    def assign(*_: Any, pairs: bool) -> Assignment:
        first, second = none.clone(), none.clone()
        first[9 * cell] = 0
        (second if pairs else first)[9 * cell + 1 - pairs] = 1
        return Assignment(first, (first >= 0).long(), second if pairs else None)

    assigners = {"two anchors": partial(assign, pairs=False), "a pair": partial(assign, pairs=True)}
    pictures, reports = show_assignments(BLACK, ANCHORS, IMAGE, assigners)
    for picture in pictures:
        assert reports[picture.name]["positives_per_box"] == [1, 1, 0]
        assert tuple(picture.pixels[y, x].tolist()) == BOX_COLORS[1]
        assert (picture.pixels[y - 6 : y + 7, x - 6 : x + 7] == BOX_COLORS[0]).all(axis=2).any()
        assert picture.caption.startswith("all boxes assigned; ")


def test_of_many_boxes_those_that_are_not_assigned_are_named_first() -> None:
    many = torch.tensor(
        [[8.0 + 60 * (i % 8), 8 + 60 * (i // 8), 48 + 60 * (i % 8), 48 + 60 * (i // 8)] for i in range(48)]
    )

    def list_named(count: int) -> list[int]:
        """The boxes above which there is the ground of a caption, on a white photo."""
        boxes = ImageBoxes(many[:count], torch.zeros(count, dtype=torch.bool), torch.zeros(count).long(), ("cup",))
        [picture], _ = show_assignments(BLACK + 255, POINTS, boxes, {"fcos": leave_out_9})
        dark = (picture.pixels < 60).all(axis=2)
        corners = many[8:count, :2].long().tolist()  # captions of the first row are in or below their boxes
        grounds = [dark[top - 8 : top - 3, left + 4 : left + 20] for left, top in corners]
        return [box for box, ground in enumerate(grounds, start=8) if ground.mean() > 0.4]

    def leave_out_9(priors: Any, boxes: torch.Tensor, is_ignored: torch.Tensor) -> Assignment:
        matched = FCOS()(priors, boxes, is_ignored)
        return matched._replace(matched=torch.where(matched.matched == 9, BACKGROUND, matched.matched))

    assert list_named(16) == [*range(8, 16)]
    named = list_named(48)
    assert 9 in named
    assert 8 not in named, "one that is assigned"
    assert 8 < len(named) < 40


def test_what_is_matched_to_a_prediction_is_drawn_with_it() -> None:
    """Two predictions for three boxes: one is not assigned. An ignored box is not counted in the pairs."""
    image = ImageBoxes(BOXES, torch.tensor([True, False, False]), torch.tensor([0, 1, 0]), ("cup", "spoon"))
    predicted = torch.tensor([[10.0, 250, 60, 300], [300, 40, 400, 90]])
    picture, figures = show_matching(BLACK, image, predicted, (torch.tensor([1]), torch.tensor([1])))
    assert figures == {"num_boxes": 2, "num_queries": 2, "iou": [0.5]}
    assert picture.caption == "1 of 2 boxes not assigned; one of 2 predictions each, IoU 0.50 to 0.50"
    assert spread(picture.pixels[198:384], RED)[0] >= 198
    color = (picture.pixels[:384] == BOX_COLORS[2]).all(axis=2)
    assert color[139, 300:400].all(), "its label"
    assert 0.3 < color[89, 302:398].mean() < 0.8, "dashed"
    assert not color[240:310].any()


def test_the_anchors_of_the_middle_cell_are_drawn_and_get_the_room_they_need() -> None:
    """The largest are of the third octave of 64, twice as high as wide; cell (12, 16) of stride 16 is at (264, 200)."""
    fine, coarse = show_priors(BLACK, ANCHORS, torch.zeros(0, 4))
    assert (fine.name, coarse.name) == ("stride 8", "stride 16")
    assert coarse.caption.startswith("24 x 32 cells; 9 anchors, roots of areas 64 to 102 px")
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
