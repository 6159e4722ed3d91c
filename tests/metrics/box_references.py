"""Rules of box metrics read literally, one loop after another, pycocotools, and images to hold against them."""

from __future__ import annotations

import contextlib
import io
import math
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from sightline.contract.metric import Meter, Metric, State
from tests.metrics.exam import Sample

POINTS = (0.01, 0.0178, 0.0316, 0.0562, 0.1, 0.1778, 0.3162, 0.5623, 1.0)
FINE_POINTS = (0.0001, 0.0003, 0.001, 0.0032, 0.01, 0.0316, 0.1, 0.3162, 1.0)
SET_UPS = {
    "citypersons": {
        "mr_reasonable": (50, math.inf, 0.65, math.inf),
        "mr_small": (50, 75, 0.65, math.inf),
        "mr_heavy": (50, math.inf, 0.2, 0.65),
        "mr_all": (20, math.inf, 0.2, math.inf),
    },
    "ecp": {
        "mr_reasonable": (40, math.inf, 0.6, math.inf),
        "mr_small": (30, 60, 0.6, math.inf),
        "mr_occluded": (40, math.inf, 0.2, 0.6),
        "mr_all": (20, math.inf, 0.2, math.inf),
    },
}
"""Least and largest height, least and largest visible share; the least one does not belong to a set-up of ECP."""


class Scene(NamedTuple):
    """Height and width, labels (G, 6: box, is_ignored, visible) and detections (D, 5: box, score)."""

    size: tuple[int, int]
    labels: np.ndarray
    detections: np.ndarray


def state_of(metric: Metric, scenes: list[Scene]) -> State:
    """The metric's rows of these scenes, one class."""
    meter = Meter(metric)
    for index, (size, labels, found) in enumerate(scenes):
        area = (labels[:, 2] - labels[:, 0]) * (labels[:, 3] - labels[:, 1])
        truth = np.column_stack([labels[:, :4], np.zeros(len(labels)), area, labels[:, 4]])
        meter.update(
            detections=torch.from_numpy(np.column_stack([found, np.zeros(len(found))])),
            detection_offsets=torch.tensor([0, len(found)]),
            truth=torch.from_numpy(truth),
            truth_visible=torch.from_numpy(labels[:, 5].copy()),
            truth_offsets=torch.tensor([0, len(labels)]),
            file_px=torch.tensor([size]),
            sample_index=torch.tensor([index]),
        )
    return meter.state


def toy() -> list[Scene]:
    """The spec's hand-worked images."""
    first = [[0, 0, 10, 20, 0, 1], [12, 0, 22, 20, 0, 1], [50, 50, 90, 90, 1, math.nan]]
    found = [[0, 0, 10, 20, 0.9], [0, 0, 10, 18, 0.8], [60, 60, 70, 80, 0.7], [13, 0, 23, 20, 0.6]]
    second = [[0, 0, 20, 40, 0, 1]]
    both = (first, found), (second, [[50, 0, 60, 20, 0.95], [0, 0, 20, 38, 0.5]])
    return [Scene((100, 100), np.array(labels, dtype=float), np.array(its, dtype=float)) for labels, its in both]


def literal_figures(scenes: list[Scene]) -> dict[str, Any]:
    """AP, MR^-2 and the Jaccard index of each threshold, as section 9.1 of the spec states them."""
    cut = [(_cut(s.labels, s.size), _cut(s.detections, s.size)) for s in scenes]
    listed: list[tuple[float, bool]] = []
    for labels, found in cut:
        listed += _matched(labels, found)
    listed = sorted(listed, key=lambda entry: -entry[0])
    num_labels = sum(1 for labels, _ in cut for label in labels if not label[4])
    recall, precision, fppi = [], [], []
    right = wrong = 0
    for _, is_right in listed:
        right, wrong = right + is_right, wrong + (not is_right)
        recall.append(right / num_labels if num_labels else math.nan)
        precision.append(right / (right + wrong))
        fppi.append(wrong / len(scenes))
    area = sum((recall[k] - recall[k - 1]) * (precision[k] + precision[k - 1]) / 2 for k in range(1, len(listed)))
    nothing = math.nan if not num_labels else None
    rates: dict[str, float] = {}
    for name, points in {"mr2": POINTS, "mr4": FINE_POINTS}.items():
        reached = [next((k for k in range(len(listed)) if fppi[k] >= point), -1) for point in points]
        missed = [1 - recall[k] if listed else 1.0 for k in reached]
        rates[name] = nothing or geometric_mean(missed)
        rates[f"{name}_clamped"] = nothing or geometric_mean([max(rate, 1e-10) for rate in missed])
    jaccard = []
    for threshold in range(10):
        each = [_jaccard(labels, found, threshold / 10) for labels, found in cut]
        counted = [index for index in each if index is not None]
        jaccard.append(sum(counted) / len(counted) if counted else math.nan)
    return {"crowd_ap": nothing or area, **rates, "jaccard": jaccard}


