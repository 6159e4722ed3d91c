"""Preparation of point clouds: sampling of points or meshes, normals, channels and normalisation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Literal, TypeAlias

import numpy as np
import torch

from sightline.contract.errors import DataError
from sightline.ops.points.farthest_points import farthest_points
from sightline.ops.points.meshes import SurfacePoints, sample_surface
from sightline.ops.points.normals import estimate_normals
from sightline.store.computed_samples import SampleCache
from sightline.store.files.cloud_files import PointCloud
from sightline.store.files.cloud_values import check_strays
from sightline.store.files.input_files import damaged, download_again
from sightline.store.prepared.prepared_writer import normalize_to_unit_sphere

Zeros: TypeAlias = Literal["keep", "drop"]
"""What becomes of points at exactly (0, 0, 0), where sensors put those without a return."""
Normals: TypeAlias = Literal["none", "file", "estimated"]
"""Source of the normals of a cloud: none, the stored file, or planes fitted to neighbouring points."""

_NUM_NEIGHBOURS = 16
_MAX_CACHE_BYTES = 2**28


class EstimatedNormals:
    """Estimated normals of clouds, cached; the same bits alone and in any batch.

    `sample_name` returns the name of a sample for error messages.
    """

    def __init__(self, sample_name: Callable[[int], str]) -> None:
        self._sample_name = sample_name
        self._cache: SampleCache[np.ndarray] = SampleCache(_MAX_CACHE_BYTES, attrgetter("nbytes"))

    def estimate(self, index: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Estimate the normals (B, N, 3) float32, a new array, of the samples `index` (B,) with `points` (B, N, 3).

        Raises DataError naming the sample if a point has no normal.
        """
        return np.stack([self._estimate(i, cloud) for i, cloud in zip(index.tolist(), points, strict=True)])

    def _estimate(self, index: int, cloud: np.ndarray) -> np.ndarray:
        normals = self._cache.get(index)
        if normals is None:
            normals = self._cache.put(index, estimated_normals(cloud, where=self._sample_name(index)))
        return normals


def estimated_normals(points: np.ndarray, *, where: str) -> np.ndarray:
    """Estimate the normals (N, 3) float32 of one cloud (N, 3), alone so that its bits depend on no other cloud.

    Planes are fitted to distinct points, so that a cloud with repeated points has normals too.
    Raises DataError, beginning with `where`, if a point has no normal.
    """
    distinct, inverse = np.unique(points, axis=0, return_inverse=True)
    if len(distinct) < len(points):
        return estimated_normals(distinct, where=where)[inverse]
    try:
        return estimate_normals(torch.from_numpy(points)[None], num_neighbours=_NUM_NEIGHBOURS)[0].numpy()
    except ValueError as error:
        raise DataError(
            f"{where}: its normals cannot be estimated ({error}); set normals: none, or leave it out"
        ) from error


def check_labels(labels: np.ndarray, num_classes: int, *, where: str, noun: str = "classes") -> None:
    """Raise DataError, led by `where`, naming the first label (N,) without a class."""
    invalid = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(invalid):
        raise download_again(
            f"{where}[{invalid[0]}] is {labels[invalid[0]]}, there are {num_classes} {noun} (0 to {num_classes - 1})"
        )


def check_finite(points: np.ndarray, *, where: str) -> None:
    """Raise DataError, led by `where`, naming the first coordinate of points (N, 3) that is not finite."""
    is_finite = np.isfinite(points)
    if not is_finite.all():
        point, axis = np.argwhere(~is_finite)[0]
        raise download_again(f"{where}[{point}, {axis}] is {points[point, axis]}")


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


_MAX_COORDINATE = 1e150
"""Largest absolute coordinate whose distances are still finite in float64."""
_MAX_FLOAT32_STEP = 1e-3
"""Largest accepted step of float32 coordinates, as a fraction of the cloud's size."""


def find_kept(cloud: PointCloud) -> np.ndarray:
    """Return the mask (N,) of points elsewhere than at (0, 0, 0); all of a mesh."""
    is_mesh = cloud.faces is not None and len(cloud.faces) > 0
    is_kept: np.ndarray = np.ones(len(cloud.points), dtype=bool) if is_mesh else (cloud.points != 0).any(axis=1)
    return is_kept


def drop_zeros(cloud: PointCloud, *, where: str) -> PointCloud:
    """Leave out the points at exactly (0, 0, 0); a mesh stays. Raises DataError, led by `where`, if none is left."""
    is_kept = find_kept(cloud)
    if not is_kept.any():
        raise DataError(f"{where}: all points are at (0, 0, 0); leave the file out")
    return cloud.rows(is_kept)


