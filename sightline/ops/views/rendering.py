"""Software rendering of clouds as discs (surfels), with a depth buffer and one light.

Pictures are brightnesses 0..255 in which 0 is background and nothing else, so that it can be coloured later.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import torch

from sightline.ops.numba_kernels import numba_kernel, run_parallel
from sightline.ops.points.neighbours import nearest_neighbours
from sightline.ops.views.cameras import Cameras


@numba_kernel
def draw_surfels(first: int, last: int, discs: np.ndarray, key: np.ndarray, shade: np.ndarray) -> None:
    """Draw discs (V, N, 12) of `_project_discs` into depth keys and shades (V, H, W); the key is -inf for background.

    First the foremost key of each pixel, then the mean over the discs within the band behind it, weighted by
    (1 - q)^2, q the squared distance from the centre in radii.
    """
    size = key.shape[1]
    nearest = np.empty((size, size))
    weights = np.empty((size, size))
    for view in range(first, last):
        nearest[:] = -np.inf
        weights[:] = 0
        key[view] = 0
        shade[view] = 0
        _find_nearest(discs[view], nearest)
        _blend(discs[view], nearest, weights, key[view], shade[view])
        for row in range(size):
            for column in range(size):
                weight = weights[row, column]
                key[view, row, column] = key[view, row, column] / weight if weight > 0 else -np.inf
                shade[view, row, column] = shade[view, row, column] / weight if weight > 0 else 0.0


@numba_kernel
def _find_nearest(discs: np.ndarray, nearest: np.ndarray) -> None:
    size = nearest.shape[0]
    for disc in range(len(discs)):
        u, v, key, key_u, key_v, a, b, c, half_u, half_v = discs[disc, :10]
        for row in range(max(0, math.ceil(v - half_v)), min(size - 1, math.floor(v + half_v)) + 1):
            dv = row - v
            for column in range(max(0, math.ceil(u - half_u)), min(size - 1, math.floor(u + half_u)) + 1):
                du = column - u
                if a * du * du + b * du * dv + c * dv * dv < 1:
                    nearest[row, column] = max(nearest[row, column], key + key_u * du + key_v * dv)


@numba_kernel
def _blend(discs: np.ndarray, nearest: np.ndarray, weights: np.ndarray, keys: np.ndarray, shades: np.ndarray) -> None:
    size = nearest.shape[0]
    for disc in range(len(discs)):
        u, v, key, key_u, key_v, a, b, c, half_u, half_v, band, shade = discs[disc]
        for row in range(max(0, math.ceil(v - half_v)), min(size - 1, math.floor(v + half_v)) + 1):
            dv = row - v
            for column in range(max(0, math.ceil(u - half_u)), min(size - 1, math.floor(u + half_u)) + 1):
                du = column - u
                share = a * du * du + b * du * dv + c * dv * dv
                pixel_key = key + key_u * du + key_v * dv
                if share < 1 and pixel_key >= nearest[row, column] - band:
                    weight = (1 - share) * (1 - share)
                    weights[row, column] += weight
                    keys[row, column] += weight * pixel_key
                    shades[row, column] += weight * shade


Style = Literal["shaded", "depth"]
Background = Literal["black", "white"]

_BLUR_PX = 0.75
"""Blur radius of every disc, so that it covers a pixel: the nearest centre is at most 0.71 pixels away."""
_MIN_COSINE = 0.1
"""Lowest cosine of a disc; steeper discs are turned to it, so that their depth is defined in every pixel."""
_BAND = 0.06
"""Depth behind the foremost disc, in radii of the sphere, within which discs belong to the same surface."""
_LIGHT = np.array([-0.3, 0.4, 0.85]) / math.sqrt(0.3**2 + 0.4**2 + 0.85**2)  # right, up, towards the viewer
_AMBIENT = 0.3
_FAR_BRIGHTNESS = 0.5
"""Brightness of the far end of the unit sphere over that of its near end, in shaded pictures."""
_FAR_BRIGHTNESS_DEPTH = 0.15
"""The same ratio in depth pictures: not 0, which is background."""


def render_cloud(points: np.ndarray, cameras: Cameras, *, style: Style = "shaded") -> np.ndarray:
    """Render each camera's view of a cloud in the unit sphere: `points` (N, 3) -> (V, H, W) uint8, 0 for background.

    Points become discs (`fit_surfels`) that hide each other and are blended where they meet. `shaded` shows how a
    surface is turned and, dimmed, how far it is; `depth` the distance alone, near ones bright. The same bits in any
    process, on any number of threads, with and without numba.
    Raises ValueError for points that are not finite or (N, 3).
    Source: Zwicker et al. 2001, "Surface splatting", sections 4 and 5 (blur by a pixel, visibility, blending).
    """
    discs = _project_discs(_fit_surfels(points), cameras)
    key, shade = _new_maps(cameras)
    run_parallel(draw_surfels, len(cameras), discs, key, shade)
    return _levels(key, shade, cameras, style)


def on_background(levels: np.ndarray, background: Background) -> np.ndarray:
    """Convert brightnesses (..., H, W) uint8, 0 for background, to colours (..., H, W, 3) on white or black."""
    shown = np.where(levels == 0, np.uint8(255), levels) if background == "white" else levels
    return np.repeat(shown[..., None], 3, axis=-1)


def _fit_surfels(points: np.ndarray) -> Surfels:
    if points.ndim != 2 or points.shape[1] != 3 or len(points) == 0:
        raise ValueError(f"points are {points.shape}, (points, 3) with at least one point are needed")
    return fit_surfels(points)


def _new_maps(cameras: Cameras) -> tuple[np.ndarray, np.ndarray]:
    shape = (len(cameras), cameras.size_px, cameras.size_px)
    return np.empty(shape), np.empty(shape)


def _project_discs(surfels: Surfels, cameras: Cameras) -> np.ndarray:
    """Compute the drawing parameters (V, N, 12) float64 of each disc in each view.

    Column and row of the centre; its depth key and how the key changes along both; a, b, c of the squared distance
    a du^2 + b du dv + c dv^2 in radii; half width and height of what is covered; the band; the shade. The key grows
    towards the viewer and is linear in the picture along a plane: the coordinate towards the viewer in parallel
    projection, one over the distance from the pinhole's plane else.
    """
    x, y, z = cameras.to_view(surfels.centres)
    normal = np.stack(cameras.to_view(surfels.normals))
    if cameras.distance is None:
        sight = np.zeros_like(normal)
        sight[2] = 1
    else:
        sight = np.stack((-x, -y, cameras.distance - z))
        sight /= np.sqrt(sight[0] * sight[0] + sight[1] * sight[1] + sight[2] * sight[2])
    cosine = _dot(normal, sight)
    sign = np.where(cosine < 0, -1.0, 1.0)
    normal, cosine = normal * sign, cosine * sign
    shade = _shade(normal)
    tilted = normal + np.maximum(_MIN_COSINE - cosine, 0) * sight
    u, v, key, key_u, key_v, along_u, along_v, band = _project_planes(x, y, z, tilted, cameras)
    a = b = c = np.zeros_like(u)
    for axis in (0, 1):
        half = surfels.half_axes[:, axis]
        length_squared = half[:, 0] * half[:, 0] + half[:, 1] * half[:, 1] + half[:, 2] * half[:, 2]
        direction = np.stack(cameras.to_view(half / length_squared[:, None]))
        in_u, in_v = _dot(direction, along_u), _dot(direction, along_v)
        a, b, c = a + in_u * in_u, b + 2 * in_u * in_v, c + in_v * in_v
    # The ellipse as a covariance, widened by that of the blur, and back.
    area = a * c - b * b / 4
    in_u, both, in_v = c / area + _BLUR_PX**2, b / area / 2, a / area + _BLUR_PX**2
    area = in_u * in_v - both * both
    a, b, c = in_v / area, 2 * both / area, in_u / area
    half_u, half_v = np.sqrt(in_u), np.sqrt(in_v)
    return np.stack((u, v, key, key_u, key_v, a, b, c, half_u, half_v, band, shade), axis=-1)


def _project_planes(
    x: np.ndarray, y: np.ndarray, z: np.ndarray, normal: np.ndarray, cameras: Cameras
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Project planes through points with these normals into the picture.

    Column, row, depth key, its change along columns and rows, what a step along columns and one along rows is in
    space (3, V, N), and the band in the key's own unit.
    """
    scale, centre = cameras.scale_px, cameras.centre_px
    zero = np.zeros_like(x)
    if cameras.distance is None:
        key_u, key_v = -normal[0] / normal[2] / scale, normal[1] / normal[2] / scale
        along_u, along_v = np.stack((zero + 1 / scale, zero, key_u)), np.stack((zero, zero - 1 / scale, key_v))
        return centre + scale * x, centre - scale * y, z, key_u, key_v, along_u, along_v, zero + _BAND
    depth = cameras.distance - z
    ray = np.stack((x / depth, y / depth, zero - 1))
    # n . (t ray) is the same all over the plane, so 1 / t is linear along the picture.
    level = _dot(normal, ray) * depth
    key_u, key_v = normal[0] / level / scale, -normal[1] / level / scale
    along_u = -depth * depth * key_u * ray + np.stack((depth / scale, zero, zero))
    along_v = -depth * depth * key_v * ray - np.stack((zero, depth / scale, zero))
    u, v = centre + scale * x / depth, centre - scale * y / depth
    return u, v, 1 / depth, key_u, key_v, along_u, along_v, _BAND / (depth * depth)


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    product: np.ndarray = a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
    return product


def _shade(normal: np.ndarray) -> np.ndarray:
    """Compute the brightness of a matt surface with normals (3, ...) towards the viewer. Source: Lambert's law."""
    lit = np.maximum(normal[0] * _LIGHT[0] + normal[1] * _LIGHT[1] + normal[2] * _LIGHT[2], 0)
    return _AMBIENT + (1 - _AMBIENT) * lit


def _levels(key: np.ndarray, shade: np.ndarray, cameras: Cameras, style: Style) -> np.ndarray:
    """Convert depth keys and shades to brightness: 1 to 255 on a surface, 0 for background."""
    is_there = key > -np.inf
    finite_key = np.where(is_there, key, 1)
    towards = finite_key if cameras.distance is None else cameras.distance - 1 / finite_key
    nearness = np.clip((towards + 1) / 2, 0, 1)
    farthest = _FAR_BRIGHTNESS if style == "shaded" else _FAR_BRIGHTNESS_DEPTH
    light = (farthest + (1 - farthest) * nearness) * (shade if style == "shaded" else 1)
    return np.where(is_there, 1 + np.rint(254 * light), 0).astype(np.uint8)


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