def geometric_mean(values: list[float]) -> float:
    """0 if one of them is."""
    return math.exp(sum(map(math.log, values)) / len(values)) if min(values) > 0 else 0.0


def literal_rates(scenes: list[Scene], most: int, protocol: str = "citypersons") -> dict[str, float]:
    """The script of CityPersons as issue 40 describes it, a loop over detections; a recall of 0 below the curve.

    `citypersons_script` has the final recall there. `ecp` as the docstring of the metric describes it.
    """
    is_ecp, rates = protocol == "ecp", {}
    points = [10 ** (k / 4 - 2) for k in range(9)] if is_ecp else POINTS
    for name, (low, high, least, largest) in SET_UPS["ecp" if is_ecp else "citypersons"].items():
        listed: list[tuple[float, bool]] = []
        num_labels = 0
        for scene in scenes:
            counted, others = [], []
            edges = (scene.size[1], scene.size[0]) * 2
            for *box, is_ignored, visible in scene.labels.tolist():
                label = [min(max(x, 0), edge) for x, edge in zip(box, edges, strict=True)] if is_ecp else box
                fits = low <= label[3] - label[1] <= high and least <= visible <= largest
                fits &= not (is_ecp and visible == least)
                if fits and not is_ignored:
                    counted.append(label)
                else:
                    others.append((label, is_ignored or not is_ecp))
            num_labels += len(counted)
            highest = sorted(scene.detections.tolist(), key=lambda row: -row[4])[:most]
            for row in highest:
                height = row[3] - row[1]
                if not low / 1.25 <= height < high * 1.25 or (is_ecp and height == low / 1.25):
                    continue
                best, chosen = 0.5, None
                for label in counted:
                    if plain_iou(row, label) >= best:
                        best, chosen = plain_iou(row, label), label
                if chosen is not None:
                    counted.remove(chosen)
                    listed.append((row[4], True))
                elif not any(
                    (shared_area(row, label) / box_area(row) if by_share else plain_iou(row, label)) >= 0.5
                    for label, by_share in others
                ):
                    listed.append((row[4], False))
        listed.sort(key=lambda entry: -entry[0])
        final = sum(is_right for _, is_right in listed)
        missed = []
        for point in points:
            right = wrong = 0
            reached = final if protocol == "citypersons_script" else 0
            for _, is_right in listed:
                right, wrong = right + is_right, wrong + (not is_right)
                reached = right if wrong / len(scenes) <= point else reached
            missed.append(max(1 - reached / max(num_labels, 1), 1e-10 if is_ecp else 0.0))
        rates[name] = geometric_mean(missed) if num_labels else math.nan
    return rates


def _cut(rows: np.ndarray, size: tuple[int, int]) -> list[list[float]]:
    height, width = size
    result = []
    for left, top, right, bottom, *others in rows.tolist():
        corner = [min(max(left, 0), width - 1), min(max(top, 0), height - 1)]
        result.append([*corner, min(max(right, 0), width), min(max(bottom, 0), height), *others])
    return result


def shared_area(a: list[float], b: list[float]) -> float:
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)


def box_area(a: list[float]) -> float:
    return (a[2] - a[0]) * (a[3] - a[1])


def plain_iou(a: list[float], b: list[float]) -> float:
    return shared_area(a, b) / (box_area(a) + box_area(b) - shared_area(a, b))


