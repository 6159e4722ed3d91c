"""Base of depth data sets: camera, skeleton, samples and reference points, independent of the file format.

A reference point is the centre of the cube in which a pose is estimated, one for each depth image.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from annotated_types import Ge, Le

from sightline.contract import registry
from sightline.contract.arguments import NonNegativeFloat, PositiveFloat
from sightline.contract.dataset import Dataset
from sightline.contract.errors import ConfigError, DataError
from sightline.contract.types import Batch, DataInfo, Field, Folds, Sample, SampleKey
from sightline.ops.views.pinhole import depth_points
from sightline.store.files.input_files import expand_home
from sightline.store.files.text_tables import read_text


@dataclass(frozen=True)
class DepthCamera:
    """Pinhole camera of a set, in pixels: u = fx X / Z + u0, v = fy Y / Z + v0; fy is negative if Y points up."""

    fx: float
    fy: float
    u0: float
    v0: float
    width_px: int
    height_px: int

    @property
    def intrinsics(self) -> np.ndarray:
        """Intrinsics fx, fy, u0, v0: (4,) float64."""
        return np.array([self.fx, self.fy, self.u0, self.v0])

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height of the image."""
        return self.width_px, self.height_px

    @property
    def y_points(self) -> str:
        """Direction of the camera's y axis: `up` or `down`."""
        return "up" if self.fy < 0 else "down"


@dataclass(frozen=True)
class Skeleton:
    """Skeleton of a set: joints (counted from 0), `bones`, which are pairs of joints, and constants of metrics.

    `centre` is the central joint, the reference point `truth`; `cube_mm` is the usual side of the cube. `pck_joints`
    are the two joints whose distance is the unit of PCK; `sigmas` are the deviations of annotators of each joint, by
    which OKS measures, relative to the size of the figure. Neither is known of people's own joints, and bones only if
    they are stated.
    """

    joint_names: tuple[str, ...]
    bones: tuple[tuple[int, int], ...]
    centre: int
    cube_mm: float
    pck_joints: tuple[int, int] | None = None
    sigmas: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        num_joints = len(self.joint_names)
        assert len(self.sigmas) in (0, num_joints), f"{len(self.sigmas)} deviations of {num_joints} joints"

    def __len__(self) -> int:
        return len(self.joint_names)

    @property
    def facts(self) -> dict[str, Any]:
        """Facts about the joints that a data set states."""
        return {
            "num_joints": len(self),
            "joint_names": self.joint_names,
            "bones": self.bones,
            "centre_joint": self.centre,
            "cube_mm": self.cube_mm,
            **({} if self.pck_joints is None else {"pck_joints": self.pck_joints}),
            **({"keypoint_sigmas": self.sigmas} if self.sigmas else {}),
        }


def _read_skeletons() -> dict[str, Skeleton]:
    """Read the skeletons by name; the bones of each are a tree.

    The deviations of hands are those of Jin et al. 2020 (COCO-WholeBody), from the knuckle to the tip; palm and roots
    have those of wrist and knuckles. Those of bodies are COCO's (Lin et al. 2014), which has none for head, neck,
    torso, hand and foot: ear, shoulder, shoulder, wrist and ankle stand in for them.
    """
    rows = json.loads(Path(__file__).with_name("skeletons.json").read_text(encoding="utf-8"))
    return {key: Skeleton(**{name: _to_tuple(value) for name, value in row.items()}) for key, row in rows.items()}


def _to_tuple(value: Any) -> Any:
    return tuple(map(_to_tuple, value)) if isinstance(value, list) else value


