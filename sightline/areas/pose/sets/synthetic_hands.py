"""Depth images of procedural hands: jointed figures of capsules, drawn by chance and rendered by MSRA's camera.

A capsule is a cylinder with round ends; depths are exact to float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import attrgetter
from typing import ClassVar, NamedTuple

import numpy as np
import torch

from sightline.areas.pose.sets.depth_frames import (
    HAND_21,
    CentreOfMass,
    DepthCamera,
    DepthFrame,
    DepthFrames,
    FrameSplit,
)
from sightline.contract import registry
from sightline.contract.arguments import NonNegativeFloat, Probability, ReferencePoint, Seed
from sightline.contract.draws import Draws
from sightline.contract.errors import ConfigError
from sightline.contract.types import SampleKey
from sightline.ops.pinhole import pixel_rays, project_points
from sightline.ops.rotations import euler_matrix
from sightline.store.computed_samples import ComputedSet, Many, SampleCache

HAND_CAMERA = DepthCamera(241.42, -241.42, 160.0, 120.0, width_px=320, height_px=240)
"""Camera of MSRA."""
_PLACE_MM = np.array([0.0, 0.0, 350.0])
_SHIFT_MM = (60.0, 40.0, 60.0)
"""Reach of the palm across, up and away from `_PLACE_MM`, to either side."""
_TURN_DEG, _FLEXION_RAD, _REACH_SPLAY_DEG, _SCALE = (45.0, 30.0, 40.0), (0.0, 1.4), 15.0, (0.8, 1.2)
"""Yaw, pitch and roll to either side; bend of a finger at each joint; its splay to either side; size of the hand."""
_FOREARM_SHARE = 0.5
# x to the right, y up, z away from the camera, in mm: MSRA's frame, the palm about the origin.
_WRIST = (0.0, -45.0, 0.0)
_KNUCKLES = ((25.0, 40.0, 0.0), (5.0, 45.0, 0.0), (-13.0, 42.0, 0.0), (-30.0, 33.0, 0.0))
"""Knuckles of index, middle, ring and little finger, the order of all constants below."""
_BONES_MM = ((40.0, 24.0, 20.0), (44.0, 28.0, 22.0), (40.0, 26.0, 21.0), (31.0, 19.0, 18.0))
_SPLAY_DEG = (-8.0, 0.0, 6.0, 14.0)
_THUMB_KNUCKLE = (28.0, -22.0, -5.0)
_THUMB_BONES_MM = (40.0, 31.0, 25.0)
_THUMB_ALONG = np.array([0.75, 0.62, -0.2]) / np.sqrt(0.75**2 + 0.62**2 + 0.2**2)
_THUMB_ACROSS = np.array([-0.6, 0.3, -0.75])
"""Bending direction of the thumb: over the palm, towards the little finger."""
_THUMB_FLEXION = 0.5
"""Bend of the thumb at each joint, as a share of the drawn flexion."""
_PALM = ((1, 5), (5, 9), (9, 13))
_FINGER_RADII_MM = ((12.0, 9.0, 8.0, 7.5), (12.0, 9.5, 8.5, 8.0), (12.0, 9.0, 8.0, 7.5), (12.0, 8.0, 7.0, 6.5))
_THUMB_RADII_MM = (14.0, 11.0, 10.0, 9.0)
_PALM_RADIUS_MM = 11.0
_FOREARM_MM = np.array([0.0, -60.0, 0.0])
_FOREARM_RADIUS_MM = 22.0
_FOREARM_DEG = (30.0, 15.0)
"""Maximum bend of the wrist to either side: forwards and sideways."""


class Figures(NamedTuple):
    """Figures in the camera's frame, in mm: `joints` (B, J, 3), `capsules` (B, N, 7); absent capsules have radius 0."""

    joints: np.ndarray
    capsules: np.ndarray


