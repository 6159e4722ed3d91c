"""Base class of assigners, for boxes of 4 or 7 numbers: the rules of ignore regions, and of images without boxes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from sightline.ops.boxes.overlaps import box_ioa, column_blocks
from sightline.ops.boxes.priors import BACKGROUND, IGNORED, PriorKind, Priors
from sightline.ops.dtypes import promote_to_float32, widen_labels
from sightline.ops.waits import (
    POSITIVE,
    call_on_host,
    find_positive,
    is_on_host,
    read_list,
    recall,
    remember,
    require,
    send_list,
)
from sightline.parts.boxes.padded import PaddedBoxes

_MAX_COVERED = 0.5
"""Highest share of a background anchor's area inside an ignore region; above it the anchor is ignored."""


class Assignment(NamedTuple):
    """Targets of the priors of an image.

    `matched` (P,) int64: the index of a box, `BACKGROUND` or `IGNORED`. `num_claims` (P,) int64: the number of
    boxes that claim the prior by the assigner's rule; with more than one, the choice is ambiguous.
    `second_matched` (P,) int64, for an assigner of two boxes per prior, is the other one.
    """

    matched: Tensor
    num_claims: Tensor
    second_matched: Tensor | None = None


class PriorPredictions(NamedTuple):
    """Predictions of a network at the priors of an image, float32 at least and without gradient.

    `logits` (P, K) before the sigmoid, decoded `boxes` (P, D), of as many numbers as those that are assigned,
    `objectness` (P,) before the sigmoid, or None. For a head of two predictions at each prior they are (P, 2, K) and
    (P, 2, D).
    """

    logits: Tensor
    boxes: Tensor
    objectness: Tensor | None = None

    @classmethod
    def from_tensors(cls, logits: Tensor, boxes: Tensor, objectness: Tensor | None = None) -> PriorPredictions:
        """Build predictions from logits (P, K), boxes (P, D) and objectness (P,), detached and in float32 at least."""
        tensors = (
            None if tensor is None else promote_to_float32(tensor.detach()) for tensor in (logits, boxes, objectness)
        )
        return cls(*tensors)  # type: ignore[arg-type]


_Image = tuple[Tensor, Tensor, Tensor | None, PriorPredictions | None]
"""Boxes (M, D) of an image, `is_ignored` (M,), and labels (M,) and predictions for assigners that need them."""


