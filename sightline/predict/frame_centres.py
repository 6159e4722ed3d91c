"""Reference points for depth images of the user's own camera: centre of mass, tracking, files, refiner."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from sightline.data.depth.references import CentreOfMass, DepthFrame, FrameOrder, ReferencePointFile
from sightline.errors import DataError

__all__ = [
    "CentreFinder",
    "CentreOfMassFinder",
    "FileCentreFinder",
    "FrameCentre",
    "RefinedCentreFinder",
    "TrackingCentreFinder",
]

_DEAD_PEAK = 0.1
"""Heat-map peak below which a map carries no information; that of a target is 1."""


class FrameCentre(NamedTuple):
    """Reference point (3,) in mm in the run's frame, and a description of its source."""

    point_mm: np.ndarray
    source: str


class CentreFinder(Protocol):
    """Callable that finds the reference point of each frame.

    `is_sequential` is true if the point depends on the prediction for the previous frame.
    """

    is_sequential: bool

    def __call__(self, path: Path, depth: np.ndarray) -> FrameCentre:
        """Find the reference point of a frame. Raises DataError if there is none."""
        ...

    def update(self, joints_mm: np.ndarray, peaks: np.ndarray) -> None:
        """Take the prediction for the last frame: joints (J, 3) in mm in the run's frame, heat-map peaks (J,)."""
        ...


class CentreOfMassFinder:
    """Centre of mass of the measured pixels, refined by re-cropping."""

    is_sequential = False

    def __init__(self, settings: CentreOfMass, camera: np.ndarray, *, cube_mm: float) -> None:
        self._settings = settings
        self._camera = camera
        self._cube_mm = cube_mm

    def __call__(self, path: Path, depth: np.ndarray) -> FrameCentre:
        point = self._settings.locate(depth, self._camera, cube_mm=self._cube_mm)
        if point is None:
            near, far = self._settings.near_mm, self._settings.far_mm
            reach = f" between {near:g} and {far:g} mm" if far is not None else f" beyond {near:g} mm" if near else ""
            raise DataError(
                f"{path}: has no measured pixel{reach}, so that there is no figure in it; give another image, or other "
                "reference.near_mm= and reference.far_mm="
            )
        return FrameCentre(point, "centre of mass")

    def near(self, start: np.ndarray, depth: np.ndarray) -> np.ndarray | None:
        """Find the centre of mass from `start`; None if nothing is measured in its cube."""
        return self._settings.locate(depth, self._camera, cube_mm=self._cube_mm, start=start)

    def update(self, joints_mm: np.ndarray, peaks: np.ndarray) -> None:
        """Ignore the prediction."""


class TrackingCentreFinder:
    """Centre of mass in the cube about the joints of the previous frame, for the frames of a video, in order.

    The first frame, and a frame after a lost prediction, gets that of the whole image. A prediction is lost if at least
    half of its maps have no peak, or if nothing is measured near it any more.
    """

    is_sequential = True

    def __init__(self, fallback: CentreOfMassFinder) -> None:
        self._fallback = fallback
        self._joints: np.ndarray | None = None
        self._lost = "first frame"

    def __call__(self, path: Path, depth: np.ndarray) -> FrameCentre:
        if self._joints is not None:
            point = self._fallback.near(self._joints.mean(axis=0), depth)
            if point is not None:
                return FrameCentre(point, "previous frame")
            self._lost = "previous prediction lost: no measured pixel near it"
        return self._fallback(path, depth)._replace(source=f"centre of mass ({self._lost})")

    def update(self, joints_mm: np.ndarray, peaks: np.ndarray) -> None:
        num_dead = int((peaks < _DEAD_PEAK).sum())
        is_lost = 2 * num_dead >= len(peaks)
        self._joints = None if is_lost else joints_mm
        if is_lost:
            self._lost = f"previous prediction lost: {num_dead} of {len(peaks)} peaks below {_DEAD_PEAK:g}"


class FileCentreFinder:
    """Reference points of a file with a line for each frame, in order; the fallback replaces `invalid` lines.

    Points of the file are converted into the run's frame by `flip_y`. Raises DataError for a file of another length.
    """

    is_sequential = False

    def __init__(
        self,
        file: Path,
        files: Sequence[Path],
        fallback: CentreOfMassFinder,
        *,
        camera: np.ndarray,
        cube_mm: float,
        flip_y: Callable[[np.ndarray], np.ndarray],
    ) -> None:
        order = FrameOrder("what is given", len(files), camera, cube_mm, centre=0)
        self._stored = ReferencePointFile(path=str(file)).points_for(order)
        self._index_by_path: Mapping[Path, int] = {frame_path: index for index, frame_path in enumerate(files)}
        self._fallback = fallback
        self._flip_y = flip_y
        self._source = file.name

    def __call__(self, path: Path, depth: np.ndarray) -> FrameCentre:
        index = self._index_by_path[path]
        if self._stored.is_known is not None and not self._stored.is_known[index]:
            return self._fallback(path, depth)._replace(source=f"centre of mass (invalid in {self._source})")
        no_joints = np.zeros((0, 3), dtype=np.float32)
        point = self._stored(DepthFrame(depth, no_joints, no_joints[:, 0] > 0), index)
        return FrameCentre(self._flip_y(point), f"{self._source}:{index + 1}")

    def update(self, joints_mm: np.ndarray, peaks: np.ndarray) -> None:
        """Ignore the prediction."""


class RefinedCentreFinder:
    """Reference points of another finder, moved by a network: `refine` maps path, depths and point (3,) to a point."""

    def __init__(self, start: CentreFinder, refine: Callable[[Path, np.ndarray, np.ndarray], np.ndarray]) -> None:
        self.is_sequential = start.is_sequential
        self._start = start
        self._refine = refine

    def __call__(self, path: Path, depth: np.ndarray) -> FrameCentre:
        start = self._start(path, depth)
        return FrameCentre(self._refine(path, depth, start.point_mm), f"{start.source}, refined")

    def update(self, joints_mm: np.ndarray, peaks: np.ndarray) -> None:
        self._start.update(joints_mm, peaks)
