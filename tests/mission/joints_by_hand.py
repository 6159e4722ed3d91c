"""Cubes, heat maps, joints and their figures by NumPy, apart from the package's own code."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any
from unittest import mock

import numpy as np
from torch import Tensor

from sightline.areas.pose.task import Pose

SIGMA = 1.7
"""Width of a Gaussian in cells (Moon et al. 2018)."""
DEVIATIONS = (
    *(0.029, 0.026, 0.025, 0.024, 0.035, 0.018, 0.024, 0.022, 0.026, 0.017, 0.021),
    *(0.021, 0.032, 0.020, 0.019, 0.022, 0.031, 0.022, 0.035, 0.037, 0.047),
)
"""Deviations of a hand's joints (COCO-WholeBody, Jin et al. 2020): wrist, index to little finger, thumb."""
WRIST, MIDDLE_KNUCKLE = 0, 5


def to_cells(points_mm: np.ndarray, middle_mm: np.ndarray, *, side_mm: float, cells: int) -> np.ndarray:
    """Convert points (..., 3) of the camera's frame to cells of a cube about `middle_mm`, its corner the origin."""
    return (points_mm - middle_mm) * cells / side_mm + cells / 2


def to_mm(cells_of_points: np.ndarray, middle_mm: np.ndarray, *, side_mm: float, cells: int) -> np.ndarray:
    """Convert cells of a cube to points (..., 3) of the camera's frame."""
    return (cells_of_points - cells / 2) * side_mm / cells + middle_mm


def draw_gaussians(joints: np.ndarray, cells: int) -> np.ndarray:
    """Draw a map (J, cells, cells, cells), x first, about each joint (J, 3) in cells; its peak is 1."""
    middles = np.stack(np.meshgrid(*[np.arange(cells) + 0.5] * 3, indexing="ij"), axis=-1)
    return np.exp(-((middles - joints[:, None, None, None]) ** 2).sum(axis=-1) / (2 * SIGMA**2))


def find_largest(maps: np.ndarray) -> np.ndarray:
    """Return the middle (J, 3) of the largest cell of each map (J, V, V, V), in the order of its axes."""
    flat = maps.reshape(len(maps), -1).argmax(axis=1)
    return np.stack(np.unravel_index(flat, maps.shape[1:]), axis=1) + 0.5


def list_voxels(
    depth: np.ndarray, camera: np.ndarray, middle_mm: np.ndarray, *, side_mm: float, cells: int
) -> set[tuple[int, ...]]:
    """List the voxels (x, y, z) of a cube that measured pixels of a depth image (H, W) fall into."""
    fx, fy, u0, v0 = camera
    voxels = set()
    for row, column in np.argwhere(depth > 0):
        z = float(depth[row, column])
        point = np.array([(column - u0) / fx * z, (row - v0) / fy * z, z])
        voxel = tuple(np.floor(to_cells(point, middle_mm, side_mm=side_mm, cells=cells)).astype(int).tolist())
        if all(0 <= place < cells for place in voxel):
            voxels.add(voxel)
    return voxels


def surface_before(depth: np.ndarray, camera: np.ndarray, joints: np.ndarray) -> np.ndarray:
    """Measure by how many mm each joint (J, 3) lies behind what its pixel measures; NaN where that measures nothing."""
    fx, fy, u0, v0 = camera
    columns = np.rint(u0 + fx * joints[:, 0] / joints[:, 2]).astype(int)
    rows = np.rint(v0 + fy * joints[:, 1] / joints[:, 2]).astype(int)
    measured = depth[rows, columns].astype(float)
    return joints[:, 2] - np.where(measured > 0, measured, np.nan)


def measure_pck(errors: np.ndarray, true: np.ndarray, *, share: float) -> float:
    """Compute the share of joints of hands (F, J, 3) that are off by at most `share` of wrist to middle knuckle."""
    lengths = np.linalg.norm(true[:, WRIST] - true[:, MIDDLE_KNUCKLE], axis=-1)
    return float((errors <= share * lengths[:, None]).mean())


def measure_oks(errors: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Compute the similarity of key points of each hand, all of whose joints (F, J, 3) are visible."""
    extents = np.sort(true.max(axis=1) - true.min(axis=1), axis=1)[:, ::-1]
    areas = 0.53 * extents[:, 0] * np.maximum(extents[:, 1], extents[:, 0] / 4)
    widths = 2 * areas[:, None] * (2 * np.array(DEVIATIONS)) ** 2
    return np.exp(-(errors**2) / widths).mean(axis=1)


def sum_of_squares(positions: np.ndarray, cells: int) -> float:
    """Sum the squares of the map of one joint (3,) in cells, as a product over the axes."""
    middles = np.arange(cells) + 0.5
    return float(np.prod([np.exp(-((middles - place) ** 2) / SIGMA**2).sum() for place in positions]))


@contextlib.contextmanager
def predictions_of(change: Callable[[Tensor, Any], Tensor] | None = None) -> Iterator[list[dict[str, np.ndarray]]]:
    """Context that collects maps and joints of each batch that the task `pose` decodes, and the joints it returns.

    `change` makes other maps of them and the batch: a network with known errors.
    """
    decode, seen = Pose.postprocess, list[dict[str, np.ndarray]]()

    def watched(task: Pose, outputs: dict[str, Any], batch: Any) -> dict[str, Any]:
        if change is not None:
            outputs = {**outputs, "likelihood": change(outputs["likelihood"], batch)}
        results = decode(task, outputs, batch)
        tensors = {name: batch[name] for name in ("joints", "visible", "reference", "sample_index")}
        tensors |= {"maps": results["likelihood"], "joints_mm": results["joints_mm"]}
        seen.append({name: tensor.detach().double().cpu().numpy() for name, tensor in tensors.items()})
        return results

    with mock.patch.object(Pose, "postprocess", watched):
        yield seen


def join(batches: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Join batches along their samples."""
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def shift_some(likelihood: Tensor, batch: Any) -> Tensor:
    """Return 1 in the largest cell of each target, of every third joint a cell further along x, of the next along z."""
    targets: Tensor = batch["heatmaps"]
    maps = (targets == targets.amax(dim=(-3, -2, -1), keepdim=True)).to(likelihood.dtype)
    for first, axis in product(range(0, maps.shape[1], 3), (-3, -1)):
        joint = first + (axis == -1)
        maps[:, joint] = maps[:, joint].roll(1, dims=axis)
    return maps
