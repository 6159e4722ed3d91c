"""Coverage of a range projection, and the upper bound of the mIoU that it allows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sightline.ops.dtypes import widen_labels
from sightline.ops.views.projection import Projection, RangeView, count_coverage, gather_to_image, project_scans
from sightline.ops.voxels.lift import KNNVote, lift_knn, lift_nearest


def upper_bound_confusions(
    label: Tensor, projection: Projection, *, offsets: Tensor, num_classes: int, vote: KNNVote
) -> dict[str, Tensor]:
    """Compute the point confusions (C, C), rows predicted, of a network that labels every pixel correctly.

    The true labels (P,) are projected and lifted back, by `nearest` and by `knn`. Tables of several scans may be added.
    """
    image = gather_to_image(projection.point_index, label, empty=vote.void)
    ranges = gather_to_image(projection.point_index, projection.ranges, empty=-1)
    pixel = projection.pixel
    lifted = {
        "nearest": lift_nearest(image, pixel=pixel, offsets=offsets),
        "knn": lift_knn(
            image, range_image=ranges, pixel=pixel, point_range=projection.ranges, offsets=offsets, vote=vote
        ),
    }
    cells = num_classes**2
    return {
        name: (predicted * num_classes + label).bincount(minlength=cells).view(num_classes, num_classes)
        for name, predicted in lifted.items()
    }


def mean_iou(confusion: Tensor, *, ignore_index: int | None) -> float:
    """Compute the mean IoU of a confusion (C, C) over the classes that occur, without `ignore_index`.

    NaN without a point.
    """
    table = confusion.double()
    if ignore_index is not None:
        table[:, ignore_index] = 0
    true, right = table.sum(dim=0), table.diagonal()
    return float((right / (true + table.sum(dim=1) - right))[true > 0].mean())


@dataclass
class ProjectionSummary:
    """Counts over the added scans; `ignore_index` is a class below `num_classes`, or no class at all."""

    view: RangeView
    num_classes: int
    ignore_index: int | None
    counts: list[tuple[int, int, int, int]] = field(default_factory=list)
    confusions: dict[str, Tensor] = field(default_factory=dict)

    def add(self, points: Tensor, *, label: Tensor | None, offsets: Tensor, ring: Tensor | None = None) -> None:
        """Add packed scans: points (P, 3) as `project_scans` takes them, with the class (P,) of each point if known."""
        projection = project_scans(points, view=self.view, offsets=offsets, ring=ring)
        coverage = count_coverage(projection)
        num_returns = int((projection.ranges > 0).sum())
        self.counts.append((num_returns, coverage.num_drawn, coverage.num_pixels, coverage.num_clamped))
        if label is None:
            return
        ignored = self.ignore_index
        num_classes = self.num_classes + 1  # the last is for points whose index is not a class
        label = widen_labels(label)
        label = torch.where((label < 0) | (label >= self.num_classes), self.num_classes, label)
        void = self.num_classes if ignored is None or ignored >= self.num_classes else ignored
        vote = KNNVote(void=void, is_circular=self.view.is_full_turn)
        for name, table in upper_bound_confusions(
            label, projection, offsets=offsets, num_classes=num_classes, vote=vote
        ).items():
            table[:, [self.num_classes, void]] = 0  # labels that are not scored
            self.confusions[name] = self.confusions.get(name, torch.zeros_like(table)) + table

    def figures(self) -> dict[str, float]:
        """Compute the shares of points shown, of points above or below the image, and of pixels filled.

        If points have labels, also the mIoU over all points of a network that labels every pixel correctly.
        """
        points, drawn, pixels, _ = (max(1, sum(column)) for column in zip(*self.counts, strict=True))
        shares = {
            "points_shown": drawn / points,
            "points_clamped": sum(count[3] for count in self.counts) / points,
            "pixels_filled": drawn / pixels,
        }
        mious = {f"ceiling_{name}": mean_iou(table, ignore_index=None) for name, table in self.confusions.items()}
        return {name: round(value, 4) for name, value in {**shares, **mious}.items() if not math.isnan(value)}
