"""Surfels: points as small discs that together cover the surface."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from sightline.geometry.neighbours import nearest_neighbours

__all__ = ["Surfels", "fit_surfels"]

_NUM_NEIGHBOURS = 16
_OVERLAP = 1.3
"""Radius of a disc in standard deviations of its neighbourhood along an axis.

Sixteen points drawn evenly from a disc of radius r have the deviation r / 2, so that seven discs on average cover a
position, and one position in 900 is covered by none.
"""
_MIN_AXIS_RATIO = 0.3
"""Lowest ratio of the shorter to the longer radius of a disc."""
_MIN_RADIUS = 1e-3
"""Lowest radius of a disc, in radii of the sphere: far below a pixel, and no division by zero."""
_SMOOTHINGS = 2
"""Number of times that normals are averaged with their neighbours: sixteen random points show a plane only roughly."""


class Surfels(NamedTuple):
    """Elliptic discs: centres and unit normals of either sign (N, 3), half axes (N, 2, 3), the longer first.

    Float64.
    """

    centres: np.ndarray
    normals: np.ndarray
    half_axes: np.ndarray


def fit_surfels(points: np.ndarray) -> Surfels:
    """Fit a disc to each of the points (N, 3), along its nearest points and as large as their scatter.

    Discs are long where points lie on a rod, and end where a surface ends. Points in one place or on one line get the
    smallest of discs, turned in some way that depends on them alone.
    Source: Pfister et al. 2000, "Surfels"; axes from the covariance, Hoppe et al. 1992, section 3.2.
    """
    num_neighbours = min(_NUM_NEIGHBOURS, len(points))
    cloud = torch.from_numpy(np.array(points, dtype=np.float32, order="C"))  # a copy: points may be read-only
    index = nearest_neighbours(cloud[None], num_neighbours=num_neighbours)[0].numpy()
    centres = cloud.numpy().astype(np.float64)
    near_NK3 = centres[index]
    near_NK3 -= near_NK3.mean(axis=1, keepdims=True)
    covariances = near_NK3.swapaxes(1, 2) @ near_NK3 / num_neighbours
    _, axes = np.linalg.eigh(covariances)
    normals = axes[:, :, 0]
    for _ in range(_SMOOTHINGS):
        normals = _smooth_normals(normals, index)
    return Surfels(centres, normals, _half_axes(covariances, normals, axes[:, :, 2]))


def _smooth_normals(normals: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Average each normal (N, 3) with its neighbours', turned to its side and weighted by their similarity."""
    near_NK3 = normals[index]
    alike_NK1 = near_NK3 @ normals[:, :, None]
    cube_NK1 = alike_NK1 * alike_NK1 * alike_NK1
    weight_NK1 = cube_NK1 * cube_NK1 * alike_NK1  # odd, so that either sign will do; high, so that edges stay
    mean_N3 = (weight_NK1.swapaxes(1, 2) @ near_NK3)[:, 0]
    return mean_N3 / np.sqrt((mean_N3 * mean_N3).sum(axis=1, keepdims=True))


def _half_axes(covariances: np.ndarray, normals: np.ndarray, longest: np.ndarray) -> np.ndarray:
    """Compute both half axes (N, 2, 3) of the discs at right angles to the normals."""
    along = longest - (longest * normals).sum(axis=1, keepdims=True) * normals
    norm = np.sqrt((along * along).sum(axis=1, keepdims=True))
    fallback = np.cross(normals, np.eye(3)[np.abs(normals).argmin(axis=1)])
    along = np.where(norm > 0.1, along / np.maximum(norm, 0.1), fallback)
    along /= np.sqrt((along * along).sum(axis=1, keepdims=True))
    axes = np.stack((along, np.cross(normals, along)), axis=1)
    variances = np.einsum("naj,njk,nak->na", axes, covariances, axes)
    radii = _OVERLAP * np.sqrt(variances.clip(min=0))
    radii = np.maximum(radii, _MIN_AXIS_RATIO * radii[:, ::-1])
    return axes * np.maximum(radii, _MIN_RADIUS)[:, :, None]