class Assigner(ABC):
    """Assigner of boxes to the priors of an image, or of a frame of points; no gradient, no random numbers.

    It is called with the boxes of one image, or by `assign_batch` with those of a padded batch. Subclasses implement
    their rule in `match`, and state `num_sides`, the numbers of a box. Ties go to the lower index, of a box or of a
    prior.
    """

    prior_kinds: ClassVar[frozenset[PriorKind]]
    """The kinds of priors that it can assign boxes to."""
    num_sides: ClassVar[int] = 4
    """Numbers of a box: 4 (left, top, right, bottom in pixels) or 7 (x, y, z, dx, dy, dz in metres, yaw)."""
    needs_predictions: ClassVar[bool] = False
    """True if `match` also reads `labels` and the network's predictions, a `PriorPredictions`."""
    needs_labels: ClassVar[bool] = False
    """True if `match` also reads `labels`, without predictions: anchors may be of a class each."""
    excludes: ClassVar[frozenset[str]] = frozenset()
    """Outputs that its targets do not train, such as `objectness`: heads that predict one do not fit."""
    remark: ClassVar[str] = ""
    """What has to be said where its assignment is drawn: a word or two, "; ", and a sentence."""
    boxes_per_prior: int = 1
    """Number of boxes that it assigns to each prior, 1 or 2; with 2, `match` also returns `second_matched`."""

    @torch.no_grad()
    def __call__(
        self,
        priors: Priors,
        boxes: Tensor,
        is_ignored: Tensor,
        labels: Tensor | None = None,
        predicted: PriorPredictions | None = None,
    ) -> Assignment:
        """Assign boxes (M, D) to priors; `is_ignored` (M,) bool marks the boxes that are ignore regions.

        A region is never a target. A background prior becomes ignored if `is_in_regions` says so; a prior with a box
        keeps it. `labels` (M,) and `predicted` are read if `needs_predictions` is True, `labels` alone if
        `needs_labels` is. Under autocast, too, `match` gets predictions in float32 at least.
        Raises ValueError for priors of another kind, for `boxes` or `is_ignored` of another shape, for an `is_ignored`
        that is not bool, for numbers that are not finite, for missing predictions, and for a faulty result of `match`.
        """
        return self._assign_images(priors, [(boxes, is_ignored, labels, predicted)])[0]

    @torch.no_grad()
    def assign_batch(
        self, priors: Priors, padded: PaddedBoxes, predicted: Sequence[PriorPredictions] | None = None
    ) -> list[Assignment]:
        """Assign the boxes (B, M, D) of a batch, an `Assignment` for each image: the same bits as a call with each.

        Indices of boxes count those of the image, without the padding. Waits for a GPU once at most. Raises ValueError
        as a call does, for tensors of other shapes, and for a number of `predicted` that is not that of the images.
        """
        images = padded.split_images()
        if predicted is not None and len(predicted) != len(images):
            raise ValueError(f"{type(self).__name__}: found predictions of {len(predicted)} images of {len(images)}")
        more: Sequence[PriorPredictions | None] = predicted or [None] * len(images)
        arguments = [(*image, of_image) for image, of_image in zip(images, more, strict=True)]
        if is_on_host(priors.coordinates) or type(self).__call__ is not Assigner.__call__:
            return [self._call_image(priors, *image) for image in arguments]
        return self._assign_images(priors, arguments)

    def _call_image(
        self,
        priors: Priors,
        boxes: Tensor,
        is_ignored: Tensor,
        labels: Tensor | None,
        predicted: PriorPredictions | None,
    ) -> Assignment:
        """Call the assigner, which a subclass may have changed, with the arguments that its kind is called with."""
        if predicted is None and not self.needs_labels:
            return self(priors, boxes, is_ignored)
        return self(priors, boxes, is_ignored, labels, predicted)

    def _assign_images(self, priors: Priors, images: Sequence[_Image]) -> list[Assignment]:
        """Assign the boxes of several images; choices among predictions are made on the host, as they are many."""
        for boxes, is_ignored, labels, predicted in images:
            self._assert_known(priors, boxes, is_ignored)
            if self.needs_predictions and (labels is None or predicted is None or len(predicted.logits) != len(priors)):
                count = "none" if predicted is None else f"those of {len(predicted.logits)}"
                raise ValueError(
                    f"{type(self).__name__}: needs labels and predictions at {len(priors)} priors, found {count}"
                )
            if self.needs_labels and labels is None:
                raise ValueError(f"{type(self).__name__}: needs the labels of boxes, found none")
        if not len(priors):
            return [self._assign_nothing(priors) for _ in images]
        if self.needs_predictions and not is_on_host(priors.coordinates):
            return self._assign_on_host(priors, images)
        device, assignments = priors.coordinates.device, []
        flags = [read_list(is_ignored) for _, is_ignored, *_ in images]
        targets, regions = (
            [send_list([row for row, flag in enumerate(rows) if flag is ignored], device) for rows in flags]
            for ignored in (False, True)
        )
        wide = [boxes.to(priors.coordinates.dtype) for boxes, *_ in images]
        target_boxes = [boxes[rows] for boxes, rows in zip(wide, targets, strict=True)]
        for rows, boxes, (*_, labels, predicted) in zip(targets, target_boxes, images, strict=True):
            if not len(rows):
                assignments.append(self._assign_nothing(priors))
                continue
            arguments: tuple[Any, ...] = ()
            if labels is not None and predicted is not None and self.needs_predictions:
                arguments = widen_labels(labels, "labels")[rows], PriorPredictions.from_tensors(*predicted)
            elif labels is not None and self.needs_labels:
                arguments = (widen_labels(labels, "labels")[rows],)
            with torch.autocast(device.type, enabled=False):
                assignments.append(self.match(priors, boxes, *arguments))
            self._assert_assigned(assignments[-1], len(priors), len(rows))
        return [
            _among_all(assignment, rows, self.is_in_regions(boxes[region_rows], priors))
            for assignment, rows, boxes, region_rows in zip(
                self.settle(priors, target_boxes, assignments), targets, wide, regions, strict=True
            )
        ]

    def _assign_nothing(self, priors: Priors) -> Assignment:
        none = torch.full((len(priors),), BACKGROUND, device=priors.coordinates.device)
        return Assignment(none, torch.zeros_like(none), none if self.boxes_per_prior == 2 else None)

    def settle(
        self, priors: Priors, boxes: Sequence[Tensor], assignments: Sequence[Assignment]
    ) -> Sequence[Assignment]:
        """Complete the assignments of images by what only the host can decide, in one transfer for all of them."""
        return assignments

    def _assign_on_host(self, priors: Priors, images: Sequence[_Image]) -> list[Assignment]:

        def assign(images: Sequence[_Image]) -> list[tuple[Assignment, tuple[Tensor, ...]]]:
            assignments = self._assign_images(priors.on_host, images)
            return [(assignment, find_positive(assignment.matched)) for assignment in assignments]

        assignments = call_on_host(assign, images, device=priors.coordinates.device)
        for assignment, index in assignments:
            remember(assignment.matched, POSITIVE, index)
        return [assignment for assignment, _ in assignments]

    @abstractmethod
    def match(self, priors: Priors, boxes: Tensor, *args: Any, **kwargs: Any) -> Assignment:
        """Match priors to `boxes` (M, D) of their dtype; there is one of both at least, and no box is an ignore region.

        If `needs_predictions` is True, `args` are the labels (M,) int64 of the boxes and a `PriorPredictions`; if
        `needs_labels` is, the labels.
        """

    def is_in_regions(self, regions: Tensor, priors: Priors) -> Tensor:
        """Return a mask (P,) of the priors in one of the ignore `regions` (R, D), which are no background.

        In images: points inside of a region, and anchors with more than half of their area in one. In space: priors
        whose middle is in a region seen from above, its sides included.
        """
        is_inside = torch.zeros(len(priors), dtype=torch.bool, device=regions.device)
        if not len(regions):
            return is_inside
        for part in column_blocks(len(regions), len(priors), regions.device):
            rows = promote_to_float32(priors.coordinates[part])
            if self.num_sides == 7:
                is_inside[part] = _is_below(rows[:, :2], promote_to_float32(regions)).any(dim=1)
            elif priors.kind == "anchors":
                is_inside[part] = (box_ioa(rows, promote_to_float32(regions)) > _MAX_COVERED).any(dim=1)
            else:
                is_past = (rows[:, None] >= regions[:, :2]) & (rows[:, None] < regions[:, 2:])
                is_inside[part] = is_past.all(dim=2).any(dim=1)
        return is_inside

    def _assert_assigned(self, assignment: Any, num_priors: int, num_boxes: int) -> None:
        """Raise ValueError for typical mistakes in the result of a `match`."""
        name = type(self).__name__
        if not isinstance(assignment, Assignment):
            raise ValueError(f"{name}: match returned a {type(assignment).__name__}; return an Assignment")
        for field, tensor in assignment._asdict().items():
            if tensor is not None and (tensor.shape != (num_priors,) or tensor.dtype != torch.int64):
                raise ValueError(
                    f"{name}: match returned {field} of {tuple(tensor.shape)} {tensor.dtype}, expected ({num_priors},) "
                    "torch.int64, one number for each prior"
                )
            if tensor is None or not num_priors or field == "num_claims":
                continue
            error = partial(_too_high_error, f"{name}: match returned {field}", tensor, num_boxes)
            require(tensor.max() < num_boxes, error)

    def _assert_known(self, priors: Priors, boxes: Tensor, is_ignored: Tensor) -> None:
        name = type(self).__name__
        if priors.kind not in self.prior_kinds:
            raise ValueError(f"{name}: found {priors.kind} as priors, takes {' or '.join(sorted(self.prior_kinds))}")
        if boxes.ndim != 2 or boxes.shape[1] != self.num_sides or is_ignored.shape != boxes.shape[:1]:
            raise ValueError(
                f"{name}: found boxes {tuple(boxes.shape)} and is_ignored {tuple(is_ignored.shape)}; expected (M, "
                f"{self.num_sides}) and (M,)"
            )
        if priors.kind == "anchors" and priors.coordinates.shape[1] != self.num_sides:
            raise ValueError(
                f"{name}: found anchors {tuple(priors.coordinates.shape)}; its boxes have {self.num_sides} numbers"
            )
        if is_ignored.dtype != torch.bool:
            raise ValueError(f"{name}: is_ignored is {is_ignored.dtype}, expected torch.bool")

        def make_error() -> ValueError:
            row = int((~boxes.isfinite()).any(dim=1).nonzero()[0])
            what = "corners" if self.num_sides == 4 else "numbers"
            return ValueError(f"{name}: boxes[{row}] is {boxes[row].tolist()}; give finite {what}")

        require(boxes.isfinite(), make_error)


