"""Points drawn from the mesh of a shape: the same ones wherever a mesh of that name is read."""

from __future__ import annotations

import hashlib

import numpy as np

from sightline.errors import DataError
from sightline.geometry.surfaces import SurfacePoints, sample_surface

__all__ = ["NUM_MESH_POINTS", "draw_points", "generator_from_name"]

NUM_MESH_POINTS = 2048
"""Points drawn from a mesh, as many as the HDF5 release of ModelNet holds."""


def draw_points(
    vertices: np.ndarray, faces: np.ndarray, *, name: str, where: str, num_points: int = NUM_MESH_POINTS
) -> SurfacePoints:
    """Points drawn evenly by area from the mesh of the shape `name` (a file's name without its ending).

    `vertices` (V, 3), `faces` (F, 3) integer. Raises DataError, led by `where`, for a mesh without area.
    """
    try:
        return sample_surface(vertices, faces, num_points=num_points, generator=generator_from_name(name))
    except ValueError as error:
        raise DataError(f"{where}: {error}, so no point can be drawn; leave the file out") from error


def generator_from_name(name: str) -> np.random.Generator:
    """A generator of the name alone: a shape is drawn alike in any set, in any order of files."""
    return np.random.default_rng(
        int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:16], "little")
    )
