"""Boxes are scored as COCO, CrowdHuman and CityPersons score them, by either form."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sightline.areas.detect.metrics.box_ap import BoxAp
from sightline.areas.detect.metrics.crowds import BINS, CrowdAp, MissRate, _score, jaccard_counts, jaccard_index
from sightline.contract.metric import Meter, State, append_rows, pool_states
from sightline.ops import numba_kernels
from sightline.parts.metrics.average_precision import match_predictions
from tests.cases import run_each
from tests.metrics.box_references import (
    COCO_NAMES,
    Image,
    Scene,
    coco_evaluation,
    draw_images,
    spread_regions,
    state_of,
    toy,
)

SIZES = ("", "_small", "_medium", "_large")


def scored(images: list[Image], num_classes: int = 1, **arguments: Any) -> dict[str, float]:
    metric = BoxAp(class_names=tuple(f"class {number}" for number in range(num_classes)), **arguments)
    return metric.compute(coco_state(images, num_classes))


def coco_state(images: list[Image], num_classes: int) -> State:
    """The metric's rows of these images."""
    meter = Meter(BoxAp(class_names=("any",) * num_classes))
    for index, image in enumerate(images):
        meter.update(
            detections=torch.from_numpy(image.detections),
            detection_offsets=torch.tensor([0, len(image.detections)]),
            truth=torch.from_numpy(image.truth),
            truth_offsets=torch.tensor([0, len(image.truth)]),
            sample_index=torch.tensor([index]),
        )
    return meter.state


@pytest.mark.parametrize("case", range(26))
def test_equals_what_pycocotools_gave(shared: Path, case: int) -> None:
    """Empty images, crowds, areas that are not width times height, exactly 32^2."""
    arrays = np.load(shared / "golden" / "detect" / "eval_coco.npz", allow_pickle=False)
    labels = arrays[f"case{case:02d}/gt_image_x_y_w_h_cat_area_crowd_id"].reshape(-1, 9)
    found = arrays[f"case{case:02d}/det_image_x_y_w_h_score_cat"].reshape(-1, 7)
    numbers = sorted({*labels[:, 0], *found[:, 0]})
    classes = sorted({*labels[:, 5], *found[:, 6]})
    images = []
    for number in numbers:
        own, its = labels[labels[:, 0] == number], found[found[:, 0] == number]
        corners = [np.column_stack([each[:, 1:3], each[:, 1:3] + each[:, 3:5]]) for each in (own, its)]
        truth = np.column_stack([corners[0], [classes.index(each) for each in own[:, 5]], own[:, 6:8]])
        images.append(Image(truth, np.column_stack([corners[1], its[:, 5], [classes.index(c) for c in its[:, 6]]])))
    for most, key in ((100, "stats12"), (500, "stats12_maxdets_1_10_500")):
        theirs = list(arrays[f"case{case:02d}/{key}"])
        if most == 500:
            theirs[0] = scored(images, len(classes))["ap"]  # its first line looks for 100, and finds nothing
        assert_same(scored(images, len(classes), most=most), theirs)
    assert_curves(images, classes, {name: arrays[f"case{case:02d}/{name}_T_K_A_M"] for name in CURVES})


CURVES = ("precision_mean_over_recall", "recall")


def assert_curves(images: list[Image], classes: list[float], published: dict[str, np.ndarray]) -> None:
    """Precision, a mean over recalls, and recall by threshold, class from 1, size, and 1, 10 or 100 detections."""
    curves = BoxAp(class_names=("any",) * len(classes)).match(coco_state(images, len(classes)))
    for number, size, (place, most) in itertools.product(range(len(classes)), SIZES, enumerate((1, 10, 100))):
        precision, recall = curves.curve(number, size, most)
        at = slice(None), int(classes[number]) - 1, SIZES.index(size), place
        assert precision.mean(axis=1) == pytest.approx(published["precision_mean_over_recall"][at], abs=1e-9)
        assert recall == pytest.approx(published["recall"][at], abs=1e-9)


def assert_same(found: dict[str, float], expected: list[float]) -> None:
    """Twelve numbers to 1e-9; -1 there is NaN here."""
    for name, value in zip(COCO_NAMES, expected, strict=True):
        assert found[name] == pytest.approx(value, abs=1e-9) if value >= 0 else math.isnan(found[name]), name


