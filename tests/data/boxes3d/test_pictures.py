"""Frames with 3D boxes in pictures: places, headings and colours by hand; what is counted; what `view` shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.areas.boxes3d.pictures import draw_from_above, list_box_figures, list_corners
from sightline.areas.boxes3d.sets.synthetic_streets3d import SyntheticStreets3d
from sightline.contract.types import SampleKey
from sightline.draw.pictures import INK, PALETTE
from sightline.store.boxes3d.box_sample import make_sample3d, read_table
from sightline.store.boxes3d.box_table import BoxTable, make_box_table
from tests.command import succeed

NAMES = ("car", "pedestrian")
GROUND = np.array([[x, y, -1.7] for x in (-19.0, 19.0) for y in (-9.0, 9.0)], dtype=np.float32).repeat(10, axis=0)
"""Corners of a street of 38 x 18 m: with 4 m around, pictures of 46 x 26 m, 1200 x 679 pixels."""
WINDOW_M, SCALE = (23.0, 13.0), min(1200 / 46, 24.0)


def table_of(*rows: tuple[float, ...], label: int = 0, **columns: Any) -> BoxTable:
    boxes = np.array(rows, dtype=np.float64).reshape(-1, 7)
    return make_box_table(boxes, np.full(len(boxes), label), NAMES, **columns)


def place_colour(picture: np.ndarray, color: np.ndarray | tuple[int, int, int]) -> tuple[float, ...]:
    """Lowest and highest x and y, in metres, of the pixels of a colour."""
    height = round(2 * WINDOW_M[1] * SCALE)
    rows, columns = np.nonzero((np.abs(picture[:height].astype(int) - np.array(color)) <= 6).all(axis=2))
    x, y = columns / SCALE - WINDOW_M[0], WINDOW_M[1] - rows / SCALE
    return float(x.min()), float(x.max()), float(y.min()), float(y.max())


@pytest.mark.parametrize(
    ("yaw", "expected"),
    [
        (0.0, (8.0, 13.0, 4.0, 6.0)),  # an arrow of a quarter of the length leads out of the front
        (np.pi, (7.0, 12.0, 4.0, 6.0)),
        (np.pi / 2, (9.0, 11.0, 3.0, 8.0)),
        (-np.pi / 2, (9.0, 11.0, 2.0, 7.0)),
    ],
)
def test_a_box_lies_and_heads_where_it_is_said_to(yaw: float, expected: tuple[float, ...]) -> None:
    picture = draw_from_above(GROUND, table_of((10.0, 5.0, -1.0, 4.0, 2.0, 1.5, yaw)))
    assert picture.shape[1] == round(2 * WINDOW_M[0] * SCALE)
    assert place_colour(picture, PALETTE[0]) == pytest.approx(expected, abs=4 / SCALE)


def test_points_are_where_they_lie_and_dark_where_they_are_high() -> None:
    pole = np.array([[-10.0, -6.0, 1.0]] * 40, dtype=np.float32)
    picture = draw_from_above(np.concatenate([GROUND, pole]), table_of())
    dark = place_colour(picture, (70, 70, 70))
    assert dark == pytest.approx((-10.0, -10.0, -6.0, -6.0), abs=4 / SCALE)
    assert picture[round((13.0 - 9.0) * SCALE), round((23.0 - 19.0) * SCALE)].tolist() == pytest.approx(
        [200] * 3, abs=20
    )


def test_predictions_have_colours_and_labels_are_dark() -> None:
    truth = table_of((10.0, 5.0, 0.0, 4.0, 2.0, 1.5, 0.0))
    predicted = table_of((-10.0, 5.0, 0.0, 4.0, 2.0, 1.5, 0.0), label=1, score=np.array([0.75]))
    picture = draw_from_above(GROUND, truth, predicted)
    left, right, low, _ = place_colour(picture, PALETTE[1])
    assert (left, right, low) == pytest.approx((-12.0, -7.0, 4.0), abs=6 / SCALE)
    assert place_colour(picture, INK)[1] == pytest.approx(13.0, abs=4 / SCALE)
    scored = (
        draw_from_above(GROUND, truth, predicted) != draw_from_above(GROUND, truth, predicted.select(np.s_[:0]))
    ).sum()
    assert scored > 1000


def test_what_cannot_be_drawn_is_counted_below() -> None:
    """A box of no number, one beyond all points and none at all: no picture fails, and none is made wider by them."""
    seen = (10.0, 5.0, 0.0, 4.0, 2.0, 1.5, 0.0)
    picture = draw_from_above(GROUND, table_of(seen))
    for lost in ((np.nan,) * 7, (1e6, 0.0, 0.0, 4.0, 2.0, 1.5, 0.0)):
        more = draw_from_above(GROUND, table_of(seen, lost))
        height = round(2 * WINDOW_M[1] * SCALE)
        assert (more[:height] == picture[:height]).all()
        assert (more[height:] != picture[height:]).any()
    nothing = draw_from_above(np.zeros((0, 3), dtype=np.float32), table_of())
    assert nothing.shape[1] > 300
    gaps = np.concatenate([GROUND, np.full((3, 3), np.nan, dtype=np.float32)])
    assert (draw_from_above(gaps, table_of(seen)) == picture).all()


def test_ignored_boxes_are_grey_and_dashed() -> None:
    box = (10.0, 5.0, 0.0, 4.0, 2.0, 1.5, 0.0)
    ignored, whole = (
        draw_from_above(GROUND, table_of(box, is_ignored=np.array([True]))),
        draw_from_above(GROUND, table_of(box)),
    )
    row, columns = round((13.0 - 6.0) * SCALE), np.s_[round((23.0 + 8.2) * SCALE) : round((23.0 + 11.8) * SCALE)]
    is_grey = (np.abs(ignored[row, columns].astype(int) - (176, 182, 190)) <= 40).all(axis=1)
    assert 0.3 < is_grey.mean() < 0.8
    assert 8 <= np.abs(np.diff(is_grey.astype(int))).sum() <= 20
    assert (np.abs(whole[row, columns].astype(int) - PALETTE[0]) <= 40).all()
    assert not (np.abs(ignored[:600].astype(int) - PALETTE[0]) <= 12).all(axis=2).any()


def test_corners_by_hand() -> None:
    """A box 4 m long, 2 m wide and 1 m high that heads to the left: its front lies at y = 2."""
    corners = list_corners(np.array([[0.0, 0.0, 3.0, 4.0, 2.0, 1.0, np.pi / 2]]))[0]
    below = [(-1.0, 2.0, 2.5), (-1.0, -2.0, 2.5), (1.0, -2.0, 2.5), (1.0, 2.0, 2.5)]
    expected = np.array([*below, *((x, y, 3.5) for x, y, _ in below)])
    assert corners == pytest.approx(expected, abs=1e-12)


def test_figures_hold_the_boxes_of_a_class() -> None:
    boxes = [(float(x), 0.0, 0.0, 4.0, 2.0, 1.5, 0.0) for x in range(0, 50, 10)]
    table = make_box_table(
        np.array(boxes), np.array([0, 1, 0, -1, 0]), NAMES, is_ignored=np.array([0, 0, 0, 0, 1], bool)
    )
    figures = {figure.name: figure for figure in list_box_figures(table)}
    assert {name: figure.num_objects for name, figure in figures.items()} == {
        "boxes: ignored": 1,
        "boxes: region of no class": 1,
        "boxes: car": 2,
        "boxes: pedestrian": 1,
    }
    ((ends, color, has_dots, _),) = figures["boxes: car"].lines()
    assert (color.tolist(), has_dots, len(ends)) == (PALETTE[0].tolist(), False, 2 * 13)
    assert ends.reshape(-1, 3).max(axis=0).tolist() == pytest.approx([23.0, 1.0, 0.75])  # the line out of the front
    lengths = np.linalg.norm(ends[:12, 0] - ends[:12, 1], axis=1)
    assert sorted(lengths.tolist()) == pytest.approx([1.5] * 4 + [2.0] * 4 + [4.0] * 4)


def test_a_sample_gives_back_its_table() -> None:
    streets = SyntheticStreets3d(split="train", num_columns=64)
    table = streets.frame("train", 0).table
    again = read_table(streets[SampleKey(0, 0, 0)], table.class_names)
    for name in ("boxes", "label", "is_ignored", "num_points", "velocity", "track"):
        assert getattr(again, name) == pytest.approx(getattr(table, name), abs=1e-5)
    without = make_sample3d(GROUND, {"remission": np.zeros(len(GROUND))}, table_of())
    assert read_table({name: without[name] for name in ("boxes", "label")}, NAMES).boxes.shape == (0, 7)


CONFIG = """
task: {name: segment}
data: {name: synthetic_streets3d, train_size: 4, test_size: 2, num_columns: 256}
model: {name: dgcnn_scenes}
losses: [{name: cross_entropy}]
metrics: [{name: iou}]
optimizer: {name: adamw, lr: 1e-3}
train: {epochs: 1, batch_size: 2}
evaluate: {metric: miou}
"""
"""No network takes boxes of clouds yet: `view` builds none."""


def test_view_shows_a_frame_from_above_and_as_a_cloud(tmp_path: Path) -> None:
    (tmp_path / "streets.yaml").write_text(CONFIG)
    done = succeed(
        "view", tmp_path / "streets.yaml", "--samples", "0", "--out", tmp_path / "out", "--json", tmp_path / "d"
    )
    sample = SyntheticStreets3d(split="train", num_columns=256)[SampleKey(0, 0, 0)]
    (stage,) = json.loads((tmp_path / "d").read_text())["samples"][0]["stages"]
    num_boxes, num_inside = len(sample["boxes"]), int(sample["num_points"].sum())
    assert stage["figures"] == {"num_boxes": num_boxes, "num_points_in_boxes": num_inside}
    assert f"{num_boxes} boxes: " in stage["description"]
    counts = stage["classes"]["class of the box"]
    is_car = (sample["label"] == 0) & ~sample["is_ignored"]
    assert counts["Car"] == int(sample["num_points"][is_car].sum())
    page = (tmp_path / "out/view.html").read_text()
    assert '"boxes: Car"' in page
    assert '"from above"' in page
    assert "train/0000" in " ".join(done.out.split())
    assert (tmp_path / "out/train_0000.png").stat().st_size > 20_000
