"""Volumes to look at: projections along the axes, slices, and the cells that are filled.

A volume is indexed (x, y, z). In a picture of xy or xz, x runs to the right; in one of yz it is z, the depth. Rows are
y, upwards where the set's y points up, or the depth, upwards: front, top and side view as in a drawing of a machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from sightline.pictures import PALETTE

__all__ = ["PLANES", "Plane", "Volume"]

Plane = Literal["xy", "xz", "yz"]
PLANES: dict[Plane, tuple[int, int, int]] = {"xy": (0, 1, 2), "xz": (0, 2, 1), "yz": (2, 1, 0)}
"""Of each picture: the axis of its columns, that of its rows, and the one along which it looks."""
_INK = np.array([[58, 66, 78]], dtype=np.uint8)
_PAPER = 252.0


@dataclass(frozen=True, eq=False)
class Volume:
    """Values (X, Y, Z) from 0 to 1; `owners` (X, Y, Z) are the number of the colour in `palette` of each cell.

    A cell is `cell` wide in the frame of the cloud that the volume belongs to, whose origin is the volume's corner.
    `is_y_up` is the direction of pictures.
    """

    values: np.ndarray
    owners: np.ndarray
    palette: np.ndarray
    cell: float = 1.0
    is_y_up: bool = field(default=True, kw_only=True)

    @classmethod
    def from_voxels(cls, values: np.ndarray, *, is_y_up: bool) -> Volume:
        """Occupied voxels, in one colour."""
        return cls(values, np.zeros(values.shape, dtype=np.int64), _INK, is_y_up=is_y_up)

    @classmethod
    def from_heatmaps(cls, maps: np.ndarray, *, cell: float, is_y_up: bool) -> Volume:
        """The maxima over joints of heat maps (J, X, Y, Z), each cell in the colour of the joint that is largest there.

        A map whose peak exceeds 1 is divided by it; values below 0 are cut off.
        """
        peaks = np.maximum(maps.reshape(len(maps), -1).max(axis=1), 1.0)
        maps = (maps / peaks[:, None, None, None]).clip(0, 1)
        palette = PALETTE[np.arange(len(maps)) % len(PALETTE)]
        return cls(maps.max(axis=0), maps.argmax(axis=0), palette, cell, is_y_up=is_y_up)

    def cell_centres_above(self, above: float) -> tuple[np.ndarray, np.ndarray]:
        """The middles (N, 3) float64 of the cells with a larger value, in the frame of the cloud, and their owners."""
        places = np.argwhere(self.values > above)
        return (places + 0.5) * self.cell, self.owners[tuple(places.T)]

    def projection(self, plane: Plane) -> tuple[np.ndarray, np.ndarray]:
        """The largest values along the axis that a picture looks along, as its rows and columns; and their owners."""
        along = PLANES[plane][2]
        place = np.expand_dims(self.values.argmax(axis=along), along)
        flat = [np.take_along_axis(each, place, axis=along).squeeze(along) for each in (self.values, self.owners)]
        return self._laid(flat[0], plane), self._laid(flat[1], plane)

    def slice(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The values and owners of the cells (x, y) of one z, as rows and columns of a picture."""
        return self._laid(self.values[:, :, number], "xy"), self._laid(self.owners[:, :, number], "xy")

    def colors(self, values: np.ndarray, owners: np.ndarray) -> np.ndarray:
        """A picture (H, W, 3) uint8 of values and owners: from paper to the owner's colour."""
        share = values[..., None].astype(np.float64)
        return ((1 - share) * _PAPER + share * self.palette[owners]).round().astype(np.uint8)

    def to_pixels(self, points: np.ndarray, plane: Plane) -> np.ndarray:
        """Where points (P, 3) of the cloud's frame appear: (P, 2) columns and rows, in cells from the upper left."""
        column_axis, row_axis, _ = PLANES[plane]
        columns, rows = points[:, column_axis] / self.cell, points[:, row_axis] / self.cell
        if self._is_turned(row_axis):
            rows = self.values.shape[row_axis] - rows
        return np.stack([columns, rows], axis=1)

    def _laid(self, flat: np.ndarray, plane: Plane) -> np.ndarray:
        """What remains of two axes, in their order, as rows and columns."""
        column_axis, row_axis, _ = PLANES[plane]
        rows = flat.T if column_axis < row_axis else flat
        return rows[::-1] if self._is_turned(row_axis) else rows

    def _is_turned(self, axis: int) -> bool:
        """Whether rows count from below."""
        return axis == 2 or self.is_y_up