def _too_high_error(returned: str, tensor: Tensor, num_boxes: int) -> ValueError:
    return ValueError(f"{returned} {int(tensor.max())} of {num_boxes} boxes, counted from 0")


def _among_all(assignment: Assignment, targets: Tensor, is_hidden: Tensor) -> Assignment:
    """Renumber boxes as in the image, of which `targets` are to be predicted; background `is_hidden` (P,) ignored."""

    def renumber(matched: Tensor) -> Tensor:
        rows = matched
        if len(targets):
            rows = torch.where(matched >= 0, targets[matched.clamp(min=0)], matched)
        rows = torch.where((rows == BACKGROUND) & is_hidden, IGNORED, rows)
        if (index := recall(matched, POSITIVE)) is not None:
            remember(rows, POSITIVE, index)
        return rows

    second = assignment.second_matched
    return Assignment(renumber(assignment.matched), assignment.num_claims, None if second is None else renumber(second))


def argmax_by_group(
    group: Tensor, value: Tensor, member: Tensor, num_groups: int, is_valid: Tensor | None = None
) -> Tensor:
    """Argmax by group: the `member` (n,) int64 with the largest `value` (n,) of each group (num_groups,).

    Ties go to the lowest. -1 for a group that is not in `group` (n,), where it `is_valid` (n,).
    """
    value = value if is_valid is None else torch.where(is_valid, value, -torch.inf)
    highest = value.new_full((num_groups,), -torch.inf).scatter_reduce(0, group, value, "amax")
    is_best = value == highest[group] if is_valid is None else (value == highest[group]) & is_valid
    none = torch.iinfo(torch.int64).max
    winners = torch.full((num_groups,), none, device=value.device)
    winners = winners.scatter_reduce(0, group, torch.where(is_best, member, none), "amin")
    return torch.where(winners == none, -1, winners)


def _is_below(points: Tensor, boxes: Tensor) -> Tensor:
    """Return a mask (P, R) of points x, y (P, 2) in the rectangles of boxes (R, 7) from above, sides included."""
    x, y = (points[:, None] - boxes[:, :2]).unbind(2)
    cos, sin = boxes[:, 6].cos(), boxes[:, 6].sin()
    return ((cos * x + sin * y).abs() <= boxes[:, 3] / 2) & ((cos * y - sin * x).abs() <= boxes[:, 4] / 2)
