"""Reference points: the centre of the cube in which a pose is estimated, one point per depth image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
from annotated_types import Ge, Le

from sightline.contract import registry
from sightline.contract.arguments import NonNegativeFloat, PositiveFloat
from sightline.contract.errors import ConfigError, DataError
from sightline.ops.pinhole import depth_points
from sightline.store.files.input_files import expand_home
from sightline.store.files.text_tables import read_text

Passes = Annotated[int, Ge(0), Le(1000)]
"""Number of refinement passes."""
_MIN_DEPTH_MM = 20.0
"""Smallest plausible depth: if all depths are below it, the unit is metres."""


class NoCentreError(DataError):
    """Error for a frame without measured pixels, which has no centre of mass."""


@dataclass(frozen=True, eq=False)
class DepthFrame:
    """One depth image with joints, as a set reads it.

    `depth` (H, W) float32 in mm, 0 if not measured; `joints` (J, 3) float32 in mm in the camera's frame, 0 if not
    labelled, and `visible` (J,). `region_px` (left, top, right, bottom; the last two excluded) is the rectangle of the
    figure, or None if the set does not state it.
    """

    depth: np.ndarray
    joints: np.ndarray
    visible: np.ndarray
    region_px: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class FrameOrder:
    """Order of the frames of a split in the set's files, which is also the order of a reference point file.

    `centre` is the index of the central joint. `path_placeholders` replace their names in braces in a path.
    `if_counts_differ` is a hint for users whose file has another number of lines.
    """

    title: str
    num_frames: int
    camera: np.ndarray
    cube_mm: float
    centre: int
    path_placeholders: Mapping[str, str] = field(default_factory=dict)
    if_counts_differ: str = ""


Find: TypeAlias = Callable[[DepthFrame, int], np.ndarray]


class Locator(NamedTuple):
    """Finder of the reference points of one split of a set.

    `find` maps a frame and its index to the point (3,) float64 in mm in the camera's frame; `is_known` (frames,) masks
    the frames that have a point, None if all have one.
    """

    find: Find
    is_known: np.ndarray | None = None


class Reference(Protocol):
    """Component of the kind `references`; `title` is its name in facts and reports."""

    title: str

    def points_for(self, order: FrameOrder) -> Locator: ...


@registry.references.add("truth")
class TrueJoint:
    """The labelled central joint: an oracle, which is not available for unlabelled images.

    Source: made here.
    """

    title = "truth (oracle)"

    def __init__(self) -> None:
        pass

    def points_for(self, order: FrameOrder) -> Locator:
        return Locator(partial(_find_true_joint, order))


@registry.references.add("centre_of_mass")
class CentreOfMass:
    """The mean of the measured points, then `passes` times the mean of those in the cube about the last mean.

    Only depths above `near_mm`, and below `far_mm` if given, are used; if a set states the rectangle of the figure,
    only its pixels. The cube is that of the set.
    Source: Oberweger and Lepetit 2017 (DeepPrior++), without its refinement.
    """

    title = "centre_of_mass"

    def __init__(
        self, *, passes: Passes = 5, near_mm: NonNegativeFloat = 0.0, far_mm: PositiveFloat | None = None
    ) -> None:
        if far_mm is not None and far_mm <= near_mm:
            raise ConfigError(f"far_mm: is {far_mm:g}, it must be larger than near_mm, which is {near_mm:g}")
        self.passes = passes
        self.near_mm = near_mm
        self.far_mm = far_mm

    def points_for(self, order: FrameOrder) -> Locator:
        return Locator(partial(_find_centre_of_mass, self, order))

    def locate(
        self, depth: np.ndarray, camera: np.ndarray, *, cube_mm: float, start: np.ndarray | None = None
    ) -> np.ndarray | None:
        """Compute the point (3,) float64 of one depth image (H, W) in mm; None if no pixel is measured in range.

        `start` replaces the first mean, and only points in its cube are in range.
        """
        far_mm = np.inf if self.far_mm is None else self.far_mm
        points = depth_points(np.where((depth > self.near_mm) & (depth < far_mm), depth, 0), camera)
        if not len(points):
            return None
        half_mm = cube_mm / 2
        axes = np.ascontiguousarray(points.T)  # contiguous coordinates: quicker to compare and to sum
        centre: np.ndarray = axes.mean(axis=1) if start is None else np.asarray(start, dtype=np.float64)
        if start is not None and not _cube_mask(axes, centre, half_mm).any():
            return None
        for _ in range(self.passes):
            inside = _cube_mask(axes, centre, half_mm)
            if not inside.any():  # the mean of a ring may lie in its empty middle
                break
            mean = axes[:, inside].mean(axis=1)
            if np.array_equal(mean, centre):
                break
            centre = mean
        return centre


@registry.references.add("file")
class ReferencePointFile:
    """One line `x y z` per frame, in the order of the set's files, or a line that begins with `invalid`.

    `{split}` in `path` is replaced by train or test; a set may replace further words ({subject}). A frame whose line is
    invalid does not train; it is tested with the centre of mass. Points are in the set's own frame, z forward, in
    `unit`.
    Source: the files of Moon et al. 2018 (V2V-PoseNet).
    """

    title = "file"

    def __init__(self, *, path: str, unit: Literal["mm", "m"] = "mm") -> None:
        self.path = path
        self.unit = unit

    def points_for(self, order: FrameOrder) -> Locator:
        path = self.path
        for word, value in order.path_placeholders.items():
            path = path.replace(f"{{{word}}}", value)
        if "{" in path:
            valid = ", ".join(f"{{{word}}}" for word in order.path_placeholders)
            raise ConfigError(f"path: {path} has a word in braces that is not one of {order.title}; these are {valid}")
        points, is_known = read_points(
            expand_home(path),
            unit=self.unit,
            title=order.title,
            num_frames=order.num_frames,
            hint=order.if_counts_differ,
            split=order.path_placeholders.get("split", "test"),
        )
        fallback = CentreOfMass().points_for(order).find
        return Locator(partial(_find_stored_point, points, is_known, fallback), is_known)


def _find_true_joint(order: FrameOrder, frame: DepthFrame, index: int) -> np.ndarray:
    point = frame.joints[order.centre].astype(np.float64)
    if not point.any():
        raise DataError(
            f"{order.title}: frame {index} has no labelled joint {order.centre}, the reference point; set "
            "reference to centre_of_mass or file"
        )
    return point


def _find_centre_of_mass(method: CentreOfMass, order: FrameOrder, frame: DepthFrame, index: int) -> np.ndarray:
    depth = frame.depth
    if frame.region_px is not None:
        left, top, right, bottom = frame.region_px
        depth = np.zeros_like(depth)
        depth[top:bottom, left:right] = frame.depth[top:bottom, left:right]
    point = method.locate(depth, order.camera, cube_mm=order.cube_mm)
    if point is None:
        raise NoCentreError(
            f"{order.title}: frame {index} has no measured pixel between near_mm and far_mm, so it has no "
            "centre of mass; give wider bounds, or reference points in a file"
        )
    return point


def _find_stored_point(
    points: np.ndarray, is_known: np.ndarray, fallback: Find, frame: DepthFrame, index: int
) -> np.ndarray:
    return points[index].copy() if is_known[index] else fallback(frame, index)


def _cube_mask(axes: np.ndarray, centre: np.ndarray, half_mm: float) -> np.ndarray:
    """Mask (N,) of the points (3, N) in the cube of half side `half_mm` about `centre` (3,)."""
    mask: np.ndarray = np.logical_and.reduce(
        [np.abs(axis - middle) < half_mm for axis, middle in zip(axes, centre, strict=True)]
    )
    return mask


def read_points(
    path: Path, *, title: str, num_frames: int, unit: str = "mm", hint: str = "", split: str = "test"
) -> tuple[np.ndarray, np.ndarray]:
    """Read points (frames, 3) float64 in mm and the mask of valid ones, from lines `x y z` and `invalid`.

    Errors call the frames `title`, and end with `hint` if their number is another one.
    """
    if not path.exists():
        raise DataError(
            f"{path}: the file of the reference points of {title} is missing; set data.reference.path to its path, "
            "train without it by data.reference.name=centre_of_mass, or write it with a refiner of your own: "
            f"sightline predict RUN --data CONFIG split={split} --out {path}"
        )
    lines = read_text(path).rstrip().splitlines()
    if len(lines) != num_frames:
        excess = len(lines) - num_frames
        raise DataError(
            f"{path}: has {len(lines)} lines, {title} has {num_frames} frames: {abs(excess)} too "
            f"{'many' if excess > 0 else 'few'}; take the file that was made for these frames"
            f"{f' ({hint})' if hint else ''}"
        )
    points, is_known = np.zeros((len(lines), 3)), np.ones(len(lines), dtype=bool)
    for row, line in enumerate(lines):
        if line.split()[:1] and line.split()[0].startswith("invalid"):
            is_known[row] = False
        else:
            points[row] = _parse_point(line, f"{path}:{row + 1}")
    points *= 1000.0 if unit == "m" else 1.0
    depths = points[is_known, 2]
    if len(depths) and depths.max() < _MIN_DEPTH_MM:
        raise DataError(f"{path}: z reaches {depths.max():.3g} mm; the file is in metres: set unit: m")
    if len(depths) and depths.min() <= 0:
        row = int(np.flatnonzero(is_known & (points[:, 2] <= 0))[0])
        raise DataError(f"{path}:{row + 1}: z is {points[row, 2]:g} mm, behind the camera; z must point forward")
    return points, is_known


def _parse_point(line: str, where: str) -> np.ndarray:
    try:
        point = np.array([float(token) for token in line.split()])
    except ValueError:
        point = np.empty(0)
    if point.shape != (3,) or not np.isfinite(point).all():
        raise DataError(f"{where}: {line.strip()[:40]!r} is neither three numbers nor 'invalid'; get the file again")
    return point