@run_each("most", [1, 2, 5, 10, 12, 100, 500])
def test_any_limit_of_detections_is_that_of_pycocotools(most: int) -> None:
    """Also below ten: pycocotools sorts its limits. `ar1` and `ar10` are of one and ten whatever `most` is."""
    images = [Image(one["truth"], one["detections"]) for one in draw_images(np.random.default_rng(7))]
    assert max(int((image.detections[:, 5] == 0).sum()) for image in images) > 12
    images = spread_regions(images, 3)
    limits = sorted({1, 10, most})
    result = coco_evaluation(images, 3, maxDets=limits).eval
    at, expected = limits.index(most), {}
    for size, name in enumerate(SIZES):
        expected |= {f"ap{name}": result["precision"][..., size, at], f"ar{name}": result["recall"][..., size, at]}
    expected |= {"ap50": result["precision"][0, ..., 0, at], "ap75": result["precision"][5, ..., 0, at]}
    expected |= {f"ar{limit}": result["recall"][..., 0, limits.index(limit)] for limit in (1, 10)}
    means = {name: float(values[values > -1].mean()) for name, values in expected.items()}
    metric = BoxAp(class_names=("a", "b", "c"), most=most)
    assert metric.compute(coco_state(images, 3)) == pytest.approx(means, abs=1e-9)


def test_crowds_of_more_than_a_hundred_are_counted_when_asked() -> None:
    """250 people found one by one: with the usual 100 detections an image at most 0.4 of them are recalled."""
    boxes = [[10 * k, 0, 10 * k + 8, 20] for k in range(250)]
    image = Image([[*box, 0, 160, 0] for box in boxes], [[*box, 1 - k / 1000, 0] for k, box in enumerate(boxes)])
    assert scored([image])["ar"] == pytest.approx(0.4)
    assert scored([image], most=500)["ar"] == scored([image], most=500)["ap"] == 1.0


