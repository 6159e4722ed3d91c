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
from tests.metrics.box_references import Scene, literal_rates, state_of, toy


def rates(scenes: list[Scene], protocol: Any, most: int = 1000) -> dict[str, float]:
    metric = MissRate(class_names=("person",), protocol=protocol, most=most)
    return metric.compute(state_of(metric, scenes))


def scenes_at_the_limits(seed: int) -> list[Scene]:
    """People as high and as visible as the set-ups' limits, above and below them, some doubled, ignored regions, parts
    of people detected, and places beside them, equal scores; quarters of a pixel, so that limits are met exactly.
    """
    draw = np.random.default_rng(seed)
    scenes = []
    for _ in range(int(draw.integers(1, 9))):
        count = int(draw.integers(0, 12))
        height = draw.choice([16, 19.75, 20, 40, 49.75, 50, 75, 75.25, 93.5, 93.75, 120], count)
        visible = draw.choice([0.1, 0.2, 0.4, 0.65, 0.75, 1.0], count)
        left, top = np.round(draw.uniform(0, [[120], [80]], (2, count)) * 4) / 4
        left[1::4], top[1::4] = left[: len(left[1::4])] + 2, top[: len(top[1::4])] + 2
        labels = np.column_stack([left, top, left + 40, top + height, draw.random(count) < 0.15, visible])
        found = labels[draw.integers(0, max(count, 1), 3 * count if count else 0), :4]
        found[:, 2] -= draw.choice([0, 4, 18, 20, 24, 30], len(found))
        found[:, 3] += draw.choice([-10, -0.25, 0, 0, 0.25], len(found))
        beside = [[200, 0, 240, high] for high in draw.choice([16, 40, 93.5, 93.75, 100], int(draw.integers(0, 3)))]
        found = np.concatenate([found, np.reshape(beside, (-1, 4))])
        scores = np.round(draw.random(len(found)), int(draw.choice([1, 6])))
        scenes.append(Scene((240, 320), labels, np.column_stack([found, scores])))
    return scenes


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


@pytest.mark.parametrize("has_numba", [True, False])
def test_equals_the_rule_of_citypersons_at_every_limit(has_numba: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 sets; in half of them the highest-scoring four of an image are taken, before heights are filtered."""
    monkeypatch.setattr(numba_kernels, "_has_numba", lambda: has_numba)
    for seed in range(200) if has_numba else range(20):
        scenes, most = scenes_at_the_limits(seed), 4 if seed % 2 else 1000
        expected = literal_rates(scenes, most)
        assert rates(scenes, "citypersons", most) == pytest.approx(expected, abs=1e-12, nan_ok=True), seed


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


def test_the_highest_scoring_are_taken_before_heights_are_filtered() -> None:
    """By hand: one detection an image is looked at, and it is too low for `reasonable`, of which nothing is found."""
    person, low = [0, 0, 40, 100], [100, 0, 140, 30]
    scene = Scene((200, 300), np.array([[*person, 0, 1.0]]), np.array([[*person, 0.5], [*low, 0.9]]))
    assert rates([scene], "citypersons", 1)["mr_reasonable"] == 1
    assert rates([scene], "citypersons", 2)["mr_reasonable"] == 0


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


def test_a_person_outside_a_set_up_of_ecp_may_be_found_twice() -> None:
    """By hand: nothing is wrong, and one of one found. Once the other person counts, its second detection is wrong."""
    rows = np.array([[0, 0, 40, 100, 0, 1.0], [60, 0, 100, 100, 0, 0.2]])
    found = np.array([[60, 0, 100, 100, 0.9], [60, 0, 100, 98, 0.8], [0, 0, 40, 100, 0.5]])
    assert rates([Scene((200, 300), rows, found)], "ecp")["mr_reasonable"] == pytest.approx(1e-10)
    rows[1, 5] = 1.0  # one of two is found below one false positive an image, both at the last point
    assert rates([Scene((200, 300), rows, found)], "ecp")["mr_reasonable"] == pytest.approx(
        0.5 ** (8 / 9) * 1e-10 ** (1 / 9)
    )


def test_a_detection_as_high_as_the_limit_of_ecp_is_left_out() -> None:
    """40 / 1.25 = 32 pixels are out of `reasonable`, a quarter of a pixel more is wrong before the right one."""
    person = [0, 0, 40, 100]
    for height, expected in ((32, 1e-10), (32.25, 1e-10 ** (1 / 9))):
        found = np.array([[100, 0, 140, height, 0.9], [*person, 0.5]])
        figures = rates([Scene((200, 300), np.array([[*person, 0, 1.0]]), found)], "ecp")
        assert figures["mr_reasonable"] == pytest.approx(expected)


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
