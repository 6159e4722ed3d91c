"""Triangle meshes: areas, normals of faces and vertices, and points sampled uniformly over them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_MIN_SHARE = 1e-9
"""Least length of a sum of normals, as a share of the areas in it: below, faces cancel but for rounding."""


class SurfacePoints(NamedTuple):
    """Points (N, 3) on a surface, unit normals (N, 3) of their faces, both float64, and face indices (N,)."""

    points: np.ndarray
    normals: np.ndarray
    face_index: np.ndarray


def areas_and_normals(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute area (F,) and unit normal (F, 3) of every triangle, float64; a triangle without area has the normal 0.

    `vertices` (V, 3), `faces` (F, 3) integer. The normal follows the winding: corners run anticlockwise seen from it.
    Raises ValueError naming a vertex that is not finite, a face with a corner that is none of the vertices, and one
    whose area is beyond float64.
    """
    corners = np.asarray(vertices, dtype=np.float64)
    _refuse(~np.isfinite(corners).all(axis=1), corners, "vertices", "expected finite coordinates")
    is_outside = ((faces < 0) | (faces >= len(corners))).any(axis=1)
    _refuse(is_outside, faces, "faces", f"there are {len(corners)} vertices (0 .. {len(corners) - 1})")
    corner_a, corner_b, corner_c = corners[faces].transpose(1, 0, 2)
    with np.errstate(over="ignore", invalid="ignore"):
        cross_F3 = np.cross(corner_b - corner_a, corner_c - corner_a)
        double_area_F = np.linalg.norm(cross_F3, axis=1)
    _refuse(~np.isfinite(double_area_F), faces, "faces", "its area is too large for float64; scale the vertices down")
    safe_F = np.where(double_area_F > 0, double_area_F, 1.0)
    return double_area_F / 2, cross_F3 / safe_F[:, None]


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Compute the unit normal (V, 3) float64 of every vertex: its faces' normals, weighted by their areas.

    A vertex without a face that has an area, and one whose faces cancel, has the normal 0.
    `vertices` (V, 3), `faces` (F, 3) integer. Raises ValueError as `areas_and_normals`.
    Source: Gouraud 1971, section 3 (mean of the faces' normals); the areas as weights are usual since.
    """
    areas_F, normals_F3 = areas_and_normals(vertices, faces)
    corners, num_vertices = faces.ravel(), len(vertices)
    columns = [areas_F, *(areas_F[:, None] * normals_F3).T]
    total_V, *sums = (np.bincount(corners, np.repeat(column, 3), minlength=num_vertices) for column in columns)
    sums_V3 = np.stack(sums, axis=1)
    length_V = np.linalg.norm(sums_V3, axis=1)
    has_normal_V = length_V > _MIN_SHARE * total_V
    normals_V3: np.ndarray = np.where(
        has_normal_V[:, None], sums_V3 / np.where(has_normal_V, length_V, 1.0)[:, None], 0
    )
    return normals_V3


def _refuse(is_wrong: np.ndarray | np.bool, rows: np.ndarray, name: str, reason: str) -> None:
    """Raise ValueError naming the first of the `rows` (n, 3) that `is_wrong` (n,), if there is one."""
    if is_wrong.any():
        index = int(is_wrong.argmax())
        raise ValueError(f"{name}[{index}]: found {rows[index].tolist()}, {reason}")


def sample_surface(
    vertices: np.ndarray, faces: np.ndarray, *, num_points: int, generator: np.random.Generator
) -> SurfacePoints:
    """Sample (num_points, 3) points independently and uniformly by area; faces without area are never drawn.

    `vertices` (V, 3), `faces` (F, 3) integer.
    Raises ValueError if no face has an area, and as `areas_and_normals`.
    Source: Osada et al. 2002, "Shape distributions", eq. 1.
    """
    areas_F, normals_F3 = areas_and_normals(vertices, faces)
    solid = np.flatnonzero(areas_F > 0)
    if not len(solid):
        raise ValueError(f"none of the {len(faces)} faces has an area")
    upto = np.cumsum(areas_F[solid])
    spot, first, second = generator.random((3, num_points))
    # The last bound is left out: a draw that rounds up to the total still falls on the last face.
    face_index = solid[np.searchsorted(upto[:-1], spot * upto[-1], side="right")]
    root = np.sqrt(first)
    weights_N3 = np.stack([1 - root, root * (1 - second), root * second], axis=1)
    corners_N33 = np.asarray(vertices, dtype=np.float64)[faces[face_index]]
    return SurfacePoints(np.einsum("nk,nkd->nd", weights_N3, corners_N33), normals_F3[face_index], face_index)
