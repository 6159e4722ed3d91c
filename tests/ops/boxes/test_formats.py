"""Formats of boxes and boxes around masks: by hand, torchvision where it is installed, and what is refused."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sightline import ops
from tests.cases import run_each

UPRIGHT = {"xyxy": [2.0, 3, 8, 7], "xywh": [2.0, 3, 6, 4], "cxcywh": [5.0, 5, 6, 4]}
TURNED = {  # the box of 6 x 4 with its first corner at (2, 3), by 90 degrees: its width points up, its height right
    "xywhr": [2.0, 3, 6, 4, 90],
    "cxcywhr": [4.0, 0, 6, 4, 90],
    "xyxyxyxy": [2.0, 3, 2, -3, 6, -3, 6, 3],
}
PAIRS = [*itertools.permutations(UPRIGHT, 2), *itertools.permutations(TURNED, 2)]


@run_each("pair", PAIRS)
def test_formats_by_hand(pair: tuple[Any, Any]) -> None:
    source, target = pair
    of = UPRIGHT if source in UPRIGHT else TURNED
    boxes = torch.tensor([of[source]])
    found = ops.box_convert(boxes, source, target)
    torch.testing.assert_close(found, torch.tensor([of[target]]), rtol=1e-6, atol=1e-6)
    assert ops.box_convert(boxes[0], source, target).shape == found.shape[1:]
    assert ops.box_convert(boxes[:0], source, target).shape == (0, found.shape[1])
    assert torch.equal(ops.box_convert(boxes.half(), source, target), found.half())
    assert torch.autograd.gradcheck(
        lambda given: ops.box_convert(given, source, target), boxes.double().requires_grad_()
    )


def test_a_turn_is_counter_clockwise_in_an_image() -> None:
    """By 30 degrees the second corner is right of the first and above it: y is down."""
    corners = ops.box_convert(torch.tensor([0.0, 0, 2, 1, 30], dtype=torch.float64), "xywhr", "xyxyxyxy")
    cosine, sine = math.cos(math.pi / 6), 0.5
    expected = [0, 0, 2 * cosine, -2 * sine, 2 * cosine + sine, cosine - 2 * sine, sine, cosine]
    torch.testing.assert_close(corners, torch.tensor(expected, dtype=torch.float64))


def test_whole_numbers_stay_exact() -> None:
    boxes = torch.tensor([[200, 2, 255, 5]], dtype=torch.uint8)
    sizes = ops.box_convert(boxes, "xyxy", "xywh")
    assert sizes.tolist() == [[200, 2, 55, 3]]
    assert ops.box_convert(sizes.to(torch.uint8), "xywh", "xyxy").tolist() == boxes.tolist()
    large = torch.tensor([2**24 + 1, 0, 2**24 + 2, 5])
    assert ops.box_convert(large, "xyxy", "cxcywh").tolist() == [2**24 + 1.5, 2.5, 1, 5]
    same = ops.box_convert(large, "xyxy", "xyxy")
    same += 1
    assert large[1] == 0, "a copy"


@run_each("dtype", [torch.float32, torch.float64])
def test_formats_are_those_of_torchvision(dtype: torch.dtype) -> None:
    peer = pytest.importorskip("torchvision.ops")
    for source, target in PAIRS:
        boxes = torch.rand(9, {"xyxyxyxy": 8}.get(source, 4 + source.endswith("r")), dtype=dtype) * 50
        torch.testing.assert_close(ops.box_convert(boxes, source, target), peer.box_convert(boxes, source, target))
    masks = torch.rand(5, 9, 7) > 0.9
    masks[:, 3, 4] = True
    assert torch.equal(ops.masks_to_boxes(masks), peer.masks_to_boxes(masks))
    assert torch.equal(ops.remove_small_boxes(boxes[:, :4], 3), peer.remove_small_boxes(boxes[:, :4], 3))


@run_each(
    "boxes, formats, message",
    [
        (torch.rand(3, 4), ("xyxy", "yxyx"), "out_fmt: found 'yxyx', allowed are xyxy, xywh, cxcywh, xywhr"),
        (torch.rand(3, 4), ("ltrb", "xyxy"), "in_fmt: found 'ltrb'"),
        (torch.rand(3, 5), ("xyxy", "xywh"), r"boxes: found \(3, 5\) torch.float32, expected numbers \(..., 4\): xyxy"),
        (torch.rand(3, 5) > 0, ("xywhr", "cxcywhr"), r"boxes: found \(3, 5\) torch.bool"),
        (torch.rand(3, 5), ("xywhr", "xyxy"), "out_fmt: found 'xyxy' for boxes 'xywhr'; upright boxes have no turn"),
    ],
)
def test_other_formats_are_refused(boxes: Tensor, formats: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.box_convert(boxes, *formats)


def test_small_boxes_by_hand() -> None:
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 1.5, 9], [5, 5, 3, 9], [1, 1, 9, 3]])
    assert ops.remove_small_boxes(boxes, 2).tolist() == [0, 3]
    assert ops.remove_small_boxes(boxes, 0).tolist() == [0, 1, 3], "the third has a width of -2"
    assert ops.remove_small_boxes(boxes[:0], 2).tolist() == []


def test_boxes_around_masks_by_hand() -> None:
    masks = torch.zeros(3, 5, 6)
    masks[0, 1, 2] = masks[0, 3, 4] = 1
    masks[1, 4, 5] = -1
    assert ops.masks_to_boxes(masks).tolist() == [[2, 1, 4, 3], [5, 4, 5, 4], [0, 0, 0, 0]]
    assert ops.masks_to_boxes(masks[:0]).shape == (0, 4)
    assert ops.masks_to_boxes(masks[:, :0]).tolist() == [[0.0] * 4] * 3
    with pytest.raises(ValueError, match=r"masks: found the shape \(5, 6\), expected \(N, H, W\)"):
        ops.masks_to_boxes(masks[0])
