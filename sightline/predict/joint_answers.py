"""The joints of a figure in a depth image of one's own: in mm and in pixels, how sure each is, and what it took."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sightline.engine.loading import TrainedRun
from sightline.errors import ConfigError
from sightline.geometry.pinhole import project
from sightline.predict.answers import Refusal
from sightline.predict.frame_centres import Centre
from sightline.predict.own_frames import FrameReader

__all__ = ["STAGES", "JointAnswers", "JointPrediction", "ReadFrame"]

STAGES = ("read", "centre", "voxelise", "network", "decode")
"""What is timed of each frame."""


class ReadFrame(NamedTuple):
    """A depth image (H, W) of a file, where the figure is looked for, and the milliseconds of both."""

    path: Path
    depth: np.ndarray
    centre: Centre
    ms: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class JointPrediction:
    """What a run says of one depth image.

    `joints_mm` (J, 3) float64 and `reference_mm` (3,) are in the frame of the image's `camera` (fx, fy, u0, v0), whose
    Y points up where fy is negative. `joints_px` (J, 2) are columns and rows. `peaks` (J,) are the largest values of
    the joints' maps: 1 where a run is sure, near 0 where its map is dead. `reference` says where the point comes from
    about which the figure was looked for, `treatment` what was done to the frame. `ms` are the milliseconds of each
    of `STAGES`; frames that went through the network together share them evenly. `depth` (H, W) is there while
    answers come one by one.
    """

    file: Path
    joints_mm: np.ndarray
    joints_px: np.ndarray
    peaks: np.ndarray
    joint_names: tuple[str, ...]
    bones: tuple[tuple[int, int], ...]
    reference_mm: np.ndarray
    reference: str
    camera: tuple[float, ...]
    cube_mm: float
    treatment: str
    ms: Mapping[str, float]
    depth: np.ndarray | None = None

    def without_depth(self) -> JointPrediction:
        """The same answer, so that many can be held."""
        return dataclasses.replace(self, depth=None)

    @property
    def total_ms(self) -> float:
        """The milliseconds of all stages."""
        return sum(self.ms.values())


class JointAnswers:
    """Makes a `JointPrediction` of each frame of a group, of what the task `pose` predicts.

    Raises ConfigError for a run whose set does not name its joints.
    """

    def __init__(self, run: TrainedRun, reader: FrameReader) -> None:
        missing = [name for name in ("joint_names", "bones", "cube_mm") if name not in run.facts]
        if missing:
            raise ConfigError(f"{run.path}: its data set states no {', '.join(missing)}; predict needs them for joints")
        self._reader = reader
        self._names = tuple(run.facts["joint_names"])
        self._bones = tuple((int(first), int(second)) for first, second in run.facts["bones"])
        self._cube_mm = float(run.facts["cube_mm"])
        self._camera = tuple(reader.own_camera.tolist())
        self._treatment = "as it is"
        if reader.is_turned:
            way, trained = ("down", "up") if reader.own_camera[1] > 0 else ("up", "down")
            self._treatment = f"Y points {way}, in the run {trained}: turned for the run, and back"

    def __call__(
        self, frames: Sequence[ReadFrame], predictions: Mapping[str, Any], ms: Mapping[str, float]
    ) -> dict[Path, JointPrediction | Refusal]:
        """The answer to each frame; `ms` are the milliseconds that all of them took together."""
        joints, peaks = (predictions[name].double().cpu().numpy() for name in ("joints_mm", "peaks"))
        shares = {stage: value / len(frames) for stage, value in ms.items()}
        return {
            frame.path: self._answer(frame, found, tops, {**frame.ms, **shares})
            for frame, found, tops in zip(frames, joints, peaks, strict=True)
        }

    def _answer(
        self, frame: ReadFrame, joints: np.ndarray, peaks: np.ndarray, ms: Mapping[str, float]
    ) -> JointPrediction | Refusal:
        if not (np.isfinite(joints).all() and np.isfinite(peaks).all()):
            reason = f"{frame.path}: the model's answer is not a finite number; are its weights sound?"
            return Refusal(frame.path, reason, is_input=False)
        own = self._reader.turned(joints)
        return JointPrediction(
            file=frame.path,
            joints_mm=own,
            joints_px=project(own, self._reader.own_camera)[:, :2],
            peaks=peaks,
            joint_names=self._names,
            bones=self._bones,
            reference_mm=self._reader.turned(frame.centre.point_mm),
            reference=frame.centre.source,
            camera=self._camera,
            cube_mm=self._cube_mm,
            treatment=self._treatment,
            ms={stage: ms[stage] for stage in STAGES},
            depth=frame.depth,
        )
