"""RoIAlign against loops over samples, written from its definition, and numbers worked by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sightline.ops.roi_align import roi_align
from tests.cases import run_each

BOXES = torch.tensor(
    [
        [0, 1.3, 2.1, 9.7, 6.2],
        [1, -3.0, -2.0, 4.0, 3.0],
        [1, 5.0, 3.0, 40.0, 30.0],
        [0, 3.2, 3.2, 3.3, 3.4],
        [1, 6.0, 5.0, 2.0, 1.0],
        [0, 2.0, 1.0, 6.0, 5.0],
    ],
    dtype=torch.float64,
)
"""Inside, partly and far outside, smaller than a cell, the wrong way round, and on whole numbers."""


def features(height: int = 7, width: int = 9) -> Tensor:
    return torch.randn(2, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def sample(plane: np.ndarray, y: float, x: float) -> float:
    height, width = plane.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = (min(max(value, 0.0), size - 1.0) for value, size in ((y, height), (x, width)))
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    upper = plane[top, left] * (1 - (x - left)) + plane[top, right] * (x - left)
    lower = plane[bottom, left] * (1 - (x - left)) + plane[bottom, right] * (x - left)
    return float(upper * (1 - (y - top)) + lower * (y - top))


def pool_in_loops(
    planes: np.ndarray, boxes: np.ndarray, size: tuple[int, int], scale: float, ratio: int, aligned: bool
) -> np.ndarray:
    result = np.zeros((len(boxes), planes.shape[1], *size))
    for number, (image, *corners) in enumerate(boxes.tolist()):
        x1, y1, x2, y2 = (value * scale - (0.5 if aligned else 0) for value in corners)
        sides = [y2 - y1, x2 - x1] if aligned else [max(y2 - y1, 1), max(x2 - x1, 1)]
        bins = [side / count for side, count in zip(sides, size, strict=True)]
        counts = [ratio if ratio > 0 else math.ceil(each) for each in bins]
        for channel, row, column in itertools.product(range(planes.shape[1]), *map(range, size)):
            values = [
                sample(
                    planes[int(image), channel],
                    y1 + row * bins[0] + (i + 0.5) * bins[0] / counts[0],
                    x1 + column * bins[1] + (j + 0.5) * bins[1] / counts[1],
                )
                for i in range(counts[0])
                for j in range(counts[1])
            ]
            result[number, channel, row, column] = sum(values) / max(counts[0] * counts[1], 1) if values else 0
    return result


@run_each("aligned", [False, True])
@run_each("size", [(2, 3), (1, 1)])
@run_each("scale, ratio", [(1.0, 2), (0.5, 1), (1.0, -1), (0.25, 0), (1.0, 3)])
def test_bins_are_means_of_their_samples(aligned: bool, size: tuple[int, int], scale: float, ratio: int) -> None:
    given = features()
    found = roi_align(given, BOXES, size, scale, ratio, aligned)
    expected = pool_in_loops(given.numpy(), BOXES.numpy(), size, scale, ratio, aligned)
    assert np.abs(found.numpy() - expected).max() < 1e-13


def test_a_plane_is_read_at_the_middles_of_bins() -> None:
    """By hand: features that rise by 1 a column and 10 a row are, in a box inside, those of the middles of its bins."""
    plane = torch.arange(8.0)[None, :] + 10 * torch.arange(8.0)[:, None]
    found = roi_align(plane[None, None], [torch.tensor([[4.0, 8.0, 12.0, 12.0]])], 2, 0.5, 2, aligned=True)
    rows, columns = torch.tensor([4.0, 5.0]), torch.tensor([2.5, 4.5])
    assert found[0, 0].tolist() == (10 * rows[:, None] + columns).tolist()


def test_lists_and_numbered_boxes_are_the_same() -> None:
    given, by_image = features(), [BOXES[BOXES[:, 0] == number, 1:] for number in (0, 1)]
    joined = torch.cat([torch.nn.functional.pad(each, (1, 0), value=number) for number, each in enumerate(by_image)])
    assert torch.equal(roi_align(given, by_image, 2, 1.0, 2), roi_align(given, joined, 2, 1.0, 2))
    for ratio in (2, -1):
        none = roi_align(given, [BOXES[:0, 1:]] * 2, (2, 4), sampling_ratio=ratio)
        assert none.shape == (0, 3, 2, 4)


def test_gradients_reach_the_features_alone() -> None:
    given, boxes = features(4, 5).requires_grad_(), BOXES.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda given: roi_align(given, BOXES, 2, 0.7, 2, True), (given,))
    assert torch.autograd.gradcheck(lambda given: roi_align(given, BOXES, 2, 0.7, -1), (given,))
    assert torch.autograd.grad(roi_align(given, boxes, 2).sum(), boxes, allow_unused=True) == (None,)


def test_pooling_compiles_whole_and_keeps_formats() -> None:
    given = features()
    compiled = torch.compile(lambda given, boxes: roi_align(given, boxes, 2, 1.0, 2), fullgraph=True, backend="eager")
    assert torch.equal(compiled(given, BOXES), roi_align(given, BOXES, 2, 1.0, 2))
    half = roi_align(given.bfloat16(), BOXES.float(), 2, 1.0, 2)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, roi_align(given.bfloat16().float(), BOXES.float(), 2, 1.0, 2).bfloat16())


@run_each(
    "call, message",
    [
        (lambda: roi_align(features()[0], BOXES, 2), r"input: found \(3, 7, 9\) torch\.float64, expected floats"),
        (lambda: roi_align(features().long(), BOXES, 2), r"torch\.int64, expected floats"),
        (lambda: roi_align(features(), BOXES[:, 1:], 2), r"boxes: found the shape \(6, 4\), expected \(K, 5\)"),
        (lambda: roi_align(features(), BOXES + 1, 2), r"boxes: found an image's number outside 0\.\.1"),
        (lambda: roi_align(features(), [BOXES[:, 1:]], 2), "boxes: found a list of 1 for 2 images"),
        (lambda: roi_align(features(), [BOXES, BOXES], 2), r"boxes\[0\]: found the shape \(6, 5\), expected \(N, 4\)"),
    ],
)
def test_arguments_that_mean_something_else_are_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