@pytest.mark.parametrize("has_numba", [True, False])
def test_an_iou_equal_to_a_level_finds_the_label(has_numba: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: 200 of 400 and 300 of 400 square pixels are the levels 0.50 and 0.75; at a little less one level fewer.

    Of the other levels the one above is not reached; a region absorbs a detection by half of it, too.
    """
    monkeypatch.setattr(numba_kernels, "_has_numba", lambda: has_numba)
    label = [0, 0, 20, 20, 0, 400, 0]
    for bottom, num_levels in ((10, 1), (9.999, 0), (15, 6), (14.999, 5), (20, 10)):
        figures = scored([Image([label], [[0, 0, 20, bottom, 0.9, 0]])])
        assert figures["ap"] == pytest.approx(num_levels / 10), bottom
        assert figures["ap50"] == pytest.approx(float(num_levels > 0))
        alike = np.array([[20 * bottom / 400]])
        none = np.zeros(1, dtype=bool)
        plain = match_predictions(
            alike, np.array([0.9]), is_ignored=none, is_crowd=none, is_outside_area=none, max_detections=1
        )
        assert int(plain.is_matched.sum()) == num_levels
    for right, ap50 in ((40, 1.0), (40.01, 0.5)):  # of a detection before the right one, half lies in a region, or less
        region = [100, 0, 120, 20, -1, 400, 1]
        found = [[100, 0, 60 + right + 40, 20, 0.9, 0], [0, 0, 20, 20, 0.5, 0]]
        assert scored([Image([label, region], found)])["ap50"] == pytest.approx(ap50)


def two_classes(region_class: int) -> list[Image]:
    """A person and a car, each found; before them, by score, a detection of either class in an ignored region."""
    truth = [[0, 0, 10, 10, 0, 100, 0], [20, 0, 30, 10, 1, 100, 0], [50, 50, 90, 90, region_class, 1600, 1]]
    found = [[0, 0, 10, 10, 0.5, 0], [20, 0, 30, 10, 0.5, 1], [60, 60, 70, 80, 0.9, 0], [60, 60, 70, 80, 0.9, 1]]
    return [Image(truth, found)]


@pytest.mark.parametrize(("region_class", "ap50"), [(-1, (1.0, 1.0)), (0, (1.0, 0.5)), (1, (0.5, 1.0))])
def test_an_ignored_region_absorbs_its_class_or_all(region_class: int, ap50: tuple[float, float]) -> None:
    """By hand: one wrong detection ahead of the right one halves the precision at every recall."""
    metric = BoxAp(class_names=("person", "car"))
    state = coco_state(two_classes(region_class), 2)
    figures = metric.per_class(state)
    assert [figures[name]["ap50"] for name in ("person", "car")] == pytest.approx(ap50)
    assert [figures[name]["count"] for name in ("person", "car")] == [1, 1]
    scored_boxes = metric.tables(state)["scored_boxes"]
    assert (scored_boxes["num_boxes"], scored_boxes["num_ignored"]) == (2, 1)


@pytest.mark.parametrize(("name", "row"), [("detections", [0, 0, 9, 9, 0.5, 2]), ("truth", [0, 0, 9, 9, 2, 81, 0])])
def test_a_class_that_there_is_not_is_refused(name: str, row: list[float]) -> None:
    """Labels that are counted from 1 would lose the last class."""
    batch = {
        "detections": torch.tensor([[0, 0, 9, 9, 0.5, 1]]),
        "detection_offsets": torch.tensor([0, 1]),
        "truth": torch.tensor([[0, 0, 9, 9, 1, 81, 0.0]]),
        "truth_offsets": torch.tensor([0, 1]),
        "sample_index": torch.tensor([0]),
    }
    meter = Meter(BoxAp(class_names=("a", "b")))
    meter.update(**batch)
    assert meter.compute()["ap"] == pytest.approx(1)
    meter.update(**batch | {name: torch.tensor([row]), "sample_index": torch.tensor([1])})
    with pytest.raises(ValueError, match=rf"{name}: found class 2, there are 2 \(0 .. 1\)"):
        meter.compute()


def test_confusions_of_boxes_by_hand() -> None:
    """Rows are labels, the last row and column background; a detection below 0.3 counts nowhere."""
    truth = [
        [0, 0, 10, 10, 0, 100, 0],  # a person, found as one, and again
        [20, 0, 30, 10, 1, 100, 0],  # a car, found as a person before the right one
        [40, 0, 50, 10, 1, 100, 0],  # a car with a detection of too small a score
        [60, 60, 90, 90, -1, 900, 1],
    ]
    found = [
        [0, 0, 10, 10, 0.6, 0],
        [0, 0, 10, 9, 0.9, 0],
        [20, 0, 30, 10, 0.8, 0],
        [20, 0, 30, 10, 0.7, 1],
        [40, 0, 50, 10, 0.29, 1],
        [60, 60, 70, 70, 0.9, 1],  # in an ignored region
        [200, 0, 210, 10, 0.3, 1],
    ]
    other = Image([[0, 0, 10, 10, 0, 100, 0]], [])
    state = coco_state([Image(truth, found), other], 2)
    table = BoxAp(class_names=("person", "car")).tables(state)["confusion"]
    assert table["classes"] == ["person", "car", "background"]
    assert table["counts"] == [[1, 0, 1], [1, 0, 1], [1, 2, 0]]
    empty = BoxAp(class_names=("person",)).tables(coco_state([Image([], [])], 1))["confusion"]
    assert empty["counts"] == [[0, 0], [0, 0]]


@pytest.mark.parametrize("seed", range(20))
def test_confusions_count_every_label_and_detection_once(seed: int) -> None:
    """Rows sum to the labels that count, columns to the detections, but for those that a region may absorb."""
    images = [Image(one["truth"], one["detections"]) for one in draw_images(np.random.default_rng(seed))]
    state = coco_state(images, 4)
    counts = np.array(BoxAp(class_names=("a", "b", "c", "d")).tables(state)["confusion"]["counts"])
    labels = np.concatenate([np.reshape(image.truth, (-1, 7)) for image in images])
    detections = np.concatenate([np.reshape(image.detections, (-1, 6)) for image in images])
    counted = labels[labels[:, 6] == 0, 4].astype(int)
    shown = detections[detections[:, 4] >= 0.3, 5].astype(int)
    assert counts[:-1].sum(axis=1).tolist() == np.bincount(counted, minlength=4).tolist()
    assert (counts[:, :-1].sum(axis=0) <= np.bincount(shown, minlength=4)).all()


@pytest.mark.parametrize("seed", range(20))
def test_without_numba_equals_pycocotools(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a region of no class, which is one of each. The exam of metrics holds the compiled form to the same."""
    monkeypatch.setattr(numba_kernels, "_has_numba", lambda: False)
    images = [Image(one["truth"], one["detections"]) for one in draw_images(np.random.default_rng(seed))]
    assert_same(scored(images, 3), coco_evaluation(spread_regions(images, 3), 3).stats)


# --- CrowdHuman's figures against its own evaluation, and numbers worked by hand ---


CROWD_AP = CrowdAp(class_names=("person",))


def figures(scenes: list[Scene]) -> dict[str, float]:
    return CROWD_AP.compute(state_of(CROWD_AP, scenes))


def indices(state: State) -> np.ndarray:
    return jaccard_index(jaccard_counts(_score(state, 1).groups, 0, len(state["images"]), epsilon=1e-6))


def test_the_toy_of_the_spec() -> None:
    found = figures(toy())
    assert found["crowd_ap"] == pytest.approx(0.405556, abs=1e-6)
    assert found["mr2"] == found["mr2_clamped"] == pytest.approx(0.913837, abs=1e-6)
    expected = [*[0.5833] * 5, 0.3333, 0.1667, 0.1667, 0.25, 0]
    assert indices(state_of(CROWD_AP, toy())) == pytest.approx(expected, abs=5e-5)
    assert found["ji"] == pytest.approx(0.583333, abs=1e-6)


@pytest.mark.parametrize("has_numba", [True, False])
@pytest.mark.parametrize("case", range(26))
def test_equals_the_published_evaluation(
    shared: Path, case: int, has_numba: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numba_kernels, "_has_numba", lambda: has_numba)
    folder = shared / "golden" / "detect"
    arrays = np.load(folder / "eval_crowdhuman.npz", allow_pickle=False)
    scenes = []
    for name, width, height in json.loads((folder / "eval_crowdhuman.json").read_text())["cases"][case]["images"]:
        labels, found = (
            arrays[f"case{case:02d}/{name}/{kind}"].reshape(-1, 5) for kind in ("gt_xywh_ignore", "det_xywh_score")
        )
        labels, found = (
            np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4], rows[:, 4:]], axis=1) for rows in (labels, found)
        )
        scenes.append(Scene((height, width), np.column_stack([labels, np.full(len(labels), np.nan)]), found))
    state = state_of(CROWD_AP, scenes)
    ours = CROWD_AP.compute(state)
    theirs = arrays[f"case{case:02d}/AP_MR2_MR4"].copy()
    theirs[:] = np.nan if np.isnan(theirs).any() else theirs  # without labels their AP is 0, and ours no number
    assert [ours[name] for name in ("crowd_ap", "mr2", "mr4")] == pytest.approx(theirs, abs=1e-12, nan_ok=True)
    curve, listed = _score(state, 1).curve(0), arrays[f"case{case:02d}/sorted_score_tp"]
    np.testing.assert_array_equal(curve.scores, listed[:, 0])
    np.testing.assert_array_equal(np.diff(curve.true_positives, prepend=0), listed[:, 1])
    counts = jaccard_counts(_score(state, 1).groups, 0, len(scenes), epsilon=1e-6)
    index, *numbers = arrays[f"case{case:02d}/JI_k_m_n_per_threshold"].T
    np.testing.assert_array_equal(counts.sum(axis=1)[:, [0, 2, 1]], np.transpose(numbers))
    assert jaccard_index(counts) == pytest.approx(index, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("has_numba", [True, False])
def test_limits_of_the_jaccard_index_have_to_be_exceeded(has_numba: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Boxes whose overlap is one half, exactly, and scores that are a threshold: pairs, detections, labels by hand.

    The first label is half covered by a detection, the second and the detection on it lie by half in an ignored one.
    """
    monkeypatch.setattr(numba_kernels, "_has_numba", lambda: has_numba)
    labels = [[0, 0, 8, 8, 0, 1.0], [20, 0, 28, 8, 0, 1], [24, 0, 40, 8, 1, 1]]
    boxes = [[0, 0, 4, 8, 0.95], [20, 12, 28, 20, 0.5], [36, 0, 44, 8, 0.95]]
    state = state_of(CROWD_AP, [Scene((64, 64), np.array(labels), np.array(boxes))])
    counts = jaccard_counts(_score(state, 1).groups, 0, 1, epsilon=0.0)[:, 0]
    assert counts.tolist() == [[0, 3, 2]] * 5 + [[0, 2, 2]] * 5


def test_nothing_to_count_is_no_number_and_says_why() -> None:
    assert all(math.isnan(value) for value in CROWD_AP.compute(CROWD_AP.new_state()).values())
    tables = CROWD_AP.tables(CROWD_AP.new_state())
    assert tables["scored_boxes_crowd"]["undefined"]["all"] == "no label counts"
    unknown = [scene._replace(labels=scene.labels.copy()) for scene in toy()]
    for scene in unknown:
        scene.labels[:, 5] = np.nan
    undefined = CROWD_AP.tables(state_of(CROWD_AP, unknown))["scored_boxes_crowd"]["undefined"]
    assert undefined["visible < 0.2"] == "the set does not state it"
    assert undefined["height >= 150 px"] == "no label is in this range"


def test_bins_have_the_labels_of_their_range() -> None:
    """By hand: of four labels one stands alone, two overlap by 1/3, one is small; all but one are found."""
    labels = [[0, 0, 40, 100, 0, 1.0], [20, 0, 60, 100, 0, 0.3], [100, 0, 140, 160, 0, 0.7], [0, 120, 10, 140, 0, 0.1]]
    found = [[0, 0, 40, 100, 0.9], [20, 0, 60, 100, 0.8], [0, 120, 10, 140, 0.7], [200, 100, 210, 130, 0.6]]
    rows = CROWD_AP.tables(state_of(CROWD_AP, [Scene((200, 300), np.array(labels, dtype=float), np.array(found))]))[
        "crowd_bins"
    ]
    assert {name: row["count"] for name, row in rows.items()} == dict(
        zip(BINS, (2, 1, 1, 1, 2, 1, 2, 2, 0), strict=True)
    )
    assert {name: row["recall"] for name, row in rows.items() if row["count"]} == pytest.approx(
        dict(zip(list(BINS)[:-1], (0.5, 1, 1, 1, 1, 0, 0.5, 1), strict=True))
    )
    # the false positive is 30 px high: it counts among small labels, and not among those of 50 to 150 px
    assert rows["height 50 to 150 px"]["crowd_ap"] == pytest.approx(0.5)
    assert rows["height < 50 px"]["mr2"] == 0


def test_states_of_several_parts_keep_images_and_boxes_together() -> None:
    """A part's last images may have no detections, and its states still number the same samples alike."""
    parts = [toy(), toy(), toy()[::-1]]
    parts[0][1] = parts[0][1]._replace(detections=np.zeros((0, 5)))
    pooled = pool_states(CROWD_AP, [state_of(CROWD_AP, part) for part in parts])
    assert CROWD_AP.compute(pooled) == figures([scene for part in parts for scene in part])
    state = CROWD_AP.new_state()
    append_rows(state, "images", torch.tensor([0]), torch.tensor([[5, 5]]))
    assert pool_states(CROWD_AP, [state, state])["images"][:, 0].tolist() == [0, 1]


# --- Miss rates of CityPersons against its script ---


def rates(scenes: list[Scene], protocol: Any) -> dict[str, float]:
    metric = MissRate(class_names=("person",), protocol=protocol)
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
    for protocol, key in (("citypersons_script", "MR_reasonable_small_heavy_all"), ("citypersons", "MR_corrected")):
        ours = np.nan_to_num(list(rates(scenes, protocol).values()), nan=-1.0)
        assert ours == pytest.approx(arrays[f"case{case:02d}/{key}"], abs=1e-12)


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
