"""Scores of a predictor that has learnt nothing: the commonest box at each cluster of points above the ground.

`python -m benchmarks.commonest_box CONFIG [KEY=VALUE ...]` prints its AP on the test part, beside which that of a
network is read. Size, height and heading are those of the class with the most boxes in the validation part; the width
of the cells whose neighbours make a cluster is the best of `CELLS_M` there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.ndimage
import torch
from torch import Tensor

from sightline import ops
from sightline.areas.boxes3d.metrics.boxes3d_ap import Boxes3dAp
from sightline.config import read_config
from sightline.contract.types import SampleKey
from sightline.engine.build import build
from sightline.engine.distributed import World
from sightline.engine.run_data import DataSubset

CELLS_M = (0.3, 0.5, 0.8, 1.2, 2.0, 4.0)
ABOVE_GROUND_M, BELOW_M = 0.3, 2.2
"""Of the points that are clustered, above the bottom of the commonest box."""


class CommonestBox(NamedTuple):
    """The box of the class `label` with the most boxes: mean size and bottom, and the middle of its fullest heading."""

    label: int
    size: np.ndarray
    bottom: float
    yaw: float

    @classmethod
    def of(cls, part: DataSubset) -> CommonestBox:
        """Return that of the boxes that count of a part."""
        batches = [*read_frames(part)]
        boxes = torch.cat([batch["boxes"][~batch["is_ignored"]] for batch in batches]).double().numpy()
        labels = torch.cat([batch["label"][~batch["is_ignored"]] for batch in batches]).numpy()
        label = int(np.bincount(labels).argmax())
        own = boxes[labels == label]
        counts, edges = np.histogram(np.mod(own[:, 6] + np.pi / 24, np.pi), bins=12, range=(0, np.pi))
        yaw = float(edges[counts.argmax()])
        return cls(label, own[:, 3:6].mean(axis=0), float((own[:, 2] - own[:, 5] / 2).mean()), yaw)

    def place(self, points: Tensor, cell_m: float) -> np.ndarray:
        """Return detections (D, 9), a box in the middle of each cluster of `points` (N, 3), scored by its points."""
        height = points[:, 2] - self.bottom
        flat = points[(height > ABOVE_GROUND_M) & (height < BELOW_M), :2].double()
        if not len(flat):
            return np.zeros((0, 9))
        start, end = flat.amin(dim=0), flat.amax(dim=0)
        cell = ops.grid_cluster(flat, torch.full((2,), cell_m, dtype=torch.float64), start, end)
        num_columns = int((end[0] - start[0]) / cell_m) + 1
        column, row = (cell % num_columns).numpy(), (cell // num_columns).numpy()
        taken = np.zeros((row.max() + 1, num_columns), dtype=bool)
        taken[row, column] = True
        clusters, count = scipy.ndimage.label(taken, structure=np.ones((3, 3)))
        own = clusters[row, column] - 1
        low, high = np.full((count, 2), np.inf), np.full((count, 2), -np.inf)
        np.minimum.at(low, own, flat.numpy())
        np.maximum.at(high, own, flat.numpy())
        rows = np.zeros((count, 9))
        rows[:, :2] = (low + high) / 2
        rows[:, 2], rows[:, 3:6], rows[:, 6] = self.bottom + self.size[2] / 2, self.size, self.yaw
        points_of = np.bincount(own, minlength=count)
        rows[:, 7], rows[:, 8] = points_of / (1 + points_of), self.label
        return rows


def read_frames(part: DataSubset) -> Iterator[dict[str, Any]]:
    """Read the frames of a part, one a batch, as an evaluation does."""
    for index in part.indices:
        yield part.reader([SampleKey(int(index), 0, 0)])


def score(part: DataSubset, commonest: CommonestBox, cell_m: float, metric: Boxes3dAp) -> Any:
    """Compute the AP of each class of boxes at the clusters of a part."""
    state = metric.new_state()
    for batch in read_frames(part):
        rows = torch.from_numpy(commonest.place(batch["points"], cell_m))
        truth = torch.cat([batch["boxes"].double(), batch["label"][:, None], batch["is_ignored"][:, None]], dim=1)
        metric.update(
            state,
            detections3d=rows,
            detections3d_offsets=torch.tensor([0, len(rows)]),
            truth3d=truth,
            truth3d_offsets=batch["box_offsets"],
            sample_index=batch["sample_index"],
        )
    return metric.per_class(state)


def main(words: list[str]) -> None:
    """Print the AP of the class."""
    data = build(read_config(Path(words[0]), words[1:]), World()).data
    names = data.facts["class_names"]
    commonest, metric = CommonestBox.of(data.selection), Boxes3dAp(class_names=names)
    name = names[commonest.label]
    found = {cell: score(data.selection, commonest, cell, metric)[name]["ap_overlap"] for cell in CELLS_M}
    best = max(found, key=lambda cell: found[cell])
    figures = score(data.test, commonest, best, metric)[name]
    tried = ", ".join(f"{cell:g} m {value:.3f}" for cell, value in found.items())
    sys.stdout.write(
        f"{name}: {commonest.size.round(2).tolist()} m, bottom {commonest.bottom:.2f} m, yaw {commonest.yaw:.2f} rad\n"
        f"AP of volumes, validation part, by width of cells: {tried}\n"
        f"test part, cells of {best:g} m: {figures['ap_overlap']:.3f} of {figures['count']} boxes\n"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
