"""Forms of boxes: numbers worked by hand, and pixels counted."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from sightline.ops.box_forms import FORMATS, box_convert, clip_boxes_to_image, masks_to_boxes, remove_small_boxes
from sightline.ops.box_overlaps import box_area
from tests.cases import run_each

SAME = {"xyxy": [2.0, 3.0, 10.0, 7.0], "xywh": [2.0, 3.0, 8.0, 4.0], "cxcywh": [6.0, 5.0, 8.0, 4.0]}
"""One box in each format."""


@run_each("given, wanted", [*itertools.product(FORMATS, repeat=2)])
def test_formats_are_those_worked_by_hand(given: str, wanted: str) -> None:
    boxes = torch.tensor([SAME[given], SAME[given]])
    found = box_convert(boxes, given, wanted)
    assert found.tolist() == [SAME[wanted]] * 2
    assert found.data_ptr() != boxes.data_ptr()
    assert box_convert(boxes.half()[0], given, wanted).dtype == torch.float16
    whole = box_convert(boxes.long() + 2**24, given, wanted)
    assert whole.dtype == torch.float64, "float32 has no 2^24 + 3"
    if given == wanted:
        assert torch.equal(whole, boxes.double() + 2**24)


def test_conversions_and_cuts_are_differentiable() -> None:
    boxes = torch.tensor([[1.0, 2, 8, 9], [-3, 4, 20, 6]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda boxes: box_convert(boxes, "xyxy", "cxcywh"), (boxes,))
    assert torch.autograd.gradcheck(lambda boxes: clip_boxes_to_image(boxes, (7, 15)), (boxes,))


def test_boxes_are_cut_to_the_image_by_hand() -> None:
    boxes = torch.tensor([[-2.0, -1, 5, 30], [3, 4, 50, 6], [40, 4, 50, 6]])
    found = clip_boxes_to_image(boxes, (20, 30))
    assert found.tolist() == [[0, 0, 5, 20], [3, 4, 30, 6], [30, 4, 30, 6]]
    assert clip_boxes_to_image(boxes[0], (20, 30)).tolist() == found[0].tolist()
    assert clip_boxes_to_image(boxes.int(), (20, 30)).tolist() == found.tolist()


def test_small_boxes_are_left_out_by_hand() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 9], [0, 0, 9, 4], [0, 0, 4, 4], [9, 9, 1, 1], [0, 0, 3.9, 9]])
    assert remove_small_boxes(boxes, 4.0).tolist() == [0, 1, 2]
    assert remove_small_boxes(boxes[:0], 4.0).tolist() == []


def test_boxes_around_masks_hold_their_pixels() -> None:
    masks = np.random.default_rng(0).random((6, 7, 9)) > 0.93
    masks[3] = False
    masks[4], masks[4, 2, 5] = False, True
    for mask, box in zip(masks, masks_to_boxes(torch.from_numpy(masks)).tolist(), strict=True):
        rows, columns = mask.nonzero()
        expected = [columns.min(), rows.min(), columns.max(), rows.max()] if mask.any() else [0, 0, 0, 0]
        assert box == expected
    assert masks_to_boxes(torch.ones(1, 3, 5)).tolist() == [[0, 0, 4, 2]]
    assert masks_to_boxes(torch.ones(0, 3, 5)).shape == (0, 4)


def test_forms_compile_whole() -> None:
    boxes = torch.tensor([[1.0, 2, 8, 9], [-3, 4, 20, 6]])
    masks = torch.eye(4)[None] > 0
    for function, given in (
        (lambda boxes: clip_boxes_to_image(box_convert(boxes, "xywh", "xyxy"), (7, 15)), boxes),
        (lambda boxes: remove_small_boxes(boxes, 7.0), boxes),
        (masks_to_boxes, masks),
        (box_area, boxes),
    ):
        assert torch.equal(torch.compile(function, fullgraph=True, backend="eager")(given), function(given))


def test_other_forms_are_refused() -> None:
    boxes = torch.rand(2, 4)
    with pytest.raises(ValueError, match="out_fmt: found 'yxyx', expected one of xyxy, xywh, cxcywh"):
        box_convert(boxes, "xyxy", "yxyx")
    with pytest.raises(ValueError, match=r"boxes: found the shape \(2, 5\), expected \(\.\.\., 4\)"):
        box_convert(torch.rand(2, 5), "xyxy", "xywh")
    with pytest.raises(ValueError, match=r"boxes: found the shape \(4,\), expected \(N, 4\)"):
        remove_small_boxes(boxes[0], 1.0)
    with pytest.raises(ValueError, match=r"masks: found the shape \(3, 5\), expected \(N, height, width\)"):
        masks_to_boxes(torch.ones(3, 5))
