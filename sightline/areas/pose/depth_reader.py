"""Reader of depth images of the user's own camera, in the coordinate frame of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sightline.areas.pose.depth_files import DEPTH_KINDS, read_depth
from sightline.areas.pose.sets.depth_frames import DepthCamera
from sightline.areas.pose.sets.joint_depths import TYPE_MAXIMA, find_mark
from sightline.areas.pose.sets.references import CentreOfMass
from sightline.contract.arguments import PositiveFloat
from sightline.contract.errors import ConfigError, DataError, UserError
from sightline.engine.run_loading import TrainedRun

DEPTH_SUFFIXES = tuple(DEPTH_KINDS)


@dataclass(frozen=True, kw_only=True)
class CameraOptions:
    """Camera of depth images: intrinsics in pixels, all or none, and the numbers of the files.

    The default intrinsics are those of the run's own set; the sign of fy sets whether the prediction's Y points down
    (fy > 0) or up. `no_return` is a number that marks pixels without a measurement, as 0 does.
    """

    fx: PositiveFloat | None = None
    fy: float | None = None
    u0: float | None = None
    v0: float | None = None
    mm_per_unit: PositiveFloat = 1.0
    no_return: float | None = None

    def __post_init__(self) -> None:
        numbers = {name: getattr(self, name) for name in ("fx", "fy", "u0", "v0")}
        missing = [f"camera.{name}=" for name, value in numbers.items() if value is None]
        if missing and len(missing) < len(numbers):
            raise ConfigError(f"{', '.join(missing)}: is missing, other values of the camera are given; give it too")
        if not missing and (not all(map(math.isfinite, numbers.values())) or numbers["fx"] <= 0 or numbers["fy"] == 0):
            listed = ", ".join(f"{value:g}" for value in numbers.values())
            raise ConfigError(f"camera: fx, fy, u0, v0 are {listed}; fx must be positive, fy not 0 (negative: Y up)")

    @property
    def intrinsics(self) -> np.ndarray | None:
        """Intrinsics fx, fy, u0, v0: (4,) float64, None if they are not given."""
        return None if self.fx is None else np.array([self.fx, self.fy, self.u0, self.v0], dtype=np.float64)


@dataclass(frozen=True)
class DepthFrameOptions:
    """Options for reading depth images, and for the reference point of the figure in them.

    The reference point is the centre of mass, computed as `centre_of_mass` states (default: as in the run); with
    `tracks_previous`, near the prediction for the previous frame. A `refiner`, a run of the task `centre`, moves the
    point to the figure's middle joint.
    """

    camera: CameraOptions = field(default_factory=CameraOptions)
    centre_of_mass: CentreOfMass | None = None
    tracks_previous: bool = False
    refiner: TrainedRun | None = None


class FrameReader:
    """Reader of depth images in the coordinate frame of a run, in which Y points as in the run's own set.

    `camera` (4,) float64 are the intrinsics with which the run sees them.
    """

    def __init__(self, run: TrainedRun, options: DepthFrameOptions) -> None:
        self._options = options.camera
        self._trained = load_camera(run)
        intrinsics = self._trained.intrinsics if self._options.intrinsics is None else self._options.intrinsics
        self.own_camera = intrinsics
        self.camera = intrinsics * [1.0, np.sign(self._trained.fy) * np.sign(intrinsics[1]), 1.0, 1.0]

    def notes(self) -> list[str]:
        """List a note if frames get the camera of the run's set, since none is given."""
        if self._options.intrinsics is not None:
            return []
        width, height = self._trained.width_px, self._trained.height_px
        fx, fy, u0, v0 = (f"{value:g}" for value in self._trained.intrinsics)
        return [
            f"no camera.* is given: frames of {width} x {height} pixels are taken for those of the run's camera, "
            f"fx {fx}, fy {fy}, u0 {u0}, v0 {v0}; another needs its own camera.fx=, camera.fy=, camera.u0=, camera.v0="
        ]

    @property
    def is_turned(self) -> bool:
        """True if Y points the other way in the user's frame."""
        return bool(self.camera[1] != self.own_camera[1])

    def read(self, path: Path) -> np.ndarray:
        """Read the depths (H, W) float32 in mm. Raises DataError for a file that cannot be predicted."""
        width, height = self._trained.width_px, self._trained.height_px
        options = self._options
        depth = read_depth(path, mm_per_unit=options.mm_per_unit, no_return=options.no_return)
        for mark in find_mark(depth, options.mm_per_unit):
            if mark.number in TYPE_MAXIMA:
                raise DataError(
                    f"{path}: {mark.share:.0%} of the measured pixels are {mark.number:.9g}, the largest number of "
                    f"their type, which marks pixels without a measurement; give camera.no_return={mark.number:.9g}"
                )
        if self._options.intrinsics is None and depth.shape != (height, width):
            raise DataError(
                f"{path}: the image is {depth.shape[1]} x {depth.shape[0]} pixels, those of the run's camera are "
                f"{width} x {height}; give this camera's own camera.fx=, camera.fy=, camera.u0= and camera.v0="
            )
        return depth

    def flip_y(self, points_mm: np.ndarray) -> np.ndarray:
        """Convert points (..., 3) from the run's frame to the user's, or back, by the sign of Y."""
        return points_mm * [1.0, -1.0, 1.0] if self.is_turned else points_mm


def load_camera(run: TrainedRun) -> DepthCamera:
    """Load the camera of the set that a run was trained on.

    Raises UserError if the run does not record it.
    """
    size, intrinsics = run.facts.get("image_size_px"), run.facts.get("camera_px")
    if size is None or intrinsics is None:
        raise UserError(f"{run.path}: does not record its camera and the size of its images; make the run again")
    fx, fy, u0, v0 = intrinsics
    return DepthCamera(fx, fy, u0, v0, width_px=size[0], height_px=size[1])
