"""Depth data sets: what their samples are, wherever the images come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch

from sightline.aliases import old_names
from sightline.data.depth.references import CentreOfMass, DepthFrame, FrameOrder, Reference
from sightline.data.depth.skeletons import Skeleton
from sightline.errors import ConfigError
from sightline.types import Batch, DataInfo, Field, Folds, Sample, SampleKey

__all__ = ["DepthCamera", "DepthFrames", "FrameSplit", "frames_info"]


@dataclass(frozen=True)
class DepthCamera:
    """The camera of a set, in pixels: u = fx X / Z + u0, v = fy Y / Z + v0; fy is negative where Y points up."""

    fx: float
    fy: float
    u0: float
    v0: float
    width_px: int
    height_px: int

    @property
    def intrinsics(self) -> np.ndarray:
        """fx, fy, u0, v0, float64."""
        return np.array([self.fx, self.fy, self.u0, self.v0])

    @property
    def y_points(self) -> str:
        return "up" if self.fy < 0 else "down"


@dataclass(frozen=True, eq=False)
class FrameSplit:
    """Which frames a split has: `places` among the `num_ordered` frames of the set's files, in their order.

    `file_split` is the split of the set's own files that they lie in (validation frames lie in `train`); `words` and
    `if_counts_differ` are those of a `FrameOrder`. `sizes` is how many frames each split has.
    """

    split: str
    file_split: str
    frame_indices: np.ndarray
    num_ordered: int
    sizes: Mapping[str, int]
    words: Mapping[str, str] = field(default_factory=dict)
    if_counts_differ: str = ""


class DepthFrames:
    """Depth images with joints, one sample each: `depth`, `camera`, `joints`, `visible`, `reference`, in mm.

    A set derives from it, gives `__init__` what it knows, and answers `_frame`. Without a `reference` it is the centre
    of mass. Frames for which there is none are left out of every split but `test`. Of the joints only those named in
    `joints` are given, in that order; without names all.
    """

    set_name: ClassVar[str]
    farthest_mm: float = 20_000.0
    """Nothing is seen beyond; a set whose figures are near says so, since a range hardly used is taken for a slip."""

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
        chosen = CentreOfMass() if reference is None else reference
        self._locate = chosen.points_for(
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
        kept = np.arange(len(part.frame_indices))
        if part.split != "test" and self._locate.is_known is not None:
            kept = np.flatnonzero(self._locate.is_known[part.frame_indices])
        if not len(kept):
            held = ", ".join(f"{name} ({size})" for name, size in part.sizes.items())
            advice = "; set evaluate.select: test" if part.split == "validation" else ""
            raise ConfigError(f"{self.set_name}: has no frame in the part '{part.split}'; it has {held}{advice}")
        self._places = _frozen(part.frame_indices[kept])
        self.info = frames_info(
            camera,
            skeleton.select_joints(joints),
            farthest_mm=self.farthest_mm,
            reference=chosen.title,
            sizes={**part.sizes, part.split: len(self)},
            folds=self._folds(),
        )

    def __len__(self) -> int:
        return len(self._places)

    @property
    def part(self) -> FrameSplit:
        """Which frames the split has, those that were left out for want of a reference point among them."""
        return self._part

    @property
    def frame_indices(self) -> np.ndarray:
        """Where each sample stands in the order of the set's files, in which files of reference points have lines."""
        return self._places

    def __getitem__(self, key: SampleKey) -> Sample:
        return {name: field[0] for name, field in self.get_batch([key]).items() if name != "sample_index"}

    def get_batch(self, keys: Sequence[SampleKey]) -> Batch:
        """The samples of these keys, stacked: fresh tensors, the same bits as one by one."""
        index_B = np.array([key.index for key in keys], dtype=np.int64)
        if ((index_B < 0) | (index_B >= len(self))).any():
            raise IndexError(f"{self.set_name} has the samples 0 to {len(self) - 1}, asked for {index_B.tolist()}")
        places = [int(self._places[index]) for index in index_B]
        frames = self._frames(places)
        references = [self._locate(frame, place) for frame, place in zip(frames, places, strict=True)]
        return {
            "depth": torch.from_numpy(np.stack([frame.depth for frame in frames])),
            "camera": torch.from_numpy(np.tile(self._camera.intrinsics, (len(frames), 1))),
            "joints": torch.from_numpy(np.stack([frame.joints[self._rows] for frame in frames])),
            "visible": torch.from_numpy(np.stack([frame.visible[self._rows] for frame in frames])),
            "reference": torch.from_numpy(np.stack(references).astype(np.float32)),
            "sample_index": torch.from_numpy(index_B),
        }

    def _frames(self, places: Sequence[int]) -> list[DepthFrame]:
        """The frames at these places; a set that makes many faster than one by one overrides this."""
        return [self._frame(place) for place in places]

    def _frame(self, place: int) -> DepthFrame:
        """The frame at a place of the order of the set's files."""
        raise NotImplementedError(f"{type(self).__name__} must define _frame or _frames")

    def _folds(self) -> Folds | None:
        """The parts that are tested in turn, for a set that has them."""
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
    """What a set of such frames states; sizes and kind of reference points are left out where they are not known."""
    num_joints = len(skeleton)
    frame = f"camera, z forward, y {camera.y_points}"
    return DataInfo(
        facts={
            **skeleton.facts,
            "image_size_px": (camera.width_px, camera.height_px),
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


def _frozen(array: np.ndarray) -> np.ndarray:
    array = np.array(array)
    array.flags.writeable = False
    return array


__getattr__ = old_names(__name__)
