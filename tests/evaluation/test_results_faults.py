"""Files of results with planted faults are warned about, and sound ones are not; each on ten seeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sightline.areas.detect.scoring import results_faults
from sightline.store.boxes.detections import Detections, ImageRef

Rows = list[np.ndarray]
Sizes = list[tuple[int, int]]


def made(seed: int, *, num_classes: int = 3) -> tuple[Sizes, Rows, Rows]:
    """Sizes (height, width), labels (G, 7) and detections (D, 6) of a passable detector: moved, doubled, made up."""
    draw = np.random.default_rng(seed)
    sizes, labels, found = [], [], []
    for _ in range(30):
        height, width = (int(side) for side in draw.integers(300, 900, 2))
        count = int(draw.integers(0, 14))
        sides = np.exp(draw.normal(4.3, 0.5, (count, 2)))
        corner = draw.random((count, 2)) * (np.array([width, height]) - sides).clip(min=0)
        truth = np.column_stack([corner, corner + sides, draw.integers(0, num_classes, count), sides.prod(axis=1)])
        truth = np.column_stack([truth, draw.random(count) < 0.1])
        near = truth[draw.integers(0, count, 2 * count)] if count else truth
        moved = near[:, :4] + draw.normal(0, 0.1, (len(near), 4)) * np.tile(near[:, 2:4] - near[:, :2], 2)
        others = draw.random((20, 4)) * np.tile([width, height], 2)
        others = np.column_stack([others[:, :2], np.maximum(others[:, 2:], others[:, :2] + 5)])
        label = np.where(draw.random(len(near)) < 0.8, near[:, 4], draw.integers(0, num_classes, len(near)))
        boxes = np.concatenate([moved, others]).clip(0, [width, height] * 2)
        score = np.concatenate([draw.uniform(0.2, 1, len(moved)), draw.uniform(0.01, 0.4, 20)])
        label = np.concatenate([label, draw.integers(0, num_classes, 20)])
        sizes.append((height, width))
        labels.append(truth)
        found.append(np.column_stack([boxes, score, label]))
    return sizes, labels, found


def faults(sizes: Sizes, labels: Rows, found: Rows, *, most: int = 100) -> list[str]:
    detections = [
        Detections(ImageRef(f"{number}.jpg", number, *size), rows[:, :4], rows[:, 4], rows[:, 5])
        for number, (size, rows) in enumerate(zip(sizes, found, strict=True))
    ]
    return list(results_faults(detections, labels, most=most))


def _written(rows: Rows, sizes: Sizes, order: Callable[..., list[Any]], *, shares: bool = False) -> Rows:
    """Rows whose numbers are those of `order` of left, top, right and bottom, read as left, top, width and height."""
    scales = [np.tile([width, height], 2) if shares else np.ones(4) for height, width in sizes]
    numbers = [np.column_stack(order(*(each[:, :4] / scale).T)) for each, scale in zip(rows, scales, strict=True)]
    return [
        np.column_stack([n[:, :2], n[:, :2] + n[:, 2:], each[:, 4:]]) for n, each in zip(numbers, rows, strict=True)
    ]


BUGS: dict[str, tuple[str, Callable[[Sizes, Rows], Rows]]] = {
    "corners": (
        "boxes look like left, top, right, bottom: so read",
        lambda s, r: _written(r, s, lambda a, b, c, d: [a, b, c, d]),
    ),
    "middles": (
        "boxes look like middle x, middle y, width, height: so read",
        lambda s, r: _written(r, s, lambda a, b, c, d: [(a + c) / 2, (b + d) / 2, c - a, d - b]),
    ),
    "x and y exchanged": (
        "boxes look like top, left, height, width: so read",
        lambda s, r: _written(r, s, lambda a, b, c, d: [b, a, d - b, c - a]),
    ),
    "corners with x and y exchanged": (
        "boxes look like top, left, bottom, right: so read",
        lambda s, r: _written(r, s, lambda a, b, c, d: [b, a, d, c]),
    ),
    "shares": (
        "boxes look like shares of the image; write left, top",
        lambda s, r: _written(r, s, lambda a, b, c, d: [a, b, c - a, d - b], shares=True),
    ),
    "middles as shares, as YOLO writes them": (
        "boxes look like shares of the image; write left, top",
        lambda s, r: _written(r, s, lambda a, b, c, d: [(a + c) / 2, (b + d) / 2, c - a, d - b], shares=True),
    ),
    "a score threshold of 0.7": ("the lowest score is 0.7", lambda s, r: [each[each[:, 4] > 0.7] for each in r]),
    "images left out": (
        "have labels and no detections",
        lambda s, r: [e[: 0 if k % 5 == 0 else None] for k, e in enumerate(r)],
    ),
    "everything twice": ("rows are there twice", lambda s, r: [np.concatenate([each, each]) for each in r]),
}


@pytest.mark.parametrize("name", BUGS)
def test_planted_faults_are_warned_about(name: str) -> None:
    told, plant = BUGS[name]
    for seed in range(10):
        sizes, labels, found = made(seed)
        assert any(told in each for each in faults(sizes, labels, plant(sizes, found))), seed


@pytest.mark.parametrize("num_labels", [2, 10])
def test_corners_that_match_as_sizes_are_warned_about(num_labels: int) -> None:
    """A box of 60 x 45 pixels at (6, 4): with its corners as sizes it is 66 x 49, and AP50 1, AP 0.40."""
    truth = np.array([[6, 4, 66, 49, 0, 2700, 0]], dtype=np.float64)
    box = np.array([[6, 4, 6 + 66, 4 + 49, 0.9, 0]], dtype=np.float64)
    [told] = [
        each
        for each in faults([(60, 80)] * num_labels, [truth] * num_labels, [box] * num_labels)
        if "the lowest score" not in each
    ]
    iou = 0.9 if num_labels == 10 else 0.99
    assert told == (
        f"boxes look like left, top, right, bottom: so read they find {num_labels} labels at an IoU of {iou:g}, as "
        "they are 0; write left, top, width, height in pixels of the files"
    )


@pytest.mark.parametrize("num_classes", [1, 3])
def test_sound_results_are_not_warned_about(num_classes: int) -> None:
    for seed in range(10):
        assert faults(*made(seed, num_classes=num_classes)) == []


def test_results_that_are_cut_or_empty_are_warned_about() -> None:
    sizes, labels, found = made(0)
    assert any("more than 5 detections of a class" in each for each in faults(sizes, labels, found, most=5))
    [warning] = faults(sizes, labels, [each[:0] for each in found])
    assert warning.startswith("no detection is of these images")
