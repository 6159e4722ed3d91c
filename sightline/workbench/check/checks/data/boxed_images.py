"""Boxes that are drawn about the objects of another image: their borders lie on the edges of that one."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline.contract.types import Sample, SampleKey
from sightline.ops.box_forms import clip_boxes_to_image, remove_small_boxes
from sightline.ops.numba_kernels import compute_seconds
from sightline.store.box_fields import BOX_FIELDS
from sightline.workbench.check.context import Context, check
from sightline.workbench.check.core.finding import Fault, Hypothesis, explain
from sightline.workbench.check.core.sample_statistics import describe_sample, read_samples

_NUM_IMAGES, _MIN_IMAGES, _MAX_READ_S = 24, 12, 1.0
_MAX_BOXES, _MIN_SIDE_PX = 16, 6
_SHIFTS = (-2, -1, 1, 2)
_STD = 12**-0.5
"""Standard deviation of a share that is uniform between 0 and 1."""
_MIN_SIGMA, _MAX_CHANCE_SIGMA = 6.0, 3.0


@check(
    "mismatched-boxes",
    "preflight",
    is_quick=False,
    severity="warning",
    causes=("data.pairing", "data.ordering"),
    config_path="data",
)
def mismatched_boxes(context: Context) -> Fault | None:
    """Borders of boxes lie on edges of their own image, if they lie on edges of any of the images next to it.

    Finds: Images and boxes that were paired by another order: boxes of the next image.

    A warning needs images that fit the boxes a few indices on, six standard deviations better than chance, and images
    that do not fit their own: data whose boxes lie on no edges are not judged.
    """
    part = context.built.data.train
    if not BOX_FIELDS.keys() <= part.dataset.info.fields.keys():
        return None
    pictures = [_Edges.find(sample) for sample in _read_images(context)]
    if len(pictures) < _MIN_IMAGES:
        return None
    scores = np.array([[one.score(other) for other in pictures] for one in pictures])
    error = _STD / len(pictures) ** 0.5
    own = _compute_rank(scores, 0)
    if own > 0.5 + _MAX_CHANCE_SIGMA * error:
        return None
    fitting = explain(
        None,
        0,
        (Hypothesis("data.pairing", "", shift) for shift in _SHIFTS),
        likeness=lambda _, shift: _compute_rank(scores, shift),
        above=0.5 + _MIN_SIGMA * error,
    )
    if not fitting:
        return None
    shift, best = fitting[0].hypothesis.prediction, fitting[0].likeness
    return Fault(
        f"images show the objects of the boxes {abs(shift)} {'on' if shift > 0 else 'back'} in the set",
        split=part.split,
        sample=int(part.indices[0]),
        value=own,
        bound=0.5 + _MAX_CHANCE_SIGMA * error,
        measured=f"borders of these boxes are at stronger edges than those of {best:.0%} of the other images, borders "
        f"of the image's own boxes than those of {own:.0%} ({len(pictures)} images, "
        f"{describe_sample(part.dataset, 0)} first)",
        expected="edges at an image's own boxes, not at those of another one",
        action="pair images and boxes by their names, never by their order",
        evidence={"field": "boxes", "shift": shift},
    )


def _read_images(context: Context) -> list[Sample]:
    """Read consecutive samples of the data set, so that those shifted by one have their image among them."""
    dataset, samples = context.built.data.train.dataset, []
    started = compute_seconds()
    for index in range(min(_NUM_IMAGES, len(dataset))):
        try:
            samples += read_samples(dataset, [SampleKey(index, 0, context.config.seed)])
        except Exception:  # noqa: BLE001 - a data set may fail in any way; `first-step` reports it
            return []
        if compute_seconds() - started > _MAX_READ_S:
            break
    return [sample for sample in samples if min(sample["image"].shape[:2]) > 2 * _MIN_SIDE_PX]


class _Edges(NamedTuple):
    """Sums of edges across columns (H + 1, W - 1) down each column, across rows (H - 1, W + 1), and boxes by size."""

    across: Tensor
    down: Tensor
    boxes: Tensor

    @classmethod
    def find(cls, sample: Sample) -> _Edges:
        """Find the edges of an image (H, W, 3), as shares of their mean."""
        grey = torch.as_tensor(sample["image"]).float().mean(dim=-1)
        height, width = grey.shape
        across, down = (grey.diff(dim=axis).abs() for axis in (1, 0))
        boxes = sample["boxes"][:_MAX_BOXES].double() / torch.tensor([width, height] * 2)
        pad = torch.nn.functional.pad
        return cls(
            pad((across / across.mean().clamp(min=1e-6)).cumsum(0), (0, 0, 1, 0)),
            pad((down / down.mean().clamp(min=1e-6)).cumsum(1), (1, 0)),
            boxes,
        )

    def score(self, other: _Edges) -> float:
        """Compute the mean edge at the four borders of another image's boxes; 1 is chance, 0 without boxes."""
        height, width = self.down.shape[0] + 1, self.across.shape[1] + 1
        boxes = (other.boxes * torch.tensor([width, height] * 2)).round().long()
        boxes = clip_boxes_to_image(boxes, (height, width))
        left, top, right, bottom = boxes[remove_small_boxes(boxes, _MIN_SIDE_PX)].T
        sides = [
            *(_find_strongest(self.across.T, x, top, bottom) for x in (left, right)),
            *(_find_strongest(self.down, y, left, right) for y in (top, bottom)),
        ]
        return float(torch.stack(sides).mean()) if len(left) else 0.0


def _find_strongest(sums: Tensor, line: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Find the strongest mean edge (G,) along a border, a pixel to either side of it."""
    lines = ((line - 1 + shift).clamp(0, len(sums) - 1) for shift in (-1, 0, 1))
    return torch.stack([(sums[at, end] - sums[at, start]) / (end - start) for at in lines]).amax(dim=0)


def _compute_rank(scores: np.ndarray, shift: int) -> float:
    """Compute the mean share of images whose boxes fit worse than those `shift` on; 0.5 is chance."""
    count = len(scores)
    rows = [row for row in range(count) if 0 <= row + shift < count]
    return float(np.mean([(scores[row] < scores[row, row + shift]).sum() / (count - 1) for row in rows]))
