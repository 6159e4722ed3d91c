"""Points sampled from the mesh of a shape, seeded by the shape's name."""

from __future__ import annotations

import hashlib

import numpy as np

from sightline.errors import DataError
from sightline.geometry.surfaces import SurfacePoints, sample_surface

__all__ = ["NUM_MESH_POINTS", "draw_points", "generator_from_name"]

NUM_MESH_POINTS = 2048
"""Number of points sampled from a mesh, that of the HDF5 release of ModelNet."""


def draw_points(
    vertices: np.ndarray, faces: np.ndarray, *, name: str, where: str, num_points: int = NUM_MESH_POINTS
) -> SurfacePoints:
    """Sample points uniformly by area from the mesh of the shape `name` (a file's name without its suffix).

    `vertices` (V, 3), `faces` (F, 3) integer. Raises DataError, beginning with `where`, for a mesh without area.
    """
    try:
        return sample_surface(vertices, faces, num_points=num_points, generator=generator_from_name(name))
    except ValueError as error:
        raise DataError(f"{where}: {error}, so no point can be drawn; leave the file out") from error


def generator_from_name(name: str) -> np.random.Generator:
    """Make a generator seeded by the name alone, so that a shape is sampled alike in any set."""
    return np.random.default_rng(
        int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:16], "little")
    )
