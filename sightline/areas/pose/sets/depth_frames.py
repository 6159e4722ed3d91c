"""Base of depth data sets: samples, camera and splits, independent of the file format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch

from sightline.areas.pose.sets.references import CentreOfMass, DepthFrame, FrameOrder, Reference
from sightline.areas.pose.sets.skeletons import Skeleton
from sightline.contract.errors import ConfigError
from sightline.contract.types import Batch, DataInfo, Field, Folds, Sample, SampleKey


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
        return "up" if self.fy < 0 else "down"


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


class DepthFrames:
    """Base of sets of depth images with joints: `depth`, `camera`, `joints`, `visible`, `reference`, in mm.

    A subclass calls `__init__` and defines `_frame`. The default `reference` is the centre of mass. Frames without a
    reference point are left out of every split but `test`. `joints` selects joints by name, in that order; without
    names all.
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
        joints: Sequence[str] = (),
    ) -> None:
        assert skeleton.centre is not None, "a set's own skeleton has a middle"
        self._part = part
        self._camera = camera
        self._skeleton = skeleton
        self._rows = skeleton.joint_indices(joints)
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
        self._frame_indices = _copy_read_only(part.frame_indices[selected])
        self.info = frames_info(
            camera,
            skeleton.select_joints(joints),
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
            "joints": torch.from_numpy(np.stack([frame.joints[self._rows] for frame in frames])),
            "visible": torch.from_numpy(np.stack([frame.visible[self._rows] for frame in frames])),
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


def _copy_read_only(array: np.ndarray) -> np.ndarray:
    array = np.array(array)
    array.flags.writeable = False
    return array
