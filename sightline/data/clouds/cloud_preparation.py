"""What becomes of a cloud between its file and a model: so many points, normals, channels, brought to one scale."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from sightline.data.clouds.mesh_points import draw_points, generator_from_name
from sightline.data.files.cloud_files import PointCloud, check_strays
from sightline.data.store.prepared_writer import normalize_to_unit_sphere
from sightline.errors import DataError
from sightline.geometry.sampling import farthest_point_sample

__all__ = ["prepare_cloud"]

_LARGEST = 1e150
"""Beyond this a distance is no number any more."""
_KEPT = 1e-3
"""The coarsest step of float32 coordinates that is let through, in sizes of the cloud."""


def prepare_cloud(
    cloud: PointCloud,
    *,
    num_points: int,
    choice: Literal["random", "farthest"] = "random",
    faces: Literal["sample", "ignore"] = "sample",
    normalisation: Literal["unit_sphere", "none"] = "unit_sphere",
    with_normals: bool = False,
    channels: Sequence[str] = (),
    where: str = "cloud",
) -> dict[str, np.ndarray]:
    """`points`, where asked for `normals` (num_points, 3), and `channels` (num_points, C), float32; pure.

    Equal clouds give equal bits: the random draws come from the numbers of the cloud alone, never from its name. A
    cloud with faces is a surface: points are drawn evenly over it, with the faces' normals. Of any other, `random`
    takes points without repeating one, `farthest` each time the point farthest from those taken; where there are
    fewer than `num_points`, all are taken and then some again. `unit_sphere` puts the mean of what was taken at the
    origin and the farthest at distance 1. Normals are scaled to length 1; one of length 0 stays.
    Raises DataError, beginning with `where`, for a cloud that lacks what is asked for or has no extent.
    Source: Qi et al. 2017 (PointNet), section 5.1; Eldar et al. 1997 (farthest point).
    """
    if np.abs(cloud.points).max() > _LARGEST:
        raise DataError(f"{where}: a coordinate is {np.abs(cloud.points).max():.4g}; get the file again")
    if cloud.faces is None or not len(cloud.faces):
        check_strays(cloud.points, where=where)
    if faces == "sample" and cloud.faces is not None and len(cloud.faces):
        taken = _of_surface(cloud, num_points, channels, where)
    else:
        taken = _of_points(cloud, num_points, choice, with_normals, channels, where)
    to_scale = normalize_to_unit_sphere if normalisation == "unit_sphere" else _as_float32
    prepared = {"points": to_scale(taken["points"], where=where)}
    if with_normals:
        lengths = np.linalg.norm(taken["normals"], axis=1, keepdims=True)
        prepared["normals"] = (taken["normals"] / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)
    if channels:
        prepared["channels"] = taken["channels"].astype(np.float32)
    return prepared


def _of_surface(cloud: PointCloud, num_points: int, channels: Sequence[str], where: str) -> dict[str, np.ndarray]:
    if channels:
        raise DataError(
            f"{where}: has faces, and points drawn from these have no {', '.join(channels)}; set faces=ignore to take "
            "its vertices, or name no channels"
        )
    assert cloud.faces is not None
    drawn = draw_points(cloud.points, cloud.faces, name=_digest(cloud), where=where, num_points=num_points)
    return {"points": drawn.points, "normals": drawn.normals}


def _of_points(
    cloud: PointCloud, num_points: int, choice: str, with_normals: bool, channels: Sequence[str], where: str
) -> dict[str, np.ndarray]:
    missing = [name for name in channels if name not in cloud.channels]
    if missing:
        has = ", ".join(cloud.channels) or "none"
        raise DataError(f"{where}: has no channel {', '.join(missing)} (it has {has}); name what all files have")
    if with_normals and cloud.normals is None:
        raise DataError(
            f"{where}: has no normals; leave those of the other files out with 'columns=[x, y, z]' and set "
            "data.normals=estimated, or write nx, ny, nz into every file"
        )
    index = _choose(cloud, num_points, choice)
    taken = {"points": cloud.points[index]}
    if with_normals and cloud.normals is not None:
        taken["normals"] = cloud.normals[index]
    if channels:
        taken["channels"] = np.stack([cloud.channels[name][index] for name in channels], axis=1)
    return taken


def _choose(cloud: PointCloud, num_points: int, choice: str) -> np.ndarray:
    """Which points are taken, in order: no one twice while there is another."""
    num_there = len(cloud.points)
    generator = generator_from_name(_digest(cloud))
    if choice == "farthest":
        order = _farthest_first(cloud.points, min(num_points, num_there))
    else:
        order = generator.permutation(num_there)[:num_points]
    return np.concatenate([order, generator.integers(num_there, size=num_points - len(order))])


def _farthest_first(points: np.ndarray, count: int) -> np.ndarray:
    """Farthest-point order from the first point on; where points coincide, those left over follow by their index."""
    centred = points - points.mean(axis=0)
    scaled = torch.from_numpy(centred / max(np.abs(centred).max(), np.finfo(np.float64).tiny))
    index = farthest_point_sample(scaled[None], num_samples=count)[0].numpy()
    distinct = index[np.sort(np.unique(index, return_index=True)[1])]
    left = np.setdiff1d(np.arange(len(points)), distinct)
    return np.concatenate([distinct, left])[:count]


def _as_float32(points: np.ndarray, *, where: str) -> np.ndarray:
    """The coordinates as they are. Raises DataError where they are so far from the origin that float32 blurs them."""
    reach, size = np.abs(points).max(), np.ptp(points, axis=0).max()
    if 0 < _KEPT * size < reach * 2.0**-24:
        raise DataError(
            f"{where}: a cloud {size:.3g} across lies {reach:.3g} from the origin, where float32 has steps of "
            f"{reach * 2.0**-23:.2g}; subtract an offset, or set normalisation=unit_sphere"
        )
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, and is refused where it is used
        return points.astype(np.float32)


def _digest(cloud: PointCloud) -> str:
    """The seed of all draws: the numbers of the cloud alone, so that its name and place do not matter."""
    return hashlib.sha256(np.ascontiguousarray(cloud.points, dtype="<f8").data).hexdigest()


def cloud_radius(points: np.ndarray) -> float:
    """The largest distance from the mean of the points (N, 3)."""
    return distance_from_origin(points - points.mean(axis=0, dtype=np.float64))


def distance_from_origin(points: np.ndarray) -> float:
    """The largest distance of the points (N, 3) from the origin."""
    return float(np.hypot(np.hypot(points[:, 0], points[:, 1]), points[:, 2]).max())
