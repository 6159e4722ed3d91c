"""Boxes are drawn where they are, each kind in its own way."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from sightline.areas.detect.pictures import COLORS, show_detections
from sightline.draw.boxes import DrawnBox, Style, draw_boxes, name_class

RED = (250, 0, 0)


def black(height: int = 400, width: int = 500) -> np.ndarray:
    return np.zeros((height, width, 3), dtype=np.uint8)


def test_a_solid_box_covers_its_border_and_nothing_else() -> None:
    """Half-open pixels: a box of 20 to 60 ends in pixel 59."""
    drawn = draw_boxes(black(), [DrawnBox((20, 30, 60, 90), RED)])
    rows, columns = np.nonzero((drawn == RED).all(axis=2))
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (20, 59, 30, 89)
    assert not drawn[35:85, 25:55].any()
    assert not (drawn == RED).all(axis=2)[100:].any()


def test_ignored_regions_are_hatched_and_missed_boxes_dashed() -> None:
    hatched = draw_boxes(black(), [DrawnBox((20, 30, 120, 130), RED, style="hatched")])
    inside = (hatched[40:120, 30:110] == RED).all(axis=2)
    assert 0.05 < inside.mean() < 0.2
    dashed = draw_boxes(black(), [DrawnBox((20, 30, 120, 130), RED, style="dashed")])
    side = (dashed[30, 20:120] == RED).all(axis=1)
    assert 0.4 < side.mean() < 0.7


def test_boxes_beyond_the_image_and_of_no_size_are_no_fault() -> None:
    boxes = [
        DrawnBox((-50, -50, 900, 900), RED, "x", "hatched"),
        DrawnBox((10, 10, 10, 10), RED),
        DrawnBox((-9, -9, -5, -5), RED, "far"),
    ]
    assert draw_boxes(black(), boxes).shape == (400, 500, 3)


@pytest.mark.parametrize("style", ["solid", "dashed", "hatched", "crossed"])
def test_boxes_of_a_diverged_network_are_no_fault(style: Style) -> None:
    """Pillow visits every pixel of a line: one of 1e12 pixels took minutes. Only a corner of NaN has no place."""
    half = draw_boxes(black(), [DrawnBox((-1e12, 200, math.inf, 1e30), RED, style=style)])
    assert (half == RED).all(axis=2)[195:205].any()
    assert not half[:195].any()
    assert not draw_boxes(black(), [DrawnBox((math.nan, 0, 9, 9), RED, style=style)]).any()


def test_small_images_are_enlarged_with_their_boxes() -> None:
    drawn = draw_boxes(black(48, 64), [DrawnBox((10, 20, 30, 40), RED)])
    factor = drawn.shape[1] // 64
    assert drawn.shape == (48 * factor, 64 * factor, 3)
    assert factor > 1
    rows, columns = np.nonzero((drawn == RED).all(axis=2))
    assert (columns.min(), columns.max() + 1) == (10 * factor, 30 * factor)
    assert (rows.min(), rows.max() + 1) == (20 * factor, 40 * factor)


def test_found_missed_and_wrong_are_counted_by_hand() -> None:
    """One label found, one missed, one detection beside all, one in an ignored region, one too unsure to show."""
    truth = [[10, 10, 30, 50, 0, 800, 0], [60, 10, 80, 50, 0, 800, 0], [100, 10, 140, 50, 0, 1600, 1]]
    found = [[11, 10, 30, 50, 0.9, 0], [10, 60, 30, 90, 0.8, 0], [105, 15, 120, 40, 0.7, 0], [60, 10, 80, 50, 0.1, 0]]
    batch = {
        "image": torch.zeros(1, 3, 100, 160),
        "to_canvas": torch.eye(3, dtype=torch.float64)[None, :2],
        "truth": torch.tensor(truth, dtype=torch.float64),
        "truth_offsets": torch.tensor([0, 3]),
    }
    predictions = {"detections": torch.tensor(found), "detection_offsets": torch.tensor([0, 4])}
    (picture,) = show_detections(batch, predictions)
    assert picture.caption == "1 found; errors: 1 background, 1 missed; 1 below the score 0.3 not drawn, up to 0.1"
    shown = {name for name, color in COLORS.items() if (picture.pixels == color).all(axis=2).any()}
    assert shown == {"found", "background", "missed", "ignored"}


def test_each_kind_of_error_has_its_color() -> None:
    """By hand: labels in a row are found twice, cut to a quarter, of another class, both, and missed; one is hidden."""
    label = lambda place, kind=0, hidden=0: [60 * place, 0, 60 * place + 40, 40, kind, 1600, hidden]  # noqa: E731
    found = lambda place, score, kind=0, height=40: [60 * place, 0, 60 * place + 40, height, score, kind]  # noqa: E731
    truth = [label(0), label(1), label(2, 1), label(3, 1), label(4), label(6, 0, 1)]
    detections = [
        found(0, 0.9),
        found(0, 0.8),
        found(1, 0.9, 0, 10),
        found(2, 0.7),
        found(3, 0.7, 0, 10),
        found(5, 0.5),
    ]
    batch = {
        "image": torch.zeros(1, 3, 60, 420),
        "to_canvas": torch.eye(3, dtype=torch.float64)[None, :2],
        "truth": torch.tensor(truth, dtype=torch.float64),
        "truth_offsets": torch.tensor([0, 6]),
    }
    predictions = {"detections": torch.tensor(detections), "detection_offsets": torch.tensor([0, 6])}
    (picture,) = show_detections(batch, predictions)
    assert picture.caption == ("1 found; errors: 1 localisation, 1 class, 1 both, 1 duplicate, 1 background, 2 missed")
    for name, left in {"localisation": 60, "class": 120, "both": 180, "background": 300}.items():
        assert (picture.pixels[:60, left : left + 40] == COLORS[name]).all(axis=2).any(), name
    assert {name for name, color in COLORS.items() if (picture.pixels == color).all(axis=2).any()} == COLORS.keys()


def test_the_highest_scoring_lies_on_top_and_pixels_are_those_given() -> None:
    """Two on one place, of which the lower-scoring is a duplicate; the image keeps its bytes."""
    truth = torch.tensor([[100, 100, 200, 200, 0, 1e4, 0]], dtype=torch.float64)
    found = torch.tensor([[100, 100, 200, 200, 0.9, 0], [100, 100, 200, 200, 0.6, 0], [5, 5, 9, 9, 0.2, 0]])
    pixels = np.random.default_rng(0).integers(90, 120, (400, 500, 3)).astype(np.uint8)
    batch = {
        "image": torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255,
        "to_canvas": torch.eye(3, dtype=torch.float64)[None, :2],
        "truth": truth,
        "truth_offsets": torch.tensor([0, 1]),
    }
    predictions = {"detections": found, "detection_offsets": torch.tensor([0, 3])}
    (picture,) = show_detections(batch, predictions, pixels=pixels)
    assert (picture.pixels[150, 100] == COLORS["found"]).all()
    assert np.array_equal(picture.pixels[300:400], pixels[300:])
    (lower,) = show_detections(batch, predictions, pixels=pixels, least_score=0.1)
    assert lower.caption == "1 found; errors: 1 duplicate, 1 background"
    (higher,) = show_detections(batch, predictions, least_score=0.7)
    assert higher.caption == "1 found; 2 below the score 0.7 not drawn, up to 0.6"


def test_a_caption_of_two_lines_is_drawn_with_its_escape() -> None:
    drawn, expected = (draw_boxes(black(), [DrawnBox((20, 30, 60, 90), RED, name)]) for name in ("a\nb", "a\\nb"))
    assert np.array_equal(drawn, expected)


def test_captions_lie_within_the_image_and_beside_each_other() -> None:
    """At the corners, wider than the image, in the place of another one: no letter is cut off, no caption is hidden."""
    corners = [(0, 0, 30, 30), (470, 0, 500, 30), (0, 370, 30, 400), (470, 370, 500, 400), (100, 0, 300, 390)]
    alone = [caption_place(DrawnBox(box, RED, "traffic light 0.87")) for box in corners]
    for left, top, right, bottom in alone:
        assert (right - left, bottom - top) == (alone[0][2] - alone[0][0], alone[0][3] - alone[0][1])
    assert caption_place(DrawnBox(corners[0], RED, "a long name " * 30))[2] < 500
    first, second = (DrawnBox((200, 200, 240, 240), RED, name) for name in ("one", "two"))
    assert caption_place(first)[3] <= 200
    assert caption_place(first, second)[1] >= 240


@pytest.mark.parametrize("side_px", [480, 1280, 2048])
def test_a_caption_is_read_on_the_card_of_a_sheet(side_px: int) -> None:
    """Capitals of a font are some 0.7 of its size: 11 pixels of letters, where the picture is fitted into 360."""
    box = DrawnBox((60, side_px // 4, 400, side_px // 2), RED, "HHH")
    named, bare = (draw_boxes(black(side_px // 2, side_px), [each]) for each in (box, replace(box, caption="")))
    rows = np.flatnonzero(((named == RED).all(axis=2) & ~(bare == RED).all(axis=2)).any(axis=1))
    assert 0.65 * 11 <= (rows[-1] - rows[0] + 1) * 360 / side_px <= 0.8 * 12


def caption_place(box: DrawnBox, *others: DrawnBox) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom of what the caption adds to the picture of a box, with others on top."""
    pictures = [draw_boxes(black(), [first, *others]) for first in (box, replace(box, caption=""))]
    rows, columns = np.nonzero((pictures[0] != pictures[1]).any(axis=2))
    return int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())