SkeletonName = Literal["hand_21", "hand_21_by_level", "hand_21_thumb_first", "hand_16", "hand_14", "body_15", "body_17"]
"""Name of a skeleton in `skeletons.json`."""
SKELETONS: Mapping[str, Skeleton] = _read_skeletons()
"""Skeletons by name. `hand_21` has the joint order of MSRA (wrist, then finger by finger, the thumb last),
`hand_21_by_level` that of HANDS 2017 (wrist, all knuckles, then finger by finger), `hand_21_thumb_first` that of
MediaPipe and FreiHAND (wrist, then finger by finger, the thumb first), `hand_16` that of ICVL (palm, then root, middle
and tip of each finger), `hand_14` the 14 evaluated joints of NYU, `body_15` those of ITOP, `body_17` those of COCO. The
unit of PCK joins wrist and middle knuckle (of NYU, which has no knuckles, wrist and palm), neck and torso, or left
shoulder and right hip.
"""
HAND_21, HAND_21_BY_LEVEL, HAND_16, HAND_14, BODY_15 = (
    SKELETONS[name] for name in ("hand_21", "hand_21_by_level", "hand_16", "hand_14", "body_15")
)


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
    labelled, and `visible` (J,).
    """

    depth: np.ndarray
    joints: np.ndarray
    visible: np.ndarray


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


class Reference(ABC):
    """Reference point of depth images: where the middle of the cube is."""

    title: ClassVar[str]
    """Its name in facts and reports."""

    @abstractmethod
    def points_for(self, order: FrameOrder) -> Locator:
        """Return the locator of the points of one part."""


@registry.references.add("truth")
class TrueJoint(Reference):
    """The labelled central joint: an oracle, which is not available for unlabelled images.

    Source: made here.
    """

    title = "truth (oracle)"

    def __init__(self) -> None:
        pass

    def points_for(self, order: FrameOrder) -> Locator:
        return Locator(partial(_find_true_joint, order))


@registry.references.add("centre_of_mass")
class CentreOfMass(Reference):
    """The mean of the measured points, then `passes` times the mean of those in the cube about the last mean.

    Only depths above `near_mm`, and below `far_mm` if given, are used. The cube is that of the set.
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

    def locate(self, depth: np.ndarray, camera: np.ndarray, *, cube_mm: float) -> np.ndarray | None:
        """Compute the point (3,) float64 of one depth image (H, W) in mm; None if no pixel is measured in range."""
        far_mm = np.inf if self.far_mm is None else self.far_mm
        points = depth_points(np.where((depth > self.near_mm) & (depth < far_mm), depth, 0), camera)
        if not len(points):
            return None
        half_mm = cube_mm / 2
        axes = np.ascontiguousarray(points.T)  # contiguous coordinates: quicker to compare and to sum
        centre: np.ndarray = axes.mean(axis=1)
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
class ReferencePointFile(Reference):
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
    point = method.locate(frame.depth, order.camera, cube_mm=order.cube_mm)
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


@dataclass(frozen=True, eq=False)
class FrameSplit:
    """Frames of a split, as indices into the `num_ordered` frames of the set's files.

    `file_split` is the split of the set's own files that contains them (`train` contains the validation frames).
    `words` and `if_counts_differ` are passed on to `FrameOrder`. `sizes` maps each split to its number of frames.
    """

    split: str
    file_split: str
    frame_indices: np.ndarray
    num_ordered: int
    sizes: Mapping[str, int]
    words: Mapping[str, str] = field(default_factory=dict)
    if_counts_differ: str = ""


