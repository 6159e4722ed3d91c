"""Density of the points of scenes, and what suits it: a grid and a crop of dense ones, the side of sparse voxels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

_CELL_M, _CELLS_PER_EXTENT = 0.1, 50
"""Side of a cell of the grid: a tenth of a metre, of scenes below 5 m a fiftieth of their longest side."""
_DENSE = 2.0
"""Points in a cell, by the mean over cells that have some, from which a scene is dense."""
CROP, DENSE_CROP = 4096, 8192
"""Points of a training sample of `segment/own_rooms`: of 60 points on a square metre, and of the grid's 100."""
_FINEST_M, _FINEST_PER_EXTENT = 0.04, 125
"""Least side of a sparse voxel, and that of scenes below 5 m: a share of their longest side."""


class SceneDensity(NamedTuple):
    """Density of scenes: `per_m2` points on a square metre of surface, and the grid that leaves `num_kept` of `num`.

    `grid_m` is None for scenes that are not dense. `voxel_m` is the side of sparse voxels: the spacing of the points,
    at which a surface has a point in each of its cells on average, and most voxels have most of their eight neighbours
    on it. It is at least 4 cm, since the number of voxels grows with the square of their fineness, or a 125th of the
    longest side of scenes below 5 m.
    """

    per_m2: float
    grid_m: float | None
    num: int
    num_kept: int
    voxel_m: float

    def describe(self) -> str:
        """Return the density in words."""
        text = f"about {self.per_m2:.3g} points on a square metre of surface"
        if self.grid_m is None:
            return text
        kept = f"a grid of {self.grid_m:g} m keeps {self.num_kept:,} of {self.num:,}"
        written = f"--config writes it over segment/own_rooms, with a crop of {DENSE_CROP:,} points"
        return f"{text}, which is dense: {kept}, and {written}"

    def config_words(self) -> list[str]:
        """Return the `key=value` words that thin scenes in `segment/own_rooms`; none for scenes that are not dense."""
        if self.grid_m is None:
            return []
        train = (
            "{name: rotate}",
            "{name: scale, low: 0.9, high: 1.1, isotropic: true}",
            "{name: flip}",
            f"{{name: voxel_sample, size_m: {self.grid_m:g}}}",
            f"{{name: crop_points, max_points: {DENSE_CROP}}}",
            "{name: place_on_floor, plan: centre, up: keep}",
            "{name: shuffle_points}",
        )
        evaluate = (
            f"{{name: voxel_sample, size_m: {self.grid_m:g}, choice: nearest, score_all: true}}",
            "{name: place_on_floor, plan: centre, up: keep}",
        )
        return [f"transforms.train=[{', '.join(train)}]", f"transforms.evaluate=[{', '.join(evaluate)}]"]


def measure_density(scenes: Sequence[np.ndarray]) -> SceneDensity:
    """Measure the density of scenes, by their median, from points (N, 3) in metres.

    The surface is the number of cells of a grid with points, times the area of their sides: of a flat surface along the
    axes, this is its area. Cells are larger where points are few, so that hardly one of a surface is empty.
    """
    density, cells = [], []
    for points in scenes:
        extent = float(np.ptp(points, axis=0).max())
        cell = min(_CELL_M, extent / _CELLS_PER_EXTENT) or _CELL_M
        num_cells = _count_cells(points, cell)
        coarse = cell
        while len(points) < _POINTS_FOR_AREA * _count_cells(points, coarse) and coarse < extent:
            coarse *= 2
        density.append(len(points) / (_count_cells(points, coarse) * coarse**2))
        cells.append((cell, len(points), num_cells))
    cell, num, num_kept = sorted(cells, key=lambda each: each[1] / each[2])[len(cells) // 2]
    is_dense = num >= _DENSE * num_kept and num > CROP
    grid_m = float(f"{cell:.2g}") if is_dense else None
    per_m2, extent = float(np.median(density)), float(np.median([np.ptp(points, axis=0).max() for points in scenes]))
    finest = min(_FINEST_M, extent / _FINEST_PER_EXTENT) or _FINEST_M
    voxel_m = float(f"{max(finest, per_m2**-0.5):.2g}")
    return SceneDensity(per_m2, grid_m, num, num_kept, voxel_m)


_POINTS_FOR_AREA = 5
"""Points in a cell, on average, from which few cells of a surface are empty."""


def _count_cells(points: np.ndarray, side: float) -> int:
    cells = np.floor((points - points.min(axis=0)) / side).astype(np.int64)
    spans = cells.max(axis=0) + 1
    return len(np.unique((cells[:, 0] * spans[1] + cells[:, 1]) * spans[2] + cells[:, 2]))


def read_density(about: Mapping[str, Any]) -> SceneDensity:
    """Make the density of the entries of a manifest that its `_asdict` wrote."""
    return SceneDensity(**about)