def _iou(a: list[float], b: list[float]) -> float:
    return shared_area(a, b) / (box_area(a) + box_area(b) - shared_area(a, b) + 1e-6)


def _inside(a: list[float], b: list[float]) -> bool:
    return shared_area(a, b) / (box_area(a) + 1e-6) > 0.5


def _matched(labels: list[list[float]], found: list[list[float]]) -> list[tuple[float, bool]]:
    free = [label for label in labels if not label[4]]
    entries = []
    for detection in sorted(found, key=lambda row: -row[4]):
        best, chosen = 0.5, None
        for place, label in enumerate(free):
            if _iou(detection, label) > best:
                best, chosen = _iou(detection, label), place
        if chosen is not None:
            del free[chosen]
            entries.append((detection[4], True))
        elif not any(_inside(detection, label) for label in labels if label[4]):
            entries.append((detection[4], False))
    return entries


def _jaccard(labels: list[list[float]], found: list[list[float]], threshold: float) -> float | None:
    own = [row for row in found if row[4] > threshold]
    people, regions = [row for row in labels if not row[4]], [row for row in labels if row[4]]
    alike = np.array([[_iou(a, b) if _iou(a, b) > 0.5 else 0.0 for b in people] for a in own])
    rows, columns = linear_sum_assignment(alike, maximize=True) if own and people else ([], [])
    pairs = [(r, c) for r, c in zip(rows, columns, strict=True) if alike[r, c] > 0]
    paired = [{r for r, _ in pairs}, {c for _, c in pairs}]
    m, n = (
        sum(k in of or not any(_inside(row, region) for region in regions) for k, row in enumerate(each))
        for each, of in zip((own, people), paired, strict=True)
    )
    return len(pairs) / (m + n - len(pairs) + 1e-6) if m + n else None


# --- pycocotools ------------------------------------------------------------------------------------------------------


COCO_NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10")
COCO_NAMES += ("ar", "ar_small", "ar_medium", "ar_large")
"""Our names of pycocotools' twelve numbers, in its order."""


class Image:
    """One image's labels (G, 7) and detections (D, 6)."""

    def __init__(self, truth: Any, detections: Any) -> None:
        self.truth = np.array(truth, dtype=float).reshape(-1, 7)
        self.detections = np.array(detections, dtype=float).reshape(-1, 6)


def coco_evaluation(images: list[Image], num_classes: int, **parameters: Any) -> Any:
    """pycocotools' evaluation; ids are those of labels, and of detections, in order, from 1."""
    coco_module, eval_module = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    boxes = lambda row: [row[0], row[1], row[2] - row[0], row[3] - row[1]]  # noqa: E731
    annotations, results = [], []
    for index, image in enumerate(images):
        for row in image.truth:
            about = {"id": len(annotations) + 1, "image_id": index, "category_id": int(row[4]) + 1}
            annotations.append({**about, "bbox": boxes(row), "area": row[5], "iscrowd": int(row[6])})
        for row in image.detections:
            results.append({"image_id": index, "category_id": int(row[5]) + 1, "bbox": boxes(row), "score": row[4]})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco_module.COCO()
        truth.dataset = {
            "images": [{"id": index} for index in range(len(images))],
            "annotations": annotations,
            "categories": [{"id": number + 1} for number in range(num_classes)],
        }
        truth.createIndex()
        evaluation = eval_module.COCOeval(truth, truth.loadRes(results), "bbox")
        for name, value in parameters.items():
            setattr(evaluation.params, name, value)
        evaluation.evaluate()
        evaluation.accumulate()
        if not parameters:
            evaluation.summarize()
    return evaluation


def spread_regions(images: list[Image], num_classes: int) -> list[Image]:
    """The same images, labels of no class copied for each: pycocotools does not know them."""
    spread = []
    for image in images:
        is_free = image.truth[:, 4] < 0
        copies = [np.where(np.arange(7) == 4, number, image.truth[is_free]) for number in range(num_classes)]
        spread.append(Image(np.concatenate([image.truth[~is_free], *copies]), image.detections))
    return spread