def _scale_to_range(uniform: torch.Tensor, bounds: tuple[float, float]) -> np.ndarray:
    """Scale random numbers in [0, 1) to a range; the shape is kept, float64."""
    low, high = bounds
    scaled: np.ndarray = low + (high - low) * uniform.double().numpy()
    return scaled


def _scale_symmetric(uniform: torch.Tensor, reach: float | Sequence[float]) -> np.ndarray:
    """Scale random numbers in [0, 1) to -reach to reach; the shape is kept, float64."""
    scaled: np.ndarray = (2 * uniform.double().numpy() - 1) * np.asarray(reach)
    return scaled


def _rotate(points: np.ndarray, turn_rad: np.ndarray) -> np.ndarray:
    """Rotate points (B, N, 3) by yaw, pitch and roll (B, 3): about x (pitch), then y (yaw), then z (roll).

    Matrices are made one by one and products are written out: a figure has the same bits alone and in a batch.
    """
    matrices = [euler_matrix(torch.from_numpy(angles[[1, 0, 2]])).numpy() for angles in turn_rad]
    x, y, z = (points[..., axis, None] for axis in range(3))
    columns = np.stack(matrices)[:, None]
    rotated: np.ndarray = x * columns[..., 0] + y * columns[..., 1] + z * columns[..., 2]
    return rotated


def _rotate_about_x(vectors: np.ndarray, angles_rad: np.ndarray) -> np.ndarray:
    """Rotate vectors (..., 3) about x: y towards z."""
    cosine, sine = _compute_cos_sin(angles_rad)
    x, y, z = np.moveaxis(vectors, -1, 0)
    return np.stack(np.broadcast_arrays(x, cosine * y - sine * z, sine * y + cosine * z), axis=-1)


def _rotate_about_z(vectors: np.ndarray, angles_rad: np.ndarray) -> np.ndarray:
    """Rotate vectors (..., 3) about z: x towards y."""
    cosine, sine = _compute_cos_sin(angles_rad)
    x, y, z = np.moveaxis(vectors, -1, 0)
    return np.stack(np.broadcast_arrays(cosine * x - sine * y, sine * x + cosine * y, z), axis=-1)


def _capsule_rows(points: np.ndarray, ends: Sequence[tuple[int, int]], radii: Sequence[float]) -> np.ndarray:
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


class HandShape(NamedTuple):
    """Pose parameters of B hands; fingers in the order index, middle, ring, little, thumb.

    `flexion_rad` (B, 5) at each joint of a finger, `splay_rad` (B, 5) relative to the hand at rest, `turn_rad`
    (B, 3) yaw, pitch and roll about the palm, `scale` (B,), `place_mm` (B, 3) of the palm in the camera's frame,
    `wrist_rad` (B, 2) by which the forearm turns about x and z, `has_forearm` (B,) bool.
    """

    flexion_rad: np.ndarray
    splay_rad: np.ndarray
    turn_rad: np.ndarray
    scale: np.ndarray
    place_mm: np.ndarray
    wrist_rad: np.ndarray
    has_forearm: np.ndarray


def build_hands(shape: HandShape) -> Figures:
    """Build joints (B, 21, 3) in MSRA's order and capsules (B, 24, 7): 4 per finger, 3 of the palm, the forearm."""
    joints = _pose_joints(shape)
    tip = joints[:, 0] + _rotate_about_z(_rotate_about_x(_FOREARM_MM, shape.wrist_rad[:, 0]), shape.wrist_rad[:, 1])
    points = _rotate(np.concatenate((joints, tip[:, None]), axis=1) * shape.scale[:, None, None], shape.turn_rad)
    points = points + shape.place_mm[:, None]
    fingers = [(0 if level == 0 else 4 * f + level, 4 * f + level + 1) for f in range(5) for level in range(4)]
    radii = [radius for finger in (*_FINGER_RADII_MM, _THUMB_RADII_MM) for radius in finger]
    capsules = _capsule_rows(points, [*fingers, *_PALM, (0, 21)], [*radii, *[_PALM_RADIUS_MM] * 3, _FOREARM_RADIUS_MM])
    capsules[..., 6] *= shape.scale[:, None]
    capsules[~shape.has_forearm, -1, 6] = 0
    return Figures(points[:, :21], capsules)


