"""KITTI's AP and the plain AP of 3D boxes: the authors' numbers, a second evaluator, and values by hand."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sightline.areas.boxes3d.metrics.boxes3d_ap import Boxes3dAp
from sightline.areas.boxes3d.metrics.kitti_ap import KittiAp, find_ceiling
from sightline.contract.errors import ConfigError
from sightline.contract.metric import Meter
from tests.golden_parity import load_golden
from tests.metrics.boxes3d_sets import CLASSES, LEVEL, draw_frames, make_batch, make_sample
from tests.metrics.kitti_reference import LOOSE, STRICT, Frame, Thing, evaluate

DIFFICULTIES = ("easy", "moderate", "hard")


def score(frames: Sequence[Frame], to_camera: np.ndarray = LEVEL, **arguments: Any) -> dict[str, dict[str, Any]]:
    """Rows of `by_difficulty`."""
    meter = Meter(KittiAp(class_names=CLASSES, **arguments))
    meter.update(**make_batch([make_sample(frame, to_camera) for frame in frames]))
    return meter.metric.tables(meter.state)["by_difficulty"]


@pytest.mark.parametrize("seed", [*range(8), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(8, 300))])
def test_kitti_ap_is_that_of_a_second_evaluator(seed: int) -> None:
    random = np.random.default_rng(seed)
    frames = draw_frames(random, int(random.integers(1, 20)), has_angles=seed % 5 > 0)
    names, least = [("strict", STRICT), ("loose", LOOSE)][seed % 2]
    rows = score(frames, overlaps=names)
    for (kind, difficulty), figures in evaluate(frames, CLASSES, least).items():
        row = rows[f"{kind}, {difficulty}"]
        assert {key: row[key] for key in figures} == pytest.approx(figures, abs=1e-12, nan_ok=True), (kind, difficulty)


# --- the authors' numbers ---------------------------------------------------------------------------------------------


def tilted_camera() -> np.ndarray:
    """From a scanner to a camera that is 0.3 m away and 2 degrees askew, as a calibration states it."""
    turn = np.deg2rad(2)
    around_x = np.array([[1, 0, 0], [0, math.cos(turn), -math.sin(turn)], [0, math.sin(turn), math.cos(turn)]])
    around_z = np.array([[math.cos(turn), -math.sin(turn), 0], [math.sin(turn), math.cos(turn), 0], [0, 0, 1]])
    return np.column_stack([around_x @ around_z @ LEVEL[:, :3], [0.05, -0.1, -0.3]])


def golden_frames(case: str, arrays: Any, names: Sequence[str], count: int) -> list[Frame]:
    def things(prefix: str) -> list[list[Thing]]:
        of_frames: list[list[Thing]] = [[] for _ in range(count)]
        columns = (arrays[f"{case}/in_{prefix}_{column}"].tolist() for column in ("frame", "class", "rows"))
        for frame, number, row in zip(*columns, strict=True):
            of_frames[frame].append(Thing(names[number], *row[:3], tuple(row[3:7]), *row[7:]))
        return of_frames

    return list(zip(things("gt"), things("dt"), strict=True))


@pytest.mark.parametrize("case", range(8))
@pytest.mark.parametrize(("overlaps", "column"), [("strict", 0), ("loose", 1)])
def test_kitti_ap_is_that_of_the_authors(shared: Path, case: int, overlaps: str, column: int) -> None:
    golden = load_golden(shared, "kitti_eval", area="boxes3d")
    name, frames = f"case{case:02d}", golden.info["cases"][case]["frames"]
    rows = score(
        golden_frames(name, golden.arrays, golden.info["class_codes"], frames), tilted_camera(), overlaps=overlaps
    )
    for number, kind in enumerate(CLASSES):
        for level, difficulty in enumerate(DIFFICULTIES):
            row = rows[f"{kind}, {difficulty}"]
            for ours, theirs in {"ap_2d": "bbox", "ap_bev": "bev", "ap_3d": "3d", "aos": "aos"}.items():
                for recalls in ("r11", "r40"):
                    expected = golden.arrays.get(f"{name}/{theirs}_{recalls.upper()}")
                    if expected is None:
                        assert theirs == "aos"
                        assert math.isnan(row[f"aos_{recalls}"])
                    elif row["count"]:
                        value = float(expected[number, level, column])
                        assert 100 * row[f"{ours}_{recalls}"] == pytest.approx(value, abs=1e-9)
                    else:
                        assert math.isnan(row[f"{ours}_{recalls}"])


def test_the_ceiling_of_few_labels_is_that_of_the_authors(shared: Path) -> None:
    for count, r11, r40 in load_golden(shared, "kitti_eval", area="boxes3d").arrays["perfect_n"].tolist():
        assert 100 * find_ceiling(int(count), "r11") == pytest.approx(r11, abs=1e-8)
        assert 100 * find_ceiling(int(count), "r40") == pytest.approx(r40, abs=1e-9)
    assert math.isnan(find_ceiling(0, "r40"))


# --- by hand ----------------------------------------------------------------------------------------------------------


def car(x: float, *, score: float = math.nan, kind: str = "Car", top: float = 100, left: float = 100) -> Thing:
    """A car ahead, `x` m to the right, which counts at every difficulty."""
    return Thing(kind, 0, 0, 0.0, (left, top, left + 100, 200), 4, 1.5, 2, x, 1.7, 20, -math.pi / 2, score)


def test_the_order_of_rules_by_hand() -> None:
    """Two passes, an ignored detection, a neighbour, and a region of no class.

    A low detection (20 px) is ignored though it overlaps nothing; a Van takes the detection on it; what lies in a
    region is no mistake in the image, and one from above.
    """
    truths = [car(0), car(10, left=300), car(-10, kind="Van", left=500)]
    region = car(0, kind="DontCare", left=700)._replace(x=-1000, y=-1000, z=-1000, length=-1, width=-1, height=-1)
    found = [
        car(0, score=0.9),
        car(10, score=0.8, left=300),
        car(-10, score=0.95, left=500),
        car(30, score=0.99, left=700),
        car(40, score=1.0, left=0, top=180),
    ]
    row = score([([*truths, region], found)])["Car, moderate"]
    assert (row["count"], row["ap_2d_r40"], row["ap_2d_r11"]) == (2, 1 / 40, pytest.approx(1 / 11))
    assert row["ap_bev_r40"] == pytest.approx(2 / 3 / 40)  # the false one scores more: precisions 1/2 and 2/3
    assert row["ap_bev_r11"] == pytest.approx(2 / 3 / 11)
    assert row["not_counted"] == {}


def test_a_detection_without_an_image_box_is_ignored() -> None:
    """It finds no label, and is no mistake."""
    hidden = car(0, score=0.9)._replace(image=(math.nan,) * 4)
    row = score([([car(0)], [hidden])])["Car, easy"]
    assert (row["ap_3d_r11"], row["ap_2d_r11"], row["count"]) == (0, 0, 1)
    beside = car(0.1, score=0.3)
    row = score([([car(0)], [hidden._replace(x=20), beside])])["Car, easy"]
    assert row["ap_3d_r11"] == pytest.approx(1 / 11)


def test_of_equal_scores_the_first_is_taken_by_hand() -> None:
    """Of two detections that score 0.9, the first overlaps both labels and the second the first label alone.

    The first label takes the first one, so that one score is a find, one slot of 41, and AP at 40 recalls 0.
    """
    truths = [car(0), car(0, left=130)]
    found = [car(0, score=0.9, left=115), car(0, score=0.9, left=90)]
    assert score([(truths, found)])["Car, easy"]["ap_2d_r40"] == 0
    assert score([(truths, found[::-1])])["Car, easy"]["ap_2d_r40"] == 1 / 40


def test_without_images_every_label_that_is_not_ignored_counts_by_hand() -> None:
    """Two cars and one that is ignored are found, and nothing is asked of images: AP is 1/40, the ceiling of two.

    The detection that scores most lies on the ignored car, and is no mistake.
    """
    cars = [[x, 0.0, 0, 4, 2, 1.5, 0] for x in (10.0, 20, 30)]
    batch = {"sample_index": torch.tensor([0])}
    for name, ends in (("detections3d", [[0.8, 0], [0.7, 0], [0.9, 0]]), ("truth3d", [[0, 0], [0, 0], [0, 1]])):
        batch[name] = torch.tensor([[*box, *end] for box, end in zip(cars, ends, strict=True)])
        batch[f"{name}_offsets"] = torch.tensor([0, 3])
    meter = Meter(KittiAp(class_names=("Car",), images=False))
    meter.update(**batch)
    expected = {"ap_3d_r40_all": 1 / 40, "ap_bev_r40_all": 1 / 40, "ap_3d_r11_all": 1 / 11, "ap_bev_r11_all": 1 / 11}
    assert meter.compute() == pytest.approx(expected)
    tables = meter.metric.tables(meter.state)
    assert (tables["by_difficulty"]["Car, all"]["count"], tables["scored_boxes_kitti"]["num_ignored"]) == (2, 1)
    assert "without images: every label that is not ignored counts" in tables["scored_boxes_kitti"]["protocol"]
    [remark] = tables["scored_boxes_kitti"]["remarks"]
    assert remark.startswith("'Car': so few labels count that no detector reaches 1: 2 all (at most 0.025 at 40")
    with pytest.raises(ConfigError, match="nothing is compared in images: false"):
        KittiAp(class_names=("Car",), images=False, min_overlap_image={"Car": 0.5})


# --- the plain AP -----------------------------------------------------------------------------------------------------


def measure(*frames: tuple[list[list[float]], list[list[float]]]) -> tuple[Meter, dict[str, float]]:
    """Score frames of labels (x, y, class, is ignored) and detections (x, y, score): boxes of 4 x 2 x 1.5 m."""
    truths = [[[x, y, 0, 4, 2, 1.5, 0, kind, ignored] for x, y, kind, ignored in labels] for labels, _ in frames]
    found = [[[x, y, 0, 4, 2, 1.5, 0, value, 0] for x, y, value in detections] for _, detections in frames]
    meter = Meter(Boxes3dAp(class_names=("Car",)))
    batch = {"sample_index": torch.arange(len(frames))}
    for name, rows in (("truth3d", truths), ("detections3d", found)):
        batch[name] = torch.tensor([row for of_frame in rows for row in of_frame], dtype=torch.float64).reshape(-1, 9)
        batch[f"{name}_offsets"] = torch.tensor([0, *map(len, rows)]).cumsum(0)
    meter.update(**batch)
    return meter, meter.compute()


def test_of_labels_that_fit_equally_the_first_is_taken_by_hand() -> None:
    """The best detection lies midway between two labels, the second near the first label alone: it finds none."""
    labels = [[0.0, 0, 0, 0], [0, 3, 0, 0]]
    assert measure((labels, [[0, 1.5, 0.9], [0, -0.9, 0.8]]))[1]["ap_2m"] == 0.5
    assert measure((labels[::-1], [[0, 1.5, 0.9], [0, -0.9, 0.8]]))[1]["ap_2m"] == 1
    labels = [[0.0, 0, 0, 0], [0, 1, 0, 0]]  # 2 m wide: both overlap the best detection by 1.5 / 2.5
    assert measure((labels, [[0, 0.5, 0.9], [0, -0.4, 0.8]]))[1]["ap_overlap"] == 0.5
    assert measure((labels[::-1], [[0, 0.5, 0.9], [0, -0.4, 0.8]]))[1]["ap_overlap"] == 1


def test_what_lies_in_a_region_or_on_an_ignored_label_is_no_mistake_by_hand() -> None:
    """The region holds the centre of the best detection; an ignored label may be found twice."""
    labels = [[0.0, 0, 0, 0], [20, 0, -1, 1], [40, 0, 0, 1]]
    hidden = [[21.9, 0.9, 0.9], [40, 0, 0.8], [40, 0.1, 0.7]]
    assert measure((labels, [*hidden, [0, 0, 0.5]]))[1]["ap_overlap"] == 1
    assert measure((labels, [*hidden, [22.1, 0, 0.6], [0, 0, 0.5]]))[1]["ap_overlap"] == 0.5


def test_an_interval_is_a_bootstrap_over_frames() -> None:
    """Seven frames: AP of each of 1,000 draws by plain loops, and the 2.5 and 97.5 % points of these."""
    frames = [([[0.0, 0, 0, 0]], [[0, 0 if number % 3 else 9, 0.9 - number / 10]]) for number in range(7)]
    meter, figures = measure(*frames)
    outcomes = [bool(number % 3) for number in range(7)]
    drawn = np.random.Generator(np.random.PCG64(0)).integers(7, size=(1000, 7))
    averages = []
    for draw in drawn.tolist():
        ranked = sorted(draw)  # scores fall with the number of the frame
        curve = []
        for last in range(1, 8):
            if last == 7 or ranked[last] != ranked[last - 1]:  # frames that are drawn twice score alike
                curve.append((sum(outcomes[frame] for frame in ranked[:last]), last))
        area, before = 0.0, 0
        for place, (right, _) in enumerate(curve):
            area += (right - before) / 7 * max(a / b for a, b in curve[place:])
            before = right
        averages.append(area)
    [interval] = meter.metric.class_intervals(meter.state)["ap_overlap"].intervals()
    expected = np.quantile(averages, [0.025, 0.975])
    assert [interval["low"], interval["high"]] == pytest.approx(expected.tolist())
    assert interval["low"] < figures["ap_overlap"] < interval["high"]
    assert interval["num_samples"] == 7


@pytest.mark.long
def test_kitti_s_validation_part_takes_less_than_a_minute() -> None:
    """3,769 frames of 20 detections and 10 labels, nine tables, in seconds of one core; 2 s here."""
    random, num_frames, num_labels = np.random.default_rng(0), 3769, 10
    count = num_frames * num_labels
    classes = random.integers(0, 3, count)
    sizes = np.array([[3.9, 1.6, 1.56], [0.8, 0.6, 1.73], [1.76, 0.6, 1.73]])[classes] * random.uniform(
        0.9, 1.1, (count, 3)
    )
    places = np.column_stack(
        [random.uniform(5, 70, count), random.uniform(-30, 30, count), random.uniform(-1, 0, count)]
    )
    boxes = np.column_stack([places, sizes, random.uniform(-3, 3, count)])
    corners = np.column_stack([random.uniform(0, 900, count), random.uniform(100, 200, count)])
    corners = np.column_stack([corners, corners + 100 * random.uniform(0.2, 1, (count, 2))])
    truths = np.column_stack([boxes, classes, 0 * classes]), np.column_stack([corners, boxes[:, 6], 0 * corners[:, :2]])

    def twice(rows: np.ndarray, spread: float) -> np.ndarray:
        """The rows of each frame as they are, and once more beside them."""
        framed = rows.reshape(num_frames, num_labels, -1)
        return np.concatenate([framed, framed + random.normal(0, spread, framed.shape)], 1).reshape(2 * count, -1)

    detections = np.column_stack([twice(boxes, 0.1), random.random(2 * count), twice(classes, 0.0)])
    images = np.column_stack([twice(corners, 3.0), twice(boxes[:, 6], 0.1)])
    batch = {"kitti_truth": np.column_stack(truths), "detections3d": detections, "detections3d_image": images}
    tensors = {name: torch.from_numpy(rows.astype(np.float64)) for name, rows in batch.items()}
    tensors["to_camera"] = torch.from_numpy(LEVEL).expand(num_frames, 3, 4)
    tensors["sample_index"] = torch.arange(num_frames)
    for name, step in (("kitti_truth", num_labels), ("detections3d", 2 * num_labels)):
        tensors[f"{name}_offsets"] = torch.arange(num_frames + 1) * step
    meter = Meter(KittiAp(class_names=CLASSES))
    meter.update(**tensors)
    start = time.process_time()
    figures = meter.compute()
    assert time.process_time() - start < 60
    assert 0.3 < figures["ap_3d_r40_moderate"] < figures["ap_bev_r40_moderate"] < 1
