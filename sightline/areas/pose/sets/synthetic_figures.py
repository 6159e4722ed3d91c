"""Base of synthetic hands and bodies: jointed figures of capsules, posed by chance and rendered by a depth camera."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import ClassVar, NamedTuple

import numpy as np
import torch

from sightline.areas.pose.sets.capsules import render_capsules
from sightline.areas.pose.sets.depth_frames import (
    CentreOfMass,
    DepthCamera,
    DepthFrame,
    DepthFrames,
    FrameSplit,
    Skeleton,
)
from sightline.contract.arguments import ReferencePoint
from sightline.contract.draws import Draws
from sightline.contract.errors import ConfigError
from sightline.contract.types import SampleKey
from sightline.ops.points.rotations import euler_matrix
from sightline.ops.views.pinhole import project_points
from sightline.store.computed_samples import ComputedSet, SampleCache


class Figures(NamedTuple):
    """Figures in the camera's frame, in mm: `joints` (B, J, 3), `capsules` (B, N, 7); absent capsules have radius 0."""

    joints: np.ndarray
    capsules: np.ndarray


def scale_to_range(uniform: torch.Tensor, bounds: tuple[float, float]) -> np.ndarray:
    """Scale random numbers in [0, 1) to a range; the shape is kept, float64."""
    low, high = bounds
    scaled: np.ndarray = low + (high - low) * uniform.double().numpy()
    return scaled


def scale_symmetric(uniform: torch.Tensor, reach: float | Sequence[float]) -> np.ndarray:
    """Scale random numbers in [0, 1) to -reach to reach; the shape is kept, float64."""
    scaled: np.ndarray = (2 * uniform.double().numpy() - 1) * np.asarray(reach)
    return scaled


def rotate(points: np.ndarray, turn_rad: np.ndarray) -> np.ndarray:
    """Rotate points (B, N, 3) by yaw, pitch and roll (B, 3): about x (pitch), then y (yaw), then z (roll).

    Matrices are made one by one and products are written out: a figure has the same bits alone and in a batch.
    """
    matrices = [euler_matrix(torch.from_numpy(angles[[1, 0, 2]])).numpy() for angles in turn_rad]
    x, y, z = (points[..., axis, None] for axis in range(3))
    columns = np.stack(matrices)[:, None]
    rotated: np.ndarray = x * columns[..., 0] + y * columns[..., 1] + z * columns[..., 2]
    return rotated


def rotate_about_x(vectors: np.ndarray, angles_rad: np.ndarray) -> np.ndarray:
    """Rotate vectors (..., 3) about x: y towards z."""
    cosine, sine = _compute_cos_sin(angles_rad)
    x, y, z = np.moveaxis(vectors, -1, 0)
    return np.stack(np.broadcast_arrays(x, cosine * y - sine * z, sine * y + cosine * z), axis=-1)


def rotate_about_z(vectors: np.ndarray, angles_rad: np.ndarray) -> np.ndarray:
    """Rotate vectors (..., 3) about z: x towards y."""
    cosine, sine = _compute_cos_sin(angles_rad)
    x, y, z = np.moveaxis(vectors, -1, 0)
    return np.stack(np.broadcast_arrays(cosine * x - sine * y, sine * x + cosine * y, z), axis=-1)


