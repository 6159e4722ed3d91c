"""Where in a depth image of one's own the figure is looked for."""

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
"""A heat map whose peak is lower carries no information: a target's is 1."""


class FrameCentre(NamedTuple):
    """A reference point (3,) in mm of the run's frame, and in words where it comes from."""

    point_mm: np.ndarray
    source: str


class CentreFinder(Protocol):
    """Finds the figure of each frame; `is_sequential` where that depends on the prediction for the one before."""

    is_sequential: bool

    def __call__(self, path: Path, depth: np.ndarray) -> FrameCentre:
        """Raises DataError where there is no such point."""
        ...

    def update(self, joints_mm: np.ndarray, peaks: np.ndarray) -> None:
        """The prediction for the last frame: joints (J, 3) in the run's frame, and the peaks (J,) of their maps."""
        ...


class CentreOfMassFinder:
    """The centre of mass of what is measured, re-cropped."""

    is_sequential = False

    def __init__(self, how: CentreOfMass, camera: np.ndarray, *, cube_mm: float) -> None:
        self._how = how
        self._camera = camera
        self._cube_mm = cube_mm

    def __call__(self, path: Path, depth: np.ndarray) -> FrameCentre:
        point = self._how.locate(depth, self._camera, cube_mm=self._cube_mm)
        if point is None:
            near, far = self._how.near_mm, self._how.far_mm
            reach = f" between {near:g} and {far:g} mm" if far is not None else f" beyond {near:g} mm" if near else ""
            raise DataError(
                f"{path}: has no measured pixel{reach}, so that there is no figure in it; give another image, or other "
                "reference.near_mm= and reference.far_mm="
            )
        return FrameCentre(point, "centre of mass")

    def near(self, start: np.ndarray, depth: np.ndarray) -> np.ndarray | None:
        """The centre of mass that is found from `start`; None where nothing is measured in its cube."""
        return self._how.locate(depth, self._camera, cube_mm=self._cube_mm, start=start)

    def update(self, joints_mm: np.ndarray, peaks: np.ndarray) -> None:
        """Nothing depends on it."""


class TrackingCentreFinder:
    """The centre of mass in the cube about the joints of the frame before: for the frames of a video, in order.

    The first frame, and one whose predecessor's prediction is lost, has that of the whole image. A prediction is lost
    where half of its maps or more have no peak, and where nothing is measured about it any more.
    """

    is_sequential = True

    def __init__(self, otherwise: CentreOfMassFinder) -> None:
        self._otherwise = otherwise
        self._joints: np.ndarray | None = None
        self._lost = "first frame"

    def __call__(self, path: Path, depth: np.ndarray) -> FrameCentre:
        if self._joints is not None:
            point = self._otherwise.near(self._joints.mean(axis=0), depth)
            if point is not None:
                return FrameCentre(point, "previous frame")
            self._lost = "previous prediction lost: no measured pixel near it"
        return self._otherwise(path, depth)._replace(source=f"centre of mass ({self._lost})")

    def update(self, joints_mm: np.ndarray, peaks: np.ndarray) -> None:
        num_dead = int((peaks < _DEAD_PEAK).sum())
        is_lost = 2 * num_dead >= len(peaks)
        self._joints = None if is_lost else joints_mm
        if is_lost:
            self._lost = f"previous prediction lost: {num_dead} of {len(peaks)} peaks below {_DEAD_PEAK:g}"


class FileCentreFinder:
    """The points of a file with a line for each frame, in their order; where a line reads `invalid`, the fallback.

    Points of the file are `turned` into the run's frame. Raises DataError for a file that does not fit the frames.
    """

    is_sequential = False

    def __init__(
        self,
        file: Path,
        files: Sequence[Path],
        otherwise: CentreOfMassFinder,
        *,
        camera: np.ndarray,
        cube_mm: float,
        turned: Callable[[np.ndarray], np.ndarray],
    ) -> None:
        order = FrameOrder("what is given", len(files), camera, cube_mm, centre=0)
        self._stored = ReferencePointFile(path=str(file)).points_for(order)
        self._places: Mapping[Path, int] = {path: place for place, path in enumerate(files)}
        self._otherwise = otherwise
        self._turned = turned
        self._source = file.name

    def __call__(self, path: Path, depth: np.ndarray) -> FrameCentre:
        place = self._places[path]
        if self._stored.is_known is not None and not self._stored.is_known[place]:
            return self._otherwise(path, depth)._replace(source=f"centre of mass (invalid in {self._source})")
        nothing = np.zeros((0, 3), dtype=np.float32)
        point = self._stored(DepthFrame(depth, nothing, nothing[:, 0] > 0), place)
        return FrameCentre(self._turned(point), f"{self._source}:{place + 1}")

    def update(self, joints_mm: np.ndarray, peaks: np.ndarray) -> None:
        """Nothing depends on it."""


class RefinedCentreFinder:
    """What others find, moved by a network: `refine` gives a point (3,) for a file, its depths and a point."""

    def __init__(self, start: CentreFinder, refine: Callable[[Path, np.ndarray, np.ndarray], np.ndarray]) -> None:
        self.is_sequential = start.is_sequential
        self._start = start
        self._refine = refine

    def __call__(self, path: Path, depth: np.ndarray) -> FrameCentre:
        start = self._start(path, depth)
        return FrameCentre(self._refine(path, depth, start.point_mm), f"{start.source}, refined")

    def update(self, joints_mm: np.ndarray, peaks: np.ndarray) -> None:
        self._start.update(joints_mm, peaks)
