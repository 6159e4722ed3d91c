"""Figures of capsules before a depth camera, from numbers alone: what synthetic hands and bodies have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from annotated_types import Ge, Le

from sightline.arguments import ReferencePoint
from sightline.data.depth.depth_frames import DepthCamera, DepthFrames, FrameSplit
from sightline.data.depth.references import CentreOfMass, DepthFrame
from sightline.data.depth.skeletons import Skeleton
from sightline.data.synthetic.figure_poses import Figures, NoiseRange, ShareRange, assert_in_order, scale_to_range
from sightline.draws import Draws
from sightline.errors import ConfigError
from sightline.geometry.capsules import CapsuleDepth, render_capsules
from sightline.geometry.pinhole import project_points
from sightline.types import SampleKey

__all__ = ["Many", "SensorNoise", "SyntheticFigures", "render_figures"]

Many = Annotated[int, Ge(1), Le(1_000_000)]
"""How many samples; beyond this is a slip, refused before it fills the memory."""
_SPLITS = ("train", "test")
_CHUNK = 16  # frames made together
_MAX_CACHE_BYTES = 2**28
_ATTEMPTS = 100
_REACH = 0.99
"""How much of half the cube a joint may be from its middle: noise and missing pixels move a centre of mass a little."""


class SensorNoise(NamedTuple):
    """What the camera does to each frame: normal errors of a deviation, and a share of pixels without a depth, both
    drawn from these ranges for each frame."""

    deviation_mm: NoiseRange
    missing: ShareRange


class SyntheticFigures(DepthFrames):
    """Depth images of figures whose poses a set draws; a pure function of (data_seed, split, index).

    A set derives from it and answers `_draw`. A pose is drawn again where a joint leaves the picture, the cube about
    the middle joint, or that about the centre of mass. Epoch and seed of a key change nothing.
    """

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
        self._made: dict[int, _SparseFrame] = {}
        self._made_bytes = 0
        places = np.arange(sizes[split])
        part = FrameSplit(split, split, places, num_ordered=len(places), sizes=sizes)
        super().__init__(part=part, camera=camera, skeleton=skeleton, reference=reference, joints=joints)

    @classmethod
    def card(cls) -> dict[str, str]:
        """What `sightline data info` says of this set."""
        return {
            "layout": "no files: every frame is computed from data_seed, the split and its index",
            "obtain": "nothing to obtain; it is part of sightline",
            "terms": "free to use in any way, under the licence of sightline",
        }

    @property
    def fingerprint(self) -> str:
        """What the samples are made by, besides the arguments; another number when the same arguments make others."""
        return f"{self.set_name} {self.version}"

    def __getstate__(self) -> dict[str, Any]:
        """Without the frames made so far: a worker process makes its own, with the same bits."""
        return self.__dict__ | {"_made": {}, "_made_bytes": 0}

    def figures(self, places: Sequence[int]) -> Figures:
        """The figures of these frames, as they are in the end: (B, J, 3) and (B, N, 7).

        Raises ConfigError where no pose that was drawn fits into the cube and the picture.
        """
        return self._posed(places)[0]

    def _posed(self, places: Sequence[int]) -> tuple[Figures, np.ndarray]:
        """Figures whose poses fit, and their exact depths (B, H, W)."""
        joints, capsules = self._draw(self._draws(places, "pose 0"), self._draws(places, "lasting"))
        depth = np.zeros((len(places), self._camera.height_px, self._camera.width_px))
        rows = np.arange(len(places))
        for attempt in range(1, _ATTEMPTS + 1):
            tried = Figures(joints[rows], capsules[rows])
            fits = self._is_before_camera(tried)
            depth[rows[fits]] = render_figures(Figures(*(part[fits] for part in tried)), self._camera).depth
            fits[fits] = [self._is_in_reach(joints[row], depth[row]) for row in rows[fits]]
            rows = rows[~fits]
            if not len(rows):
                return Figures(joints, capsules), depth
            some = [places[row] for row in rows]
            joints[rows], capsules[rows] = self._draw(
                self._draws(some, f"pose {attempt}"), self._draws(some, "lasting")
            )
        raise ConfigError(
            f"{self.set_name}: none of {_ATTEMPTS} poses drawn for sample {places[rows[0]]} fits into a cube of "
            f"{self._skeleton.cube_mm:g} mm and into the picture; give narrower ranges in poses (scale, shift_mm)"
        )

    def _draw(self, draws: Draws, lasting: Draws) -> Figures:
        """A pose for each of the streams, fitting or not; `lasting` are the same for every pose tried for a sample."""
        raise NotImplementedError(f"{type(self).__name__} must define _draw")

    def _is_before_camera(self, figures: Figures) -> np.ndarray:
        """Which figures lie before the camera, with every joint in the cube about the middle one and in the picture."""
        joints, capsules = figures
        is_ahead = (np.minimum(capsules[..., 2], capsules[..., 5]) > capsules[..., 6]).all(axis=1)
        from_middle = np.abs(joints - joints[:, self._skeleton.centre, None])
        pixels = project_points(joints, self._camera.intrinsics)[..., :2]
        last = np.array([self._camera.width_px - 1, self._camera.height_px - 1])
        is_shown = ((pixels >= 0) & (pixels <= last)).all(axis=(1, 2))
        fits: np.ndarray = is_ahead & is_shown & (from_middle.max(axis=(1, 2)) < self._reach_mm)
        return fits

    def _is_in_reach(self, joints: np.ndarray, depth: np.ndarray) -> bool:
        """Whether every joint is in the cube about the centre of mass of what is seen of a figure."""
        rows, columns = (np.flatnonzero((depth > 0).any(axis=axis)) for axis in (1, 0))
        if not len(rows):
            return False
        window = depth[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        camera = self._camera.intrinsics - [0, 0, columns[0], rows[0]]
        centre = CentreOfMass().locate(window, camera, cube_mm=self._skeleton.cube_mm)
        return centre is not None and bool((np.abs(joints - centre) < self._reach_mm).all())

    @property
    def _reach_mm(self) -> float:
        return self._skeleton.cube_mm / 2 * _REACH

    def _frames(self, places: Sequence[int]) -> list[DepthFrame]:
        frames = {place: self._made[place] for place in places if place in self._made}
        missing = sorted(set(places) - frames.keys())
        for start in range(0, len(missing), _CHUNK):
            chunk = missing[start : start + _CHUNK]
            for place, frame in zip(chunk, self._make(chunk), strict=True):
                frames[place] = frame
                self._remember(place, frame)
        shape = (self._camera.height_px, self._camera.width_px)
        return [frames[place].opened(shape) for place in places]

    def _remember(self, place: int, frame: _SparseFrame) -> None:
        if self._made_bytes + frame.num_bytes <= _MAX_CACHE_BYTES:
            self._made[place] = frame
            self._made_bytes += frame.num_bytes

    def _make(self, places: Sequence[int]) -> list[_SparseFrame]:
        figures, depth = self._posed(places)
        frames = zip(places, depth.reshape(len(places), -1), figures.joints.astype(np.float32), strict=True)
        return [self._measured(*frame) for frame in frames]

    def _measured(self, place: int, depth: np.ndarray, joints: np.ndarray) -> _SparseFrame:
        """What the camera makes of exact depths (H W)."""
        pixels = np.flatnonzero(depth)
        draws = self._draws([place], "noise")
        share = scale_to_range(draws.uniform(1), self._noise.missing)[0, 0]
        deviation_mm = scale_to_range(draws.uniform(1), self._noise.deviation_mm)[0, 0]
        is_there = draws.uniform(len(pixels))[0].double().numpy() >= share
        errors = draws.normal(len(pixels))[0].double().numpy() * deviation_mm
        values = (depth[pixels] + errors).astype(np.float32)
        is_there &= values > 0
        return _SparseFrame(pixels[is_there].astype(np.int32), values[is_there], joints)

    def _draws(self, places: Sequence[int], stream: str) -> Draws:
        """The streams of these frames; the split stands in the epoch's place, so train and test share none."""
        epoch = _SPLITS.index(self._part.split)
        return Draws.for_samples([SampleKey(place, epoch, self._data_seed) for place in places]).stream(stream)


class _SparseFrame(NamedTuple):
    """The pixels of a frame that have a depth, in order, and its joints."""

    pixels: np.ndarray
    values: np.ndarray
    joints: np.ndarray

    @property
    def num_bytes(self) -> int:
        return self.pixels.nbytes + self.values.nbytes + self.joints.nbytes

    def opened(self, shape: tuple[int, int]) -> DepthFrame:
        depth = np.zeros(shape, dtype=np.float32)
        depth.reshape(-1)[self.pixels] = self.values
        return DepthFrame(depth, self.joints, np.ones(len(self.joints), dtype=bool))


def render_figures(figures: Figures, camera: DepthCamera) -> CapsuleDepth:
    """Exact depths (B, H, W) of figures, and which of their capsules is seen in every pixel."""
    return render_capsules(figures.capsules, camera.intrinsics, height_px=camera.height_px, width_px=camera.width_px)