def prepare_cloud(
    cloud: PointCloud,
    *,
    num_points: int,
    choice: Literal["random", "farthest"] = "random",
    faces: Literal["sample", "ignore"] = "sample",
    normalisation: Literal["unit_sphere", "none"] = "unit_sphere",
    with_normals: bool = False,
    channels: Sequence[str] = (),
    zeros: Zeros = "keep",
    where: str = "cloud",
) -> dict[str, np.ndarray]:
    """Sample and scale a cloud: `points`, optional `normals` (num_points, 3), `channels` (num_points, C); float32.

    Pure. Equal clouds give equal bits: the random draws are seeded by the coordinates alone, never by the name. A cloud
    with faces is a surface: points are sampled uniformly by area, with the normals of the faces. From any other cloud,
    `random` samples without replacement and `farthest` by farthest point sampling; if it has fewer than `num_points`
    points, all are taken and some are repeated. `unit_sphere` moves the mean of the sampled points to the origin and
    scales the largest distance to 1. Normals are scaled to length 1; a normal of length 0 stays.
    `zeros="drop"` leaves out points at exactly (0, 0, 0), but of a mesh.
    Raises DataError, beginning with `where`, if the cloud lacks required values or has no extent.
    Source: Qi et al. 2017 (PointNet), section 5.1; Eldar et al. 1997 (farthest point).
    """
    if zeros == "drop":
        cloud = drop_zeros(cloud, where=where)
    if np.abs(cloud.points).max() > _MAX_COORDINATE:
        raise damaged(f"{where}: a coordinate is {np.abs(cloud.points).max():.4g}")
    if cloud.faces is None or not len(cloud.faces):
        check_strays(cloud.points, where=where)
    if faces == "sample" and cloud.faces is not None and len(cloud.faces):
        sampled = _sample_surface(cloud, num_points, channels, where)
    else:
        sampled = _select_points(cloud, num_points, choice, with_normals, channels, where)
    normalise = normalize_to_unit_sphere if normalisation == "unit_sphere" else _as_float32
    prepared = {"points": normalise(sampled["points"], where=where)}
    if with_normals:
        lengths = np.linalg.norm(sampled["normals"], axis=1, keepdims=True)
        prepared["normals"] = (sampled["normals"] / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)
    if channels:
        prepared["channels"] = sampled["channels"].astype(np.float32)
    return prepared


def _sample_surface(cloud: PointCloud, num_points: int, channels: Sequence[str], where: str) -> dict[str, np.ndarray]:
    """Sample points and normals (num_points, 3) from the faces of a cloud."""
    if channels:
        raise DataError(
            f"{where}: has faces, and points drawn from these have no {', '.join(channels)}; set faces=ignore to take "
            "its vertices, or name no channels"
        )
    assert cloud.faces is not None
    drawn = draw_points(cloud.points, cloud.faces, name=_digest(cloud), where=where, num_points=num_points)
    return {"points": drawn.points, "normals": drawn.normals}


def _select_points(
    cloud: PointCloud, num_points: int, choice: str, with_normals: bool, channels: Sequence[str], where: str
) -> dict[str, np.ndarray]:
    """Select `num_points` of the points of a cloud, with normals and channels."""
    missing = [name for name in channels if name not in cloud.channels]
    if missing:
        available = ", ".join(cloud.channels) or "none"
        raise DataError(f"{where}: has no channel {', '.join(missing)} (it has {available}); name what all files have")
    if with_normals and cloud.normals is None:
        raise DataError(
            f"{where}: has no normals; leave those of the other files out with 'columns=[x, y, z]' and set "
            "data.normals=estimated, or write nx, ny, nz into every file"
        )
    index = _choose_indices(cloud, num_points, choice)
    selected = {"points": cloud.points[index]}
    if with_normals and cloud.normals is not None:
        selected["normals"] = cloud.normals[index]
    if channels:
        selected["channels"] = np.stack([cloud.channels[name][index] for name in channels], axis=1)
    return selected


def _choose_indices(cloud: PointCloud, num_points: int, choice: str) -> np.ndarray:
    """Choose the indices (num_points,) of the points; repetitions start only after all points are used."""
    num_available = len(cloud.points)
    generator = generator_from_name(_digest(cloud))
    if choice == "farthest":
        order = _farthest_first(cloud.points, min(num_points, num_available))
    else:
        order = generator.permutation(num_available)[:num_points]
    return np.concatenate([order, generator.integers(num_available, size=num_points - len(order))])


def _farthest_first(points: np.ndarray, count: int) -> np.ndarray:
    """Compute the farthest-point order from the first point; the duplicates of points follow by index."""
    centred = points - points.mean(axis=0)
    scaled = torch.from_numpy(centred / max(np.abs(centred).max(), np.finfo(np.float64).tiny))
    index = farthest_points(scaled[None], num_samples=count)[0].numpy()
    distinct = index[np.sort(np.unique(index, return_index=True)[1])]
    remaining = np.setdiff1d(np.arange(len(points)), distinct)
    return np.concatenate([distinct, remaining])[:count]


def _as_float32(points: np.ndarray, *, where: str) -> np.ndarray:
    """Convert to float32 unchanged. Raises DataError if the offset from the origin makes float32 too coarse."""
    reach, size = np.abs(points).max(), np.ptp(points, axis=0).max()
    if 0 < _MAX_FLOAT32_STEP * size < reach * 2.0**-24:
        raise DataError(
            f"{where}: a cloud of size {size:.3g} is {reach:.3g} from the origin, where float32 has steps of "
            f"{reach * 2.0**-23:.2g}; subtract an offset, or set normalisation=unit_sphere"
        )
    with np.errstate(over="ignore"):  # values too large for float32 become infinite, which the writer refuses
        return points.astype(np.float32)


def _digest(cloud: PointCloud) -> str:
    """Return the SHA-256 of the coordinates, the seed of all draws; name and path do not matter."""
    return hashlib.sha256(np.ascontiguousarray(cloud.points, dtype="<f8").data).hexdigest()


def cloud_radius(points: np.ndarray) -> float:
    """Compute the largest distance from the mean of the points (N, 3)."""
    return distance_from_origin(points - points.mean(axis=0, dtype=np.float64))


def distance_from_origin(points: np.ndarray) -> float:
    """Compute the largest distance of the points (N, 3) from the origin."""
    return float(np.hypot(np.hypot(points[:, 0], points[:, 1]), points[:, 2]).max())
