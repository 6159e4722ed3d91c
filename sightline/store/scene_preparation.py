"""Preparation of scenes: coordinates from the lowest corner, colours as bytes, unit normals."""

from __future__ import annotations

from typing import Literal

import numpy as np

from sightline.contract.errors import DataError
from sightline.ops.points.meshes import vertex_normals
from sightline.store.files.cloud_files import PointCloud
from sightline.store.files.cloud_values import check_strays
from sightline.store.files.column_names import COLOURS
from sightline.store.files.input_files import damaged

_MAX_8_BITS, _MAX_16_BITS = 2**8 - 1, 2**16 - 1


def prepare_scene(
    cloud: PointCloud,
    *,
    scale: float,
    colour_max: float | None,
    with_colours: bool,
    normals: Literal["stored", "faces"] | None,
    where: str,
) -> dict[str, np.ndarray]:
    """Make the columns `points` (N, 3) float32 and, if requested, `colours` (N, 3) uint8, `normals` (N, 3) float32.

    Points are relative to the lowest corner, so that float32 stays exact far from the origin, and multiplied by
    `scale`. Colours are the channels red, green and blue from 0 to `colour_max`, by default to `find_colour_max`.
    Normals are those `stored`, normalised to length 1, or by `vertex_normals` of the `faces` of a mesh. Raises
    DataError, led by `where`, for a scene without the requested channels or faces, or with colours on another scale.
    """
    check_strays(cloud.points, where=where)
    prepared = {"points": from_lowest_corner(cloud.points, scale=scale)[0]}
    if with_colours:
        limit = find_colour_max(cloud) if colour_max is None else colour_max
        prepared["colours"] = _read_colours(cloud, limit, where)
    if normals is not None:
        make_normals = _normalise_normals if normals == "stored" else _compute_normals
        prepared["normals"] = make_normals(cloud, where)
    return prepared


def from_lowest_corner(points: np.ndarray, *, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Move points (N, 3) to their lowest corner and multiply by `scale`: (N, 3) float32 and the corner (3,) float64.

    Differences are computed in float64. Values beyond float32 become infinite.
    """
    points = points.astype(np.float64, copy=False)
    corner = points.min(axis=0)
    with np.errstate(over="ignore"):
        return ((points - corner) * scale).astype(np.float32), corner


def normalised_position(points: np.ndarray) -> np.ndarray:
    """Scale points (N, 3) to the extent of their cloud, 0 to 1 along every axis; the dtype is kept.

    Source: Qi et al. 2017 (PointNet), section 5.2 (the location as to the room).
    """
    low, high = points.min(axis=0), points.max(axis=0)
    position: np.ndarray = (points - low) / np.maximum(high - low, np.finfo(np.float32).tiny)
    return position


def find_colour_max(cloud: PointCloud) -> int:
    """Return the largest colour of a cloud by its file: 65535 if colours have 16 bits and one is above 255, else 255.

    Many tools write colours of 8 bits where the format (LAS) has 16.
    """
    is_deep = cloud.colour_max == _MAX_16_BITS and any(cloud.channels[name].max() > _MAX_8_BITS for name in COLOURS)
    return _MAX_16_BITS if is_deep else _MAX_8_BITS


def note_colour_max(cloud: PointCloud) -> list[str]:
    """Return a note on the scale of colours of 16 bits, whose file leaves it open."""
    is_open = cloud.colour_max == _MAX_16_BITS
    return [f"colours of 16 bits are read as 0 to {find_colour_max(cloud)}"] if is_open else []


def _read_colours(cloud: PointCloud, colour_max: float, where: str) -> np.ndarray:
    missing = [name for name in COLOURS if name not in cloud.channels]
    if missing:
        raise DataError(f"{where}: has no {', '.join(missing)}, which the first file has; name what all files have")
    colours = np.stack([cloud.channels[name] for name in COLOURS], axis=1)
    low, high = float(colours.min()), float(colours.max())
    if low < 0 or high > colour_max:
        fit = next((limit for limit in (_MAX_8_BITS, _MAX_16_BITS) if low >= 0 and high <= limit), None)
        advice = "correct the file" if fit is None else f"set colour_max={fit}"
        raise DataError(f"{where}: colours run from {low:g} to {high:g}, colour_max is {colour_max:g}; {advice}")
    if colour_max == 255 and 0 < high <= 1:
        raise DataError(f"{where}: colours run to {high:g}, which is black on a scale to 255; set colour_max=1")
    return np.rint(colours * (255 / colour_max)).astype(np.uint8)


def _normalise_normals(cloud: PointCloud, where: str) -> np.ndarray:
    if cloud.normals is None:
        raise DataError(f"{where}: has no normals, which the first file has; name what all files have with columns")
    length = np.linalg.norm(cloud.normals, axis=1)
    if not length.all():
        raise DataError(f"{where}: the normal of point {int(np.flatnonzero(length == 0)[0])} is zero; correct the file")
    return (cloud.normals / length[:, None]).astype(np.float32)


def _compute_normals(cloud: PointCloud, where: str) -> np.ndarray:
    if cloud.faces is None or not len(cloud.faces):
        raise DataError(f"{where}: has no faces, from which normals are computed; give the whole mesh")
    try:
        return vertex_normals(cloud.points, cloud.faces).astype(np.float32)
    except ValueError as error:
        raise damaged(f"{where}: {error}") from error
