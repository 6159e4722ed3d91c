"""Base of synthetic hands and bodies: figures of capsules, posed by drawn angles and rendered by a depth camera."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import attrgetter
from typing import Annotated, ClassVar, NamedTuple

import numpy as np
import torch
from annotated_types import Ge, Le

from sightline.areas.pose.sets.capsules import CapsuleDepth, render_capsules
from sightline.areas.pose.sets.depth_frames import DepthCamera, DepthFrames, FrameSplit
from sightline.areas.pose.sets.references import CentreOfMass, DepthFrame
from sightline.areas.pose.sets.skeletons import Skeleton
from sightline.contract.arguments import NonNegativeFloat, Probability, ReferencePoint
from sightline.contract.draws import Draws
from sightline.contract.errors import ConfigError
from sightline.contract.types import SampleKey
from sightline.ops.pinhole import project_points
from sightline.ops.rotations import euler_matrix
from sightline.store.computed_samples import ComputedSet, SampleCache

Angle = Annotated[float, Ge(0.0), Le(180.0)]
"""Maximum angle to either side, in degrees."""
Range = tuple[float, float]
"""Bounds of a uniform distribution; two equal numbers give a constant."""
NoiseRange = tuple[NonNegativeFloat, NonNegativeFloat]
ShareRange = tuple[Probability, Probability]
ScaleRange = tuple[Annotated[float, Ge(0.1), Le(10.0)], Annotated[float, Ge(0.1), Le(10.0)]]


class Figures(NamedTuple):
    """Figures in the camera's frame, in mm: `joints` (B, J, 3), `capsules` (B, N, 7); absent capsules have radius 0."""

    joints: np.ndarray
    capsules: np.ndarray


def assert_in_order(name: str, bounds: Range) -> None:
    """Raise ConfigError for a range whose end is below its start."""
    low, high = bounds
    if low > high:
        raise ConfigError(f"{name}: is from {low:g} to {high:g}; give the lower number first")


def scale_to_range(uniform: torch.Tensor, bounds: Range) -> np.ndarray:
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


def capsule_rows(points: np.ndarray, ends: Sequence[tuple[int, int]], radii: Sequence[float]) -> np.ndarray:
    """Make capsules (B, N, 7) between pairs of points (B, P, 3)."""
    first, second = np.array(ends).T
    radius_column = np.broadcast_to(np.asarray(radii)[None, :, None], (len(points), len(radii), 1))
    return np.concatenate((points[:, first], points[:, second], radius_column), axis=2)