class DepthFrames(Dataset):
    """Base of sets of depth images with joints: `depth`, `camera`, `joints`, `visible`, `reference`, in mm.

    A subclass calls `__init__` and defines `_frame`. The default `reference` is the centre of mass. Frames without a
    reference point are left out of every split but `test`.
    """

    set_name: ClassVar[str]
    farthest_mm: float = 20_000.0
    """Upper bound of depths and coordinates; sets of near figures lower it: an almost unused range is reported."""

    def __init__(
        self,
        *,
        part: FrameSplit,
        camera: DepthCamera,
        skeleton: Skeleton,
        reference: Reference | None = None,
    ) -> None:
        self._part = part
        self._camera = camera
        self._skeleton = skeleton
        reference_source = CentreOfMass() if reference is None else reference
        self._locate = reference_source.points_for(
            FrameOrder(
                title=f"{self.set_name} {part.file_split}",
                num_frames=part.num_ordered,
                camera=camera.intrinsics,
                cube_mm=skeleton.cube_mm,
                centre=skeleton.centre,
                path_placeholders={"split": part.file_split, **part.words},
                if_counts_differ=part.if_counts_differ,
            )
        )
        selected = np.arange(len(part.frame_indices))
        if part.split != "test" and self._locate.is_known is not None:
            selected = np.flatnonzero(self._locate.is_known[part.frame_indices])
        if not len(selected):
            available = ", ".join(f"{name} ({size})" for name, size in part.sizes.items())
            advice = "; set evaluate.select: test" if part.split == "validation" else ""
            raise ConfigError(f"{self.set_name}: has no frame in the part '{part.split}'; it has {available}{advice}")
        self._frame_indices = part.frame_indices[selected]
        self._frame_indices.flags.writeable = False
        self.info = frames_info(
            camera,
            skeleton,
            farthest_mm=self.farthest_mm,
            reference=reference_source.title,
            sizes={**part.sizes, part.split: len(self)},
            folds=self._folds(),
        )

    def __len__(self) -> int:
        return len(self._frame_indices)

    @property
    def part(self) -> FrameSplit:
        """Frames of the split, including those that are left out because they have no reference point."""
        return self._part

    @property
    def frame_indices(self) -> np.ndarray:
        """Index of each sample (N,) int64 in the order of the set's files, which reference point files share."""
        return self._frame_indices

    def __getitem__(self, key: SampleKey) -> Sample:
        return {name: field[0] for name, field in self.get_batch([key]).items() if name != "sample_index"}

    def get_batch(self, keys: Sequence[SampleKey]) -> Batch:
        """Return the samples of these keys, stacked into new tensors; the same bits as sample by sample."""
        index_B = np.array([key.index for key in keys], dtype=np.int64)
        if ((index_B < 0) | (index_B >= len(self))).any():
            raise IndexError(f"{self.set_name} has the samples 0 to {len(self) - 1}, asked for {index_B.tolist()}")
        frame_indices = [int(self._frame_indices[index]) for index in index_B]
        frames = self._frames(frame_indices)
        references = [self._locate.find(frame, index) for frame, index in zip(frames, frame_indices, strict=True)]
        return {
            "depth": torch.from_numpy(np.stack([frame.depth for frame in frames])),
            "camera": torch.from_numpy(np.tile(self._camera.intrinsics, (len(frames), 1))),
            "joints": torch.from_numpy(np.stack([frame.joints for frame in frames])),
            "visible": torch.from_numpy(np.stack([frame.visible for frame in frames])),
            "reference": torch.from_numpy(np.stack(references).astype(np.float32)),
            "sample_index": torch.from_numpy(index_B),
        }

    def _frames(self, frame_indices: Sequence[int]) -> list[DepthFrame]:
        """Return several frames; a set that makes many faster than one by one overrides this."""
        return [self._frame(index) for index in frame_indices]

    def _frame(self, frame_index: int) -> DepthFrame:
        """Return the frame with an index in the order of the set's files."""
        raise NotImplementedError(f"{type(self).__name__} must define _frame or _frames")

    def _folds(self) -> Folds | None:
        """Return the cross-validation folds of the set, or None if it has none."""
        return None


def frames_info(
    camera: DepthCamera,
    skeleton: Skeleton,
    *,
    farthest_mm: float,
    reference: str | None = None,
    sizes: Mapping[str, int] | None = None,
    folds: Folds | None = None,
) -> DataInfo:
    """Build the DataInfo of a set of depth frames; sizes and kind of reference points are optional."""
    num_joints = len(skeleton)
    frame = f"camera, z forward, y {camera.y_points}"
    return DataInfo(
        facts={
            **skeleton.facts,
            "image_size_px": camera.size_px,
            "camera_px": (camera.fx, camera.fy, camera.u0, camera.v0),
            **({} if reference is None else {"reference_source": reference}),
        },
        fields={
            "depth": Field(
                f"{camera.height_px} {camera.width_px}", "float32", "mm", "along the optical axis", 0.0, farthest_mm
            ),
            "camera": Field("4", "float64", "px", "fx fy u0 v0"),
            "joints": Field(f"{num_joints} 3", "float32", "mm", frame, -farthest_mm, farthest_mm),
            "visible": Field(f"{num_joints}", "bool"),
            "reference": Field("3", "float32", "mm", frame, -farthest_mm, farthest_mm),
        },
        split_sizes=sizes or {},
        folds=folds,
    )