def _pose_joints(shape: HandShape) -> np.ndarray:
    """Compute the joints (B, 21, 3) of posed hands of scale 1 before rotation, the palm at the origin."""
    count, levels = len(shape.flexion_rad), np.arange(1, 4)
    splay = np.radians(_SPLAY_DEG) + shape.splay_rad[:, :4]
    bent = _rotate_about_x(np.array([0.0, 1.0, 0.0]), -levels * shape.flexion_rad[:, :4, None])
    fingers = np.array(_BONES_MM)[..., None] * _rotate_about_z(bent, splay[..., None])
    bent = _bend_thumb(levels * _THUMB_FLEXION * shape.flexion_rad[:, 4:])
    thumb = np.array(_THUMB_BONES_MM)[:, None] * _rotate_about_z(bent, shape.splay_rad[:, 4:])
    knuckles = np.broadcast_to(np.array((*_KNUCKLES, _THUMB_KNUCKLE))[:, None], (count, 5, 1, 3))
    bones = np.concatenate((fingers, thumb[:, None]), axis=1)
    joints = np.cumsum(np.concatenate((knuckles, bones), axis=2), axis=2).reshape(count, 20, 3)
    return np.concatenate((np.broadcast_to(_WRIST, (count, 1, 3)), joints), axis=1)


def _bend_thumb(bend_rad: np.ndarray) -> np.ndarray:
    """Compute directions (..., 3) of thumb bones bent by `bend_rad` (...), from along the thumb to the palm."""
    across = _THUMB_ACROSS - (_THUMB_ACROSS @ _THUMB_ALONG) * _THUMB_ALONG
    across /= np.sqrt((across**2).sum())
    # a rotation about z takes x to y, as bending takes the thumb's axis to the direction across
    part = _rotate_about_z(np.array([1.0, 0.0, 0.0]), bend_rad)
    bent: np.ndarray = part[..., :1] * _THUMB_ALONG + part[..., 1:2] * across
    return bent


_SPLITS = ("train", "test")
_CHUNK = 16  # frames made together
_MAX_CACHE_BYTES = 2**28
_MAX_REACH = 0.99
"""Maximum distance of a joint from the cube's centre, in half sides: noise shifts the centre of mass a little."""


