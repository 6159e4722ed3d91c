"""Boxes and the padding of their images: a letterbox moves both."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline.doctor.attempts import NotApplicableError
from sightline.doctor.evidence import measure
from sightline.doctor.evidence.reading import Source, list_leaves
from sightline.doctor.objects import preserve_generators

_MIN_BAND = 0.06
_NUM_IMAGES, _MIN_IMAGES = 32, 6
_MARGIN = 1.5  # pixels: rounding, and the blur of a resized border


class Content(NamedTuple):
    """Part of an image between bands of one number, as (left, top, right, bottom) in pixels, and the image's sides."""

    inside: tuple[int, int, int, int]
    width: int
    height: int

    def is_padded(self) -> bool:
        """Return True for bands at two sides alone, as of a letterbox; a plain background is on all sides."""
        left, top, right, bottom = self.inside
        is_whole = (left, right) == (0, self.width) or (top, bottom) == (0, self.height)
        return is_whole and max(left, top) > _MIN_BAND * min(self.width, self.height)


class OnBands(NamedTuple):
    """Shares of the boxes of padded images that reach into a band: as they are given, and moved by its width."""

    num_images: int
    given: float
    moved: float


@measure()
def boxes_on_bands(source: Source) -> OnBands:
    """Measure how many boxes lie on the bands of padded images, and would if they were moved by these bands.

    Boxes (N, 4) are corners in pixels, or shares of the sides. If the right is not beyond the left, they are centres
    and sizes.
    """
    padded = []
    with preserve_generators(source.generators()):
        for index in source.iter_timed(source.spread(_NUM_IMAGES)):
            inputs, target = map(list_leaves, source.read(index, 0))
            images = [leaf for leaf in inputs if leaf.ndim == 3 and leaf.shape[0] in (1, 3, 4)]
            boxes = [leaf for leaf in target if leaf.is_floating_point() and leaf.shape[-1:] == (4,)]
            if len(images) != 1 or len(boxes) != 1:
                raise NotApplicableError("no images with boxes")
            content = _find_content(images[0])
            if boxes[0].numel() and content.is_padded():
                padded.append((content, _to_corners(boxes[0].reshape(-1, 4), content)))
    if len(padded) < _MIN_IMAGES or not all(bool((b[:, 2:] > b[:, :2]).all()) for _, b in padded):
        raise NotApplicableError("no padded images with boxes")
    moved = [(content, corners + torch.tensor([*content.inside[:2]] * 2)) for content, corners in padded]
    shares = [float(np.mean([_measure_outside(*each) for each in pairs])) for pairs in (padded, moved)]
    return OnBands(len(padded), *shares)


def _find_content(image: Tensor) -> Content:
    """Find what is between the bands of one colour at the sides of an image (C, H, W); all of it without bands."""
    is_border = image == image[:, :1, :1]
    rows, columns = is_border.all(dim=0).all(dim=1), is_border.all(dim=0).all(dim=0)
    spans = []
    for is_band in (columns, rows):
        inside = (~is_band).nonzero().flatten()
        spans.append((int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, len(is_band)))
    (left, right), (top, bottom) = spans
    return Content((left, top, right, bottom), image.shape[2], image.shape[1])


def _to_corners(boxes: Tensor, content: Content) -> Tensor:
    """Return corners in pixels."""
    boxes = boxes.double()
    if float(boxes.max()) <= 1 + 1e-3:
        boxes = boxes * torch.tensor([content.width, content.height] * 2)
    if bool((boxes[:, 2:] > boxes[:, :2]).all()):
        return boxes
    return torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], dim=1)


def _measure_outside(content: Content, boxes: Tensor) -> float:
    """Compute the share of boxes that reach beyond the content of their image."""
    left, top, right, bottom = content.inside
    low, high = torch.tensor([left, top]) - _MARGIN, torch.tensor([right, bottom]) + _MARGIN
    return float(((boxes[:, :2] < low).any(dim=1) | (boxes[:, 2:] > high).any(dim=1)).double().mean())
