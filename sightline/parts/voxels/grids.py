"""What a grid of sparse voxels makes of clouds: voxels, their neighbours, and the best mIoU that it allows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sightline.ops.voxels.cells import sparse_voxels
from sightline.ops.voxels.kernel_maps import submanifold_map
from sightline.parts.metrics.confusion import class_ious

_FEWEST_NEIGHBOURS = 1.5
"""Voxels in the kernel of size 3 around one, by the mean: published grids have 1.8 (2 cm, a thinned scene of ScanNet)
to 9.7 (5 cm, a room of S3DIS). A voxel without a neighbour has 1."""
_MIN_POINTS = 100
"""Points from which on a grid is judged."""
_MOST_POINTS = 50
"""Points of a voxel, by the mean, from which a grid is far too coarse for them."""
_LOWEST_BEST = 0.9
"""Best mIoU of a grid, below which it hides what networks are trained to tell apart: S3DIS at 5 cm has 0.98."""


@dataclass
class GridSummary:
    """Counts over the clouds that were added, of voxels with the side `grid_m`, in the unit of the points."""

    grid_m: float
    num_classes: int = 0
    ignore_index: int | None = None
    num_clouds: int = 0
    num_points: int = 0
    num_voxels: int = 0
    num_pairs: int = 0
    most_points: int = 0
    num_labelled: int = 0
    num_mixed: int = 0
    confusion: Tensor | None = None

    def add(self, points: Tensor, *, label: Tensor | None = None, offsets: Tensor | None = None) -> None:
        """Add packed clouds: points (P, 3), with the class (P,) of each if known. Raises as `sparse_voxels`."""
        if not len(points):
            return
        voxels = sparse_voxels(points, offsets, side=self.grid_m)
        self.num_clouds += len(voxels.offsets) - 1
        self.num_points += len(points)
        self.num_voxels += len(voxels.cells)
        self.num_pairs += int((submanifold_map(voxels.cells, voxels.offsets, size=3).table >= 0).sum())
        self.most_points = max(self.most_points, int(voxels.num_points.max()))
        if label is None:
            return
        counts = voxels.count_labels(label, self.num_classes, self.ignore_index)
        self.num_labelled += int((counts.sum(dim=1) > 0).sum())
        self.num_mixed += int(((counts > 0).sum(dim=1) > 1).sum())
        predicted = voxels.vote(label, self.num_classes, self.ignore_index)[voxels.inverse]
        pairs = label.long() * self.num_classes + predicted
        pairs = pairs if self.ignore_index is None else pairs[label != self.ignore_index]
        table = pairs.bincount(minlength=self.num_classes**2).view(self.num_classes, -1)
        self.confusion = table if self.confusion is None else self.confusion + table

    @property
    def neighbours(self) -> float:
        """Voxels in the kernel of size 3 around a voxel, itself among them, by the mean: 1 to 27."""
        return self.num_pairs / max(1, self.num_voxels)

    @property
    def points_per_voxel(self) -> float:
        """Points of a voxel, by the mean."""
        return self.num_points / max(1, self.num_voxels)

    @property
    def best_miou(self) -> float | None:
        """mIoU over all points of a network that gives each voxel the commonest class of its points, the best it can.

        Over the classes that occur; None without labels.
        """
        if self.confusion is None or not self.num_labelled:
            return None
        return float(class_ious(self.confusion).nanmean())

    def figures(self) -> dict[str, Any]:
        """Return the figures by name, rounded; shares of classes and the best mIoU if points have labels."""
        figures: dict[str, Any] = {
            "grid_m": self.grid_m,
            "voxels_per_cloud": round(self.num_voxels / max(1, self.num_clouds)),
            "points_per_voxel": round(self.points_per_voxel, 2),
            "most_points": self.most_points,
            "neighbours_of_27": round(self.neighbours, 1),
        }
        if (best := self.best_miou) is not None:
            figures |= {
                "voxels_of_several_classes": round(self.num_mixed / self.num_labelled, 4),
                "best_miou": round(best, 4),
            }
        return {**figures, **({"doubts": doubts} if (doubts := self.list_doubts()) else {})}

    def list_doubts(self) -> list[str]:
        """Return what is wrong with the grid for these clouds, the likeliest cause first; empty if nothing is."""
        doubts: list[str] = []
        if self.num_points < _MIN_POINTS:
            return doubts
        if self.points_per_voxel > _MOST_POINTS:
            doubts.append(
                f"a voxel of {self.grid_m:g} m has {self.points_per_voxel:.0f} points on average, which become one: "
                "correct the unit of the coordinates, which are to be metres, or lower model.grid_m"
            )
        elif self.neighbours < _FEWEST_NEIGHBOURS:
            doubts.append(
                f"a voxel of {self.grid_m:g} m has {self.neighbours:.1f} of the 27 in a kernel of size 3, itself among "
                "them, so that convolutions see hardly more than points: correct the unit of the coordinates, which "
                "are to be metres, or raise model.grid_m"
            )
        if (best := self.best_miou) is not None and best < _LOWEST_BEST:
            doubts.append(
                f"no network with voxels of {self.grid_m:g} m has a mIoU above {best:.2f} on these points, as "
                f"{self.num_mixed / self.num_labelled:.1%} of the voxels have points of several classes: lower "
                "model.grid_m, or look for labels that are not of their points"
            )
        return doubts