@registry.data.add("synthetic_hands")
class SyntheticHands(ComputedSet, DepthFrames):
    """Depth images of hands with 21 exact joints in MSRA's order, a pure function of (data_seed, split, index).

    23 capsules, and one of the forearm for half of the hands, seen by MSRA's camera, 320 by 240 pixels; mm, z forward,
    y up. `noise_mm` is the range of the standard deviation of depth noise, `missing` that of the share of pixels
    without a depth, both drawn for each frame. A pose is drawn again if a joint is outside the image, or outside the
    cube of 200 mm about the middle knuckle or the centre of mass. Epoch and seed of a key change nothing.
    Source: made here.
    """

    set_name = "synthetic_hands"
    computed = "frame is computed"
    version: ClassVar[int] = 1
    farthest_mm = 2 * float(_PLACE_MM[2] + _SHIFT_MM[2])

    def __init__(
        self,
        *,
        split: str,
        train_size: Many = 1920,
        test_size: Many = 480,
        noise_mm: tuple[NonNegativeFloat, NonNegativeFloat] = (0.0, 2.0),
        missing: tuple[Probability, Probability] = (0.0, 0.05),
        reference: ReferencePoint | None = None,
        data_seed: Seed = 0,
    ) -> None:
        if split not in _SPLITS:
            raise ConfigError(f"{self.set_name}: there is no split '{split}'; it has {' and '.join(_SPLITS)}")
        for name, (low, high) in {"noise_mm": noise_mm, "missing": missing}.items():
            if low > high:
                raise ConfigError(f"{name}: is from {low:g} to {high:g}; give the lower number first")
        self._noise_mm, self._missing = noise_mm, missing
        self._data_seed = data_seed
        self._cache = SampleCache[_SparseFrame](_MAX_CACHE_BYTES, attrgetter("num_bytes"))
        sizes = {"train": train_size, "test": test_size}
        indices = np.arange(sizes[split])
        part = FrameSplit(split, split, indices, num_ordered=len(indices), sizes=sizes)
        super().__init__(part=part, camera=HAND_CAMERA, skeleton=HAND_21, reference=reference)

    @property
    def fingerprint(self) -> str:
        """Version of the generator: it changes when the same arguments give other samples."""
        return f"{self.set_name} {self.version}"

    def figures(self, frame_indices: Sequence[int]) -> tuple[Figures, np.ndarray]:
        """Draw hands until their poses fit; return them with their exact depths (B, H, W)."""
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
        """Draw a pose of each frame, whether it fits or not; the forearm is the same for all attempts of a frame."""
        draws, lasting = self._draws(frame_indices, f"pose {attempt}"), self._draws(frame_indices, "lasting")
        shape = HandShape(
            flexion_rad=_scale_to_range(draws.uniform(5), _FLEXION_RAD),
            splay_rad=np.radians(_scale_symmetric(draws.uniform(5), _REACH_SPLAY_DEG)),
            turn_rad=np.radians(_scale_symmetric(draws.uniform(3), _TURN_DEG)),
            scale=_scale_to_range(draws.uniform(1), _SCALE)[:, 0],
            place_mm=_scale_symmetric(draws.uniform(3), _SHIFT_MM) + _PLACE_MM,
            wrist_rad=np.radians(_scale_symmetric(draws.uniform(2), _FOREARM_DEG)),
            has_forearm=lasting.uniform(1)[:, 0].numpy() < _FOREARM_SHARE,
        )
        return build_hands(shape)

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
        share = _scale_to_range(draws.uniform(1), self._missing)[0, 0]
        deviation_mm = _scale_to_range(draws.uniform(1), self._noise_mm)[0, 0]
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


_ROW = 18
"""Row of a capsule: start, end (0:6), radius, axis (7:10), start x axis (10:13), length, columns, rows (14:18)."""

_PARALLEL = 1e-24
"""Squared sine times the squared length of a ray, below which its angle with an axis is lost in rounding."""


_REACH_PX = 2**20
"""Bound of a window of pixels: far outside of any picture, and still a whole number."""


def render_capsules(capsules: np.ndarray, camera: DepthCamera) -> np.ndarray:
    """Render the nearest surface on the ray through every pixel's centre: capsules (F, N, 7) -> depth (F, H, W).

    `capsules` (F, N, 7): of each frame start, end (a sphere where they are one point) and radius, in the camera's frame
    with z forward, wholly before the camera; one of radius 0 is left out. Depths are float64 along the optical axis, 0
    without a hit, and have the same bits in any process.
    Source: the quadratic of a ray and a cylinder about the axis n, with the discriminant A r^2 - (d . (a x n))^2 of
    Lagrange's identity, which does not cancel where rays are nearly parallel to the axis.
    """
    rows = _build_rows(capsules, camera.intrinsics)
    rays = pixel_rays(camera.intrinsics, width_px=camera.width_px, height_px=camera.height_px)
    depth = np.full((len(rows), camera.height_px, camera.width_px), np.inf)
    for image, frame_rows in zip(depth, rows, strict=True):
        for row in frame_rows:
            left, right, top, bottom = np.clip(row[14:18], 0, None).astype(int)
            window = (slice(top, bottom + 1), slice(left, right + 1))
            if row[6] == 0 or not rays[window].size:
                continue
            distance = _distance(row, rays[window][..., 0], rays[window][..., 1])
            image[window] = np.fmin(image[window], distance)
    depth[np.isinf(depth)] = 0
    return depth