def test_a_class_is_called_by_its_name_or_number() -> None:
    assert name_class(1, ("car", "truck")) == "truck"
    assert name_class(2, ("car", "truck"), 0.875) == "2 0.88"
    assert name_class(-1, ("car", "truck")) == ""


def test_captions_of_many_boxes_leave_the_image_to_be_seen() -> None:
    """Of a hundred boxes on a line and of as many on one place, the last ones are named, none upon another."""
    spread = [DrawnBox((4 + 4 * place, 100 + 2 * place, 12 + 4 * place, 130 + 2 * place), RED) for place in range(100)]
    for boxes in (spread, spread[:1] * 100):
        bare = draw_boxes(black(), boxes)
        named = draw_boxes(black(), [replace(box, caption=f"person 0.{place:02}") for place, box in enumerate(boxes)])
        assert 0.005 < (named != bare).any(axis=2).mean() <= 1 / 12
        last = draw_boxes(black(), [*boxes[:-1], replace(boxes[-1], caption="person 0.99")])
        rows, columns = np.nonzero((last != bare).any(axis=2))
        place = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
        assert np.array_equal(named[place], last[place])


def test_a_caption_is_drawn_on_the_smallest_image() -> None:
    assert (draw_boxes(black(8, 12), [DrawnBox((1, 1, 5, 5), RED, "pedestrian 0.87")]) != black(240, 360)).any()