def _compute_cos_sin(angles_rad: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute cosines and sines one by one: in an array the last bit may depend on the index of the angle."""
    angles = np.asarray(angles_rad, dtype=np.float64)
    pairs = [(math.cos(angle), math.sin(angle)) for angle in angles.ravel().tolist()]
    cosine, sine = np.array(pairs).reshape(*angles.shape, 2).transpose(-1, *range(angles.ndim))
    return cosine, sine


_SPLITS = ("train", "test")
_CHUNK = 16  # frames made together
_MAX_CACHE_BYTES = 2**28
_ATTEMPTS = 100
_MAX_REACH = 0.99
"""Maximum distance of a joint from the cube's centre, in half sides: noise shifts the centre of mass a little."""


class SensorNoise(NamedTuple):
    """Ranges of the camera's noise, drawn per frame: standard deviation of depths, and share of missing pixels."""

    deviation_mm: NoiseRange
    missing: ShareRange


class SyntheticFigures(ComputedSet, DepthFrames):
    """Base of sets of synthetic depth images; samples are a pure function of (data_seed, split, index).

    A subclass defines `_draw`. A pose is drawn again if a joint is outside the image, the cube about the central joint,
    or the cube about the centre of mass. Epoch and seed of a key change nothing.
    """

    computed = "frame is computed"
    version: ClassVar[int] = 1

    def __init__(
        self,
        *,
        split: str,
        sizes: dict[str, int],
        camera: DepthCamera,
        skeleton: Skeleton,
        reference: ReferencePoint | None,
        joints: tuple[str, ...],
        noise: SensorNoise,
        data_seed: int,
        farthest_mm: float,
    ) -> None:
        if split not in _SPLITS:
            raise ConfigError(f"{self.set_name}: there is no split '{split}'; it has {' and '.join(_SPLITS)}")
        assert_in_order("noise_mm", noise.deviation_mm)
        assert_in_order("missing", noise.missing)
        self.farthest_mm = farthest_mm
        self._noise = noise
        self._data_seed = data_seed
        self._cache = SampleCache[_SparseFrame](_MAX_CACHE_BYTES, attrgetter("num_bytes"))
        indices = np.arange(sizes[split])
        part = FrameSplit(split, split, indices, num_ordered=len(indices), sizes=sizes)
        super().__init__(part=part, camera=camera, skeleton=skeleton, reference=reference, joints=joints)

    @property
    def fingerprint(self) -> str:
        """Version of the generator: it changes when the same arguments give other samples."""
        return f"{self.set_name} {self.version}"

    def figures(self, frame_indices: Sequence[int]) -> Figures:
        """Return the final figures of these frames: joints (B, J, 3) and capsules (B, N, 7).

        Raises ConfigError if no drawn pose fits into the cube and the image.
        """
        return self._draw_fitting(frame_indices)[0]

    def _draw_fitting(self, frame_indices: Sequence[int]) -> tuple[Figures, np.ndarray]:
        """Draw figures until their poses fit; return them with their exact depths (B, H, W)."""
        joints, capsules = self._draw(self._draws(frame_indices, "pose 0"), self._draws(frame_indices, "lasting"))
        depth = np.zeros((len(frame_indices), self._camera.height_px, self._camera.width_px))
        rows = np.arange(len(frame_indices))
        for attempt in range(1, _ATTEMPTS + 1):
            candidates = Figures(joints[rows], capsules[rows])
            fits = self._is_before_camera(candidates)
            depth[rows[fits]] = render_figures(Figures(*(part[fits] for part in candidates)), self._camera).depth
            fits[fits] = [self._is_in_reach(joints[row], depth[row]) for row in rows[fits]]
            rows = rows[~fits]
            if not len(rows):
                return Figures(joints, capsules), depth
            retried = [frame_indices[row] for row in rows]
            joints[rows], capsules[rows] = self._draw(
                self._draws(retried, f"pose {attempt}"), self._draws(retried, "lasting")
            )
        raise ConfigError(
            f"{self.set_name}: none of {_ATTEMPTS} poses drawn for sample {frame_indices[rows[0]]} fits into a cube of "
            f"{self._skeleton.cube_mm:g} mm and into the picture; give narrower ranges in poses (scale, shift_mm)"
        )

    def _draw(self, draws: Draws, sample_draws: Draws) -> Figures:
        """Draw one pose per stream, whether it fits or not; `sample_draws` are equal for all attempts of a sample."""
        raise NotImplementedError(f"{type(self).__name__} must define _draw")

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
        figures, depth = self._draw_fitting(frame_indices)
        frames = zip(
            frame_indices, depth.reshape(len(frame_indices), -1), figures.joints.astype(np.float32), strict=True
        )
        return [self._add_noise(*frame) for frame in frames]

    def _add_noise(self, frame_index: int, depth: np.ndarray, joints: np.ndarray) -> _SparseFrame:
        """Add the camera's noise to exact depths (H * W,) and drop missing pixels."""
        pixels = np.flatnonzero(depth)
        draws = self._draws([frame_index], "noise")
        share = scale_to_range(draws.uniform(1), self._noise.missing)[0, 0]
        deviation_mm = scale_to_range(draws.uniform(1), self._noise.deviation_mm)[0, 0]
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


def render_figures(figures: Figures, camera: DepthCamera) -> CapsuleDepth:
    """Render exact depths (B, H, W) of figures, and the index of the visible capsule in every pixel."""
    return render_capsules(figures.capsules, camera.intrinsics, height_px=camera.height_px, width_px=camera.width_px)
