"""Boxes and the padding of their images: a letterbox moves both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from sightline.doctor.batches import BatchForm
from sightline.ops.numba_kernels import compute_seconds
from sightline.workbench.check.checks.data.augmentation_mismatch import augmentation_mismatch
from sightline.workbench.watch.loop import Found
from sightline.workbench.watch.plain.samples import SEEDS, list_indices, list_leaves, read

_MIN_BAND = 0.06
_NUM_IMAGES, _MAX_CPU_S = 32, 0.4
_MIN_IMAGES, _MIN_SHARE, _MAX_LEFT = 6, 0.25, 0.05
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


def judge_padded(loader: DataLoader[Any], form: BatchForm) -> Iterator[Found]:
    """Yield what `judge_padding` says of samples of a loader's data set, if these are images with boxes."""
    samples = []
    started = compute_seconds()
    for index in list_indices(loader, _NUM_IMAGES):
        inputs, target = form.split(read(loader, index, SEEDS[0]))
        images = [t for t in map(torch.as_tensor, list_leaves(inputs)) if t.ndim == 3 and t.shape[0] in (1, 3, 4)]
        boxes = [t for t in map(torch.as_tensor, list_leaves(target)) if t.is_floating_point() and t.shape[-1:] == (4,)]
        if len(images) != 1 or len(boxes) != 1 or compute_seconds() - started > _MAX_CPU_S:
            break
        samples += [(images[0], boxes[0].reshape(-1, 4))] if boxes[0].numel() else []
    yield from judge_padding(samples)


def judge_padding(samples: Sequence[tuple[Tensor, Tensor]]) -> Iterator[Found]:
    """Yield a fault for boxes that lie on the bands of padded images, and not if they are moved by these bands.

    Samples are images (C, H, W) and boxes (N, 4): corners in pixels, or shares of the sides. Boxes in which the right
    is not beyond the left are centres and sizes.
    """
    contents = [find_content(image) for image, _ in samples]
    boxes = [_to_corners(given, content) for (_, given), content in zip(samples, contents, strict=True)]
    padded = [(c, b) for c, b in zip(contents, boxes, strict=True) if c.is_padded()]
    if len(padded) < _MIN_IMAGES or not all(bool((b[:, 2:] > b[:, :2]).all()) for _, b in padded):
        return
    left_as_given = np.mean([_measure_outside(content, corners) for content, corners in padded])
    moved = [(content, corners + torch.tensor([*content.inside[:2]] * 2)) for content, corners in padded]
    left_if_moved = np.mean([_measure_outside(content, corners) for content, corners in moved])
    if left_as_given > _MIN_SHARE and left_if_moved < _MAX_LEFT:
        yield augmentation_mismatch.with_fault(
            "boxes are not moved with their padded images: they lie on the bands",
            causes=("data.augment_target_mismatch", "data.pairing"),
            measured=f"in {len(padded)} padded images {left_as_given:.0%} of the boxes reach into a band; if they are "
            f"moved by its width, {left_if_moved:.0%}",
            expected="boxes within what is not padding",
            action="add the left and the top band to the boxes after they are scaled",
        )


def find_content(image: Tensor) -> Content:
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
