"""Miss rates of CityPersons against its script; the set-ups of EuroCity Persons by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline import numba_kernels
from sightline.metrics.box_ap import MISS_RATE_RULES, DetectionCurve
from sightline.metrics.crowds import MissRate
from tests.metrics.box_references import Scene, state_of, toy


def rates(scenes: list[Scene], protocol: Any, most: int = 1000) -> dict[str, float]:
    metric = MissRate(class_names=("person",), protocol=protocol, most=most)
    return metric.compute(state_of(metric, scenes))


@pytest.mark.parametrize("has_numba", [True, False])
@pytest.mark.parametrize("case", range(24))
def test_equals_the_script_of_citypersons(
    shared: Path, case: int, has_numba: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both as it is, with its wrong index, and corrected; -1 there is NaN here."""
    monkeypatch.setattr(numba_kernels, "_has_numba", lambda: has_numba)
    folder = shared / "golden" / "detect"
    arrays = np.load(folder / "eval_citypersons.npz", allow_pickle=False)
    labels = arrays[f"case{case:02d}/gt_image_x_y_w_h_vis_ignore"].reshape(-1, 7)
    found = arrays[f"case{case:02d}/det_image_x_y_w_h_score"].reshape(-1, 6)
    for rows in (labels, found):
        rows[:, 3:5] += rows[:, 1:3]
    first = int(min(labels[:, 0].min(initial=1), found[:, 0].min(initial=1)))
    num_images = json.loads((folder / "eval_citypersons.json").read_text())["cases"][case]["images"]
    scenes = []
    for number in range(first, first + num_images):
        own, its = labels[labels[:, 0] == number, 1:], found[found[:, 0] == number, 1:]
        scenes.append(Scene((1024, 2048), own[:, [0, 1, 2, 3, 5, 4]], its))
    for protocol, key in (
        ("citypersons_script", "MR_reasonable_small_heavy_all"),
        ("citypersons", "MR_corrected"),
    ):
        ours = np.nan_to_num(list(rates(scenes, protocol).values()), nan=-1.0)
        assert ours == pytest.approx(arrays[f"case{case:02d}/{key}"], abs=1e-12)


def test_a_detection_inside_a_person_outside_a_set_up_does_not_count() -> None:
    """By hand: 100 images of two people, one found; in 20 of them the visible 45 % of a third are found with more
    certainty. They count for `heavy` and `all`, 20 wrong ones before any right one: 0.2 an image, above six points.
    """
    people = [[0, 0, 40, 100, 0, 1.0], [60, 0, 100, 100, 0, 1.0]]
    found = [[0, 0, 40, 100, 0.5]]
    third, part = [120, 0, 160, 100, 0, 0.45], [120, 0, 138, 100, 0.9]
    plain, occluded = (
        Scene((200, 300), np.array([*people, *more]), np.array([*found, *parts], dtype=float))
        for more, parts in (([], []), ([third], [part]))
    )
    figures = rates([occluded] * 20 + [plain] * 80, "citypersons")
    expected = {"mr_reasonable": 0.5, "mr_small": math.nan, "mr_heavy": 1.0, "mr_all": (120 / 220) ** (3 / 9)}
    assert figures == pytest.approx(expected, nan_ok=True)


def test_set_ups_of_ecp() -> None:
    """By hand: a found person of each occlusion; what a set-up does not count does not count as wrong either."""
    labels = [[0, 0, 40, 100, 0, 0.9], [60, 0, 100, 100, 0, 0.6], [120, 0, 160, 100, 0, 0.2], [180, 0, 192, 35, 0, 1.0]]
    found = [[*row[:4], 0.9 - k / 10] for k, row in enumerate(labels)]
    scene = Scene((200, 300), np.array(labels, dtype=float), np.array(found))
    missed = scene._replace(detections=scene.detections[[0, 2]])
    assert rates([scene], "ecp") == pytest.approx(
        dict.fromkeys(("mr_reasonable", "mr_small", "mr_occluded", "mr_all"), 1e-10)
    )
    assert rates([missed], "ecp") == pytest.approx(
        {"mr_reasonable": 1e-10, "mr_small": 1.0, "mr_occluded": 1.0, "mr_all": 2 / 3}
    )


def test_three_rules_read_one_curve_in_three_ways() -> None:
    """Wrong first, then right: 1 of 2 found at one false positive in 10 images, both at three."""
    curve = DetectionCurve(np.arange(5.0)[::-1], np.array([0, 1, 1, 1, 2]), np.array([1, 1, 2, 3, 3]), 2, 10)
    points = {name: curve.recalls_at(rule).tolist() for name, rule in MISS_RATE_RULES.items()}
    assert points["crowdhuman"] == [0, 0, 0, 0, 0, 0.5, 1, 1, 1]
    assert points["citypersons"] == [0, 0, 0, 0, 0.5, 0.5, 1, 1, 1]
    assert points["citypersons_script"] == [1, 1, 1, 1, 0.5, 0.5, 1, 1, 1]


def test_says_why_a_figure_is_missing() -> None:
    scenes = toy()
    metric = MissRate(class_names=("person",))
    about = metric.tables(state_of(metric, scenes))["scored_boxes_miss_rate"]
    assert about["set_ups"] == {"reasonable": 0, "small": 0, "heavy": 0, "all": 3}
    assert about["undefined"]["mr_small"] == "no label is in this set-up"
    for scene in scenes:
        scene.labels[:, 5] = math.nan
    about = metric.tables(state_of(metric, scenes))["scored_boxes_miss_rate"]
    assert about["undefined"]["mr_all"] == "the set does not state what is visible"