# --- samples ----------------------------------------------------------------------------------------------------------


_LABELS_AT_LIMITS = np.array(
    [
        [60, 0, 100, 100, 0, 4e3, 0],
        [70, 0, 110, 100, 0, 4e3, 0],
        [0, 0, 1, 1, 0, 1.0, 0],
        [-60, -60, -40, -40, 0, 400, 0],
        [210, 100, 250, 150, 0, 2e3, 0],
        [150, 5, 190, 75, 0, 2800, 0],
    ]
)
_DETECTIONS_AT_LIMITS = np.array(
    [
        [65, 0, 105, 100, 0.984375, 0],
        [50, 0, 90, 100, 0.96875, 0],
        [0, 0, 0.5000004, 1, 0.953125, 0],
        [-60, -60, -40, -58, 0.9375, 1],
        [210, 100, 250, 150, 0.921875, 0],
        [150, 5, 190, 75, 0.90625, 0],
        [150, 5, 190, 74, 0.890625, 0],
    ]
)
"""The first detection overlaps two labels equally; the second overlaps the first label alone by more than one half. The
third overlaps one by more than one half, but not with 1e-6 added to the union, the fourth one of another class by 1/10.
The fifth is right, and beyond the border. The last two find one label, which is too high for the set-up `small` of ECP.
"""


def draw_images(random: np.random.Generator) -> list[Sample]:
    """Images of few boxes in quarters of a pixel, at the limits of sizes, visible shares and overlaps.

    Some labels are doubled, ignored or beyond the border. Detections overlap a label by all, 3/4, 1/2 or 1/10, or by
    something else, or lie elsewhere. Class 2 is only predicted, class 3 neither; one image has no label, one nothing.
    """
    samples = []
    for number in range(8):
        count = 0 if number in (3, 6) else int(random.integers(2, 8))
        sizes = random.choice([16.0, 20, 32, 32, 40, 50, 60, 75, 96, 96, 100], (count, 2))
        sizes[::2, 0] = sizes[::2, 1]
        corners = np.round(random.uniform(-20, 180, (count, 2)) * 4) / 4
        corners[4:5] = 201, 20
        boxes = np.concatenate([corners, corners + sizes], axis=1)
        boxes[1::3] = boxes[: len(boxes[1::3])] + np.array([2, 0.25, 2, 0.25])
        label, is_ignored = random.integers(0, 2, count), random.random(count) < 0.2
        label[is_ignored & (random.random(count) < 0.5)] = -1
        area = sizes.prod(axis=1) * random.choice([1.0, 0.75], count)
        chosen = random.integers(0, max(count, 1), 4 * count)
        found = boxes[chosen]
        found[:, 3] -= (found[:, 3] - found[:, 1]) * random.choice([0, 0, 0.25, 0.5, 0.5, 0.9, 0.9, 1.25], len(found))
        is_turned = found[:, 3] < found[:, 1]
        found[is_turned] = found[is_turned][:, [0, 3, 2, 1]]
        found[:, :2] += random.choice([0, 0, 0, 0.25, -3], (len(found), 2))
        if number == 3:
            found = np.array([[5, 5, 45, 105.0], [0, 0, 50, 50]])
        classes = np.where(
            random.random(len(found)) < 0.7, label[chosen] if count else 0, random.integers(0, 3, len(found))
        )
        scores = random.permutation(len(found)) / 64 + number / 1024
        scores = np.round(scores * 8 + 1) / 16
        visible = random.choice([0.1, 0.2, 0.4, 0.6, 0.65, 1.0, 1.0, 1.0, np.nan], count)
        truth = np.column_stack([boxes, label, area, is_ignored])
        detections = np.column_stack([found, scores, np.maximum(classes, 0)])
        if number == 0:
            truth, visible = np.concatenate([truth, _LABELS_AT_LIMITS]), np.concatenate([visible, np.ones(6)])
            detections = np.concatenate([detections, _DETECTIONS_AT_LIMITS])
        size = np.array([180, 200])
        samples.append({"truth": truth, "truth_visible": visible, "file_px": size, "detections": detections})
    return samples