def _distance(row: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the ray parameter at which rays (x, y, 1) enter a capsule; inf for rays that miss it."""
    start, end, radius, (nx, ny, nz), (mx, my, mz), length = row[:3], row[3:6], row[6], row[7:10], row[10:13], row[13]
    across = y * nz - ny, nx - x * nz, x * ny - y * nx  # the ray x the axis
    steepness = across[0] * across[0] + across[1] * across[1] + across[2] * across[2]
    aside = x * mx + y * my + mz
    share = steepness * (radius * radius) - aside * aside
    along, begin = x * nx + y * ny + nz, start[0] * nx + start[1] * ny + start[2] * nz
    with np.errstate(divide="ignore", invalid="ignore"):
        entry = (across[0] * mx + across[1] * my + across[2] * mz - np.sqrt(share)) / steepness
        height = entry * along - begin
    # A ray along the axis enters by the end that it comes to first.
    is_parallel = steepness <= _PARALLEL
    is_low = np.where(is_parallel, along > 0, height <= 0)
    at_end = np.where(is_low, _sphere(start, radius, x, y), _sphere(end, radius, x, y))
    is_side = ~is_parallel & (height > 0) & (height < length)
    return np.where(is_parallel | (share >= 0), np.where(is_side, entry, at_end), np.inf)


def _sphere(centre: np.ndarray, radius: float, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    a, b, c = centre
    square = x * x + y * y + 1
    across = y * c - b, a - x * c, x * b - y * a
    share = square * (radius * radius) - (across[0] * across[0] + across[1] * across[1] + across[2] * across[2])
    with np.errstate(invalid="ignore"):
        return np.where(share >= 0, (x * a + y * b + c - np.sqrt(share)) / square, np.inf)


def _build_rows(capsules: np.ndarray, camera: np.ndarray) -> np.ndarray:
    """Build the rows (F, N, _ROW) of capsules (F, N, 7): with axis, moment, length and pixel window."""
    start, end, radius = capsules[..., 0:3], capsules[..., 3:6], capsules[..., 6]
    rows = np.zeros((*capsules.shape[:2], _ROW))
    rows[..., :7] = capsules
    offset = end - start
    length = np.sqrt(offset[..., 0] ** 2 + offset[..., 1] ** 2 + offset[..., 2] ** 2)
    axis = offset / np.where(length > 0, length, 1)[..., None]
    rows[..., 7:10], rows[..., 13] = axis, length
    rows[..., 10], rows[..., 11], rows[..., 12] = (
        start[..., i] * axis[..., j] - start[..., j] * axis[..., i] for i, j in ((1, 2), (2, 0), (0, 1))
    )
    rows[..., 14:16] = _window(start, end, radius, 0, camera[0], camera[2])
    rows[..., 16:18] = _window(start, end, radius, 1, camera[1], camera[3])
    return rows


def _window(
    start: np.ndarray, end: np.ndarray, radius: np.ndarray, axis: int, focal_px: float, centre_px: float
) -> np.ndarray:
    """Return the lowest and highest row or column (F, N, 2) that a capsule, the hull of its end spheres, may cover.

    The planes through the pinhole that touch a sphere have the slopes (x z +- r sqrt(x^2 + z^2 - r^2)) / (z^2 - r^2).
    """
    slopes = []
    for centre in (start, end):
        aside, ahead = centre[..., axis], centre[..., 2]
        root = radius * np.sqrt(np.maximum(aside * aside + ahead * ahead - radius * radius, 0))
        slopes += [
            (aside * ahead + sign * root) / np.where(radius > 0, ahead * ahead - radius * radius, 1) for sign in (1, -1)
        ]
    pixels = np.stack(slopes) * focal_px + centre_px
    # One pixel more on each side than rounding could ever leave out.
    return np.clip(np.stack([np.floor(pixels.min(0)) - 1, np.ceil(pixels.max(0)) + 1], -1), -_REACH_PX, _REACH_PX)