def _compute_cos_sin(angles_rad: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute cosines and sines one by one: in an array the last bit may depend on the index of the angle."""
    angles = np.asarray(angles_rad, dtype=np.float64)
    pairs = [(math.cos(angle), math.sin(angle)) for angle in angles.ravel().tolist()]
    cosine, sine = np.array(pairs).reshape(*angles.shape, 2).transpose(-1, *range(angles.ndim))
    return cosine, sine


_SPLITS = ("train", "test")
_CHUNK = 16  # frames made together
_MAX_CACHE_BYTES = 2**28
_MAX_REACH = 0.99
"""Maximum distance of a joint from the cube's centre, in half sides: noise shifts the centre of mass a little."""


class SyntheticFigures(ComputedSet, DepthFrames):
    """Base of depth images of figures of capsules: a pure function of (data_seed, split, index).

    `noise_mm` is the range of the standard deviation of depth noise, `missing` that of the share of pixels without a
    depth, both drawn for each frame. A pose is drawn again if a joint is outside the image, or outside the cube about
    the middle joint or the centre of mass. Epoch and seed of a key change nothing.
    """

    computed = "frame is computed"
    version: ClassVar[int] = 1

    def __init__(
        self,
        *,
        split: str,
        sizes: Mapping[str, int],
        camera: DepthCamera,
        skeleton: Skeleton,
        reference: ReferencePoint | None,
        noise_mm: tuple[float, float],
        missing: tuple[float, float],
        data_seed: int,
    ) -> None:
        if split not in sizes:
            raise ConfigError(f"{self.set_name}: there is no split '{split}'; it has {' and '.join(sizes)}")
        for name, (low, high) in {"noise_mm": noise_mm, "missing": missing}.items():
            if low > high:
                raise ConfigError(f"{name}: is from {low:g} to {high:g}; give the lower number first")
        self._noise_mm, self._missing = noise_mm, missing
        self._data_seed = data_seed
        self._cache = SampleCache[_SparseFrame](_MAX_CACHE_BYTES, attrgetter("num_bytes"))
        indices = np.arange(sizes[split])
        part = FrameSplit(split, split, indices, num_ordered=len(indices), sizes=dict(sizes))
        super().__init__(part=part, camera=camera, skeleton=skeleton, reference=reference)

    def pose(self, draws: Draws, lasting: Draws) -> Figures:
        """Draw a pose of each frame, whether it fits or not; `lasting` gives the same for all attempts of a frame."""
        raise NotImplementedError

    @property
    def fingerprint(self) -> str:  # type: ignore[override]
        """Version of the generator: it changes when the same arguments give other samples."""
        return f"{self.set_name} {self.version}"

    def figures(self, frame_indices: Sequence[int]) -> tuple[Figures, np.ndarray]:
        """Draw figures until their poses fit; return them with their exact depths (B, H, W)."""
        joints, capsules = self._draw(frame_indices, attempt=0)
        depth = np.zeros((len(frame_indices), self._camera.height_px, self._camera.width_px))
        rows, attempt = np.arange(len(frame_indices)), 0
        while len(rows):
            candidates = Figures(joints[rows], capsules[rows])
            fits = self._is_before_camera(candidates)
            depth[rows[fits]] = render_capsules(capsules[rows[fits]], self._camera)
            fits[fits] = [self._is_in_reach(joints[row], depth[row]) for row in rows[fits]]
            rows, attempt = rows[~fits], attempt + 1
            if len(rows):
                joints[rows], capsules[rows] = self._draw([frame_indices[row] for row in rows], attempt=attempt)
        return Figures(joints, capsules), depth

    def _draw(self, frame_indices: Sequence[int], *, attempt: int) -> Figures:
        return self.pose(self._draws(frame_indices, f"pose {attempt}"), self._draws(frame_indices, "lasting"))

    def _is_before_camera(self, figures: Figures) -> np.ndarray:
        """Mask (B,) of figures before the camera with all joints in the image and in the cube about the central one."""
        joints, capsules = figures
        in_front = (np.minimum(capsules[..., 2], capsules[..., 5]) > capsules[..., 6]).all(axis=1)
        from_middle = np.abs(joints - joints[:, self._skeleton.centre, None])
        pixels = project_points(joints, self._camera.intrinsics)[..., :2]
        last = np.array([self._camera.width_px - 1, self._camera.height_px - 1])
        in_image = ((pixels >= 0) & (pixels <= last)).all(axis=(1, 2))
        fits: np.ndarray = in_front & in_image & (from_middle.max(axis=(1, 2)) < self._reach_mm)
        return fits

    def _is_in_reach(self, joints: np.ndarray, depth: np.ndarray) -> bool:
        """Return True if every joint is in the cube about the centre of mass of the visible figure."""
        rows, columns = (np.flatnonzero((depth > 0).any(axis=axis)) for axis in (1, 0))
        if not len(rows):
            return False
        window = depth[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        camera = self._camera.intrinsics - [0, 0, columns[0], rows[0]]
        centre = CentreOfMass().locate(window, camera, cube_mm=self._skeleton.cube_mm)
        return centre is not None and bool((np.abs(joints - centre) < self._reach_mm).all())

    @property
    def _reach_mm(self) -> float:
        return self._skeleton.cube_mm / 2 * _MAX_REACH

    def _frames(self, frame_indices: Sequence[int]) -> list[DepthFrame]:
        cached = ((index, self._cache.get(index)) for index in frame_indices)
        frames = {index: frame for index, frame in cached if frame is not None}
        missing = sorted(set(frame_indices) - frames.keys())
        for start in range(0, len(missing), _CHUNK):
            chunk = missing[start : start + _CHUNK]
            for index, frame in zip(chunk, self._make(chunk), strict=True):
                frames[index] = self._cache.put(index, frame)
        shape = (self._camera.height_px, self._camera.width_px)
        return [frames[index].to_depth_frame(shape) for index in frame_indices]

    def _make(self, frame_indices: Sequence[int]) -> list[_SparseFrame]:
        figures, depth = self.figures(frame_indices)
        frames = zip(
            frame_indices, depth.reshape(len(frame_indices), -1), figures.joints.astype(np.float32), strict=True
        )
        return [self._add_noise(*frame) for frame in frames]

    def _add_noise(self, frame_index: int, depth: np.ndarray, joints: np.ndarray) -> _SparseFrame:
        """Add the camera's noise to exact depths (H * W,) and drop missing pixels."""
        pixels = np.flatnonzero(depth)
        draws = self._draws([frame_index], "noise")
        share = scale_to_range(draws.uniform(1), self._missing)[0, 0]
        deviation_mm = scale_to_range(draws.uniform(1), self._noise_mm)[0, 0]
        is_measured = draws.uniform(len(pixels))[0].double().numpy() >= share
        errors = draws.normal(len(pixels))[0].double().numpy() * deviation_mm
        values = (depth[pixels] + errors).astype(np.float32)
        is_measured &= values > 0
        return _SparseFrame(pixels[is_measured].astype(np.int32), values[is_measured], joints)

    def _draws(self, frame_indices: Sequence[int], stream: str) -> Draws:
        """Random streams per frame, seeded by (data_seed, split, index), so that splits never share numbers."""
        epoch = _SPLITS.index(self._part.split)
        return Draws.for_samples([SampleKey(index, epoch, self._data_seed) for index in frame_indices]).stream(stream)


class _SparseFrame(NamedTuple):
    """Frame stored sparsely: indices and values of measured pixels, and its joints."""

    pixels: np.ndarray
    values: np.ndarray
    joints: np.ndarray

    @property
    def num_bytes(self) -> int:
        return self.pixels.nbytes + self.values.nbytes + self.joints.nbytes

    def to_depth_frame(self, shape: tuple[int, int]) -> DepthFrame:
        depth = np.zeros(shape, dtype=np.float32)
        depth.reshape(-1)[self.pixels] = self.values
        return DepthFrame(depth, self.joints, np.ones(len(self.joints), dtype=bool))
