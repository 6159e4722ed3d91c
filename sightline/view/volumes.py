"""Volumes for viewing: maximum projections along the axes, and the filled cells.

A volume is indexed (x, y, z). In pictures of xy and xz, columns are x; in those of yz they are z, the depth. Rows are
y, upwards if the set's y points up, or the depth, upwards: front, top and side view as in an engineering drawing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from sightline.draw.pictures import PALETTE

Plane = Literal["xy", "xz", "yz"]
PLANES: dict[Plane, tuple[int, int, int]] = {"xy": (0, 1, 2), "xz": (0, 2, 1), "yz": (2, 1, 0)}
"""Axes of each picture: that of its columns, that of its rows, and the one that it is projected along."""
_INK = np.array([[58, 66, 78]], dtype=np.uint8)
_VOLUME_PAPER = 252.0


@dataclass(frozen=True, eq=False)
class Volume:
    """Volume of values (X, Y, Z) in [0, 1]; `owners` (X, Y, Z) are each cell's index into the colours of `palette`.

    A cell is `cell` wide in the frame of the cloud that the volume belongs to, whose origin is the volume's corner.
    `is_y_up`: y points up in pictures.
    """

    values: np.ndarray
    owners: np.ndarray
    palette: np.ndarray
    cell: float = 1.0
    is_y_up: bool = field(default=True, kw_only=True)

    @classmethod
    def from_voxels(cls, values: np.ndarray, *, is_y_up: bool) -> Volume:
        """Make a volume of occupied voxels (X, Y, Z), in one colour."""
        return cls(values, np.zeros(values.shape, dtype=np.int64), _INK, is_y_up=is_y_up)

    @classmethod
    def from_heatmaps(cls, maps: np.ndarray, *, cell: float, is_y_up: bool) -> Volume:
        """Make the maximum over joints of heat maps (J, X, Y, Z); a cell is owned by the joint with its largest value.

        A map whose peak exceeds 1 is divided by it; values below 0 become 0.
        """
        peaks = np.maximum(maps.reshape(len(maps), -1).max(axis=1), 1.0)
        maps = (maps / peaks[:, None, None, None]).clip(0, 1)
        palette = PALETTE[np.arange(len(maps)) % len(PALETTE)]
        return cls(maps.max(axis=0), maps.argmax(axis=0), palette, cell, is_y_up=is_y_up)

    def cell_centres_above(self, above: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the centres (N, 3) float64 of cells with values > `above`, in the cloud's frame, and their owners."""
        indices = np.argwhere(self.values > above)
        return (indices + 0.5) * self.cell, self.owners[tuple(indices.T)]

    def projection(self, plane: Plane) -> tuple[np.ndarray, np.ndarray]:
        """Compute the maximum projection of a plane, (rows, columns), and the owners of its cells."""
        along = PLANES[plane][2]
        index = np.expand_dims(self.values.argmax(axis=along), along)
        flat = [np.take_along_axis(volume, index, axis=along).squeeze(along) for volume in (self.values, self.owners)]
        return self._to_rows(flat[0], plane), self._to_rows(flat[1], plane)

    def colors(self, values: np.ndarray, owners: np.ndarray) -> np.ndarray:
        """Draw values and owners (H, W) as a picture (H, W, 3) uint8, from the paper's colour to the owner's."""
        share = values[..., None].astype(np.float64)
        return ((1 - share) * _VOLUME_PAPER + share * self.palette[owners]).round().astype(np.uint8)

    def to_pixels(self, points: np.ndarray, plane: Plane) -> np.ndarray:
        """Project points (P, 3) in the cloud's frame to columns and rows (P, 2), in cells from the upper left."""
        column_axis, row_axis, _ = PLANES[plane]
        columns, rows = points[:, column_axis] / self.cell, points[:, row_axis] / self.cell
        if self._is_flipped(row_axis):
            rows = self.values.shape[row_axis] - rows
        return np.stack([columns, rows], axis=1)

    def _to_rows(self, flat: np.ndarray, plane: Plane) -> np.ndarray:
        """Turn an array over the two remaining axes, in their order, into (rows, columns)."""
        column_axis, row_axis, _ = PLANES[plane]
        rows = flat.T if column_axis < row_axis else flat
        return rows[::-1] if self._is_flipped(row_axis) else rows

    def _is_flipped(self, axis: int) -> bool:
        """Return True if rows are counted from the bottom."""
        return axis == 2 or self.is_y_up
