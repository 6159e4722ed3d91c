"""Predictor of the task `pose`: joints in depth images in mm and in pixels, with peaks, times and a picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from sightline.areas.pose.depth_reader import DEPTH_SUFFIXES, CameraOptions, DepthFrameOptions, FrameReader
from sightline.areas.pose.frame_centres import (
    INPUTS,
    CentreFinder,
    FrameCentre,
    assert_depth_run,
    frame_sample,
    make_centre_finder,
    without_target_transforms,
)
from sightline.areas.pose.sets.references import CentreOfMass
from sightline.areas.pose.stages import UNIT_CORNERS, project_cube
from sightline.config.overrides import read_key_values
from sightline.contract import registry
from sightline.contract.errors import ConfigError, UserError
from sightline.draw.pictures import encode_png
from sightline.engine.distributed import World
from sightline.engine.run_loading import TrainedRun, open_trained
from sightline.ops.pinhole import project_points
from sightline.store.loading.batch_reader import NamedTransform
from sightline.view.panels import READ, JointFigure, depth_panel
from sightline.workbench.predict.predictor import (
    CommandLine,
    Inference,
    Predictor,
    ReadFile,
    Refusal,
    StageTimer,
    median_times,
    refuse_non_finite,
    report_write_errors,
)

STAGES = ("read", "centre", "voxelise", "network", "decode")
"""Timed stages of each frame."""
_PICTURE = ".pose.png"
_WIDTH_PX = 640
_MAX_PX = 1e4
"""Columns and rows of joints that are drawn."""
_COORDINATES = ("x_mm", "y_mm", "z_mm", "u_px", "v_px", "peak")


@dataclass(frozen=True, eq=False)
class JointPrediction:
    """Predicted joints of one depth image.

    `joints_mm` (J, 3) float64 and `reference_mm` (3,) are in the frame of the image's `camera` (fx, fy, u0, v0), whose
    Y points up if fy is negative. `joints_px` (J, 2) are columns and rows. `peaks` (J,) are the largest values of
    the joints' heat maps: 1 for a confident prediction, near 0 for a dead map. `reference` names the source of the
    reference point, `treatment` describes what was done to the frame. `ms` are the milliseconds of each of `STAGES`;
    frames of one batch share them evenly. `depth` (H, W) is kept while predictions come one by one.
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

    @property
    def total_ms(self) -> float:
        """Milliseconds of all stages."""
        return sum(self.ms.values())


class _Source(NamedTuple):
    """Depth image (H, W), its reference point, and the milliseconds of both."""

    depth: np.ndarray
    centre: FrameCentre
    ms: Mapping[str, float]


@registry.predictors.add("pose")
class PosePredictor(Predictor[JointPrediction]):
    """Predictor of a `JointPrediction` per depth image, from the `joints_mm` and `peaks` of the task.

    `frames` states how the images are read, and where the figure is searched. If it tracks a video, frames are
    predicted one by one. Raises UserError for a run whose camera is unknown; ConfigError for a run that was not trained
    on depth images, or whose set does not name its joints, and for a refiner of another task. Source: made here.
    """

    reads = frozenset({"joints_mm", "peaks"})
    suffixes = DEPTH_SUFFIXES
    endings = (_PICTURE,)
    noun = "frame"
    is_timed = True
    columns = ("file", "looked for about", "mean peak", *(f"{stage} ms" for stage in STAGES), "all ms")

    def __init__(self, *, run: TrainedRun, world: World, frames: DepthFrameOptions | None = None) -> None:
        super().__init__(run=run)
        assert_depth_run(run, self.info)
        missing = [name for name in ("joint_names", "bones", "cube_mm") if name not in run.facts]
        if missing:
            raise ConfigError(f"{run.path}: its data set states no {', '.join(missing)}; predict needs them for joints")
        self._options = frames or DepthFrameOptions()
        self._world = world
        self._reader = FrameReader(run, self._options)
        self._centres: CentreFinder
        self.fields = {name: self.info.fields[name] for name in INPUTS}
        self.is_sequential = self._options.tracks_previous
        self._names = tuple(run.facts["joint_names"])
        self._bones = tuple((int(first), int(second)) for first, second in run.facts["bones"])
        self._cube_mm = float(run.facts["cube_mm"])
        self._camera = tuple(self._reader.own_camera.tolist())
        self._treatment = "as it is"
        if self._reader.is_turned:
            direction, trained = ("down", "up") if self._reader.own_camera[1] > 0 else ("up", "down")
            self._treatment = f"Y points {direction}, in the run {trained}: turned for the run, and back"
        joints = (f"{name} {coordinate}" for name in self._names for coordinate in _COORDINATES)
        reference = ("reference x_mm", "reference y_mm", "reference z_mm")
        times = (f"{stage} ms" for stage in STAGES)
        self.csv_columns = ("file", "reference", *reference, *joints, *times, "all ms", "treatment")

    @classmethod
    def options(cls, run: TrainedRun, line: CommandLine) -> dict[str, Any]:
        """Parse `frames` from the arguments `camera.*`, `reference.*`, `reference` and `refiner`."""
        arguments: dict[str, list[str]] = {"camera.": [], "reference.": [], "": []}
        for argument in line.key_values:
            key = argument.partition("=")[0].strip()
            prefix = "" if key in ("reference", "refiner") else f"{key.partition('.')[0]}."
            if prefix not in arguments:
                allowed = "camera.*, reference.*, reference and refiner"
                raise UserError(f"predict: found {argument!r}, allowed is key=value with {allowed}")
            arguments[prefix].append(argument)
        camera, mass, place = (
            read_key_values(name, function, arguments[prefix], command="predict", prefix=prefix)
            for name, function, prefix in (
                ("camera", CameraOptions, "camera."),
                ("centre_of_mass", CentreOfMass, "reference."),
                ("pose", _search, ""),
            )
        )
        frames = DepthFrameOptions(
            camera=CameraOptions(**camera),
            centre_of_mass=CentreOfMass(**mass) if mass else None,
            tracks_previous=place.get("reference") == "previous",
            refiner=open_trained(place["refiner"], plugins=line.plugins) if "refiner" in place else None,
        )
        return {"frames": frames}

    def start(self, files: Sequence[Path]) -> None:
        """Make the finder of reference points."""
        self._centres = make_centre_finder(self.run, self._reader, self._options, self._world)

    def close(self) -> None:
        """Move the refiner back to the CPU."""
        if self._options.refiner is not None:
            self._options.refiner.model.cpu()  # a loaded run keeps its model on the CPU

    def transforms(self) -> Sequence[NamedTransform]:
        """Return the run's evaluation transforms without those that draw targets, which need labels."""
        return without_target_transforms(self.run.transforms, self.info)

    def read(self, path: Path) -> ReadFile:
        """Read the depths, the camera and the reference point of a frame."""
        laps = StageTimer(self._world)
        depth = self._reader.read(path)
        laps.end_stage("read")
        centre = self._centres(path, depth)
        laps.end_stage("centre")
        return ReadFile(
            path, frame_sample(depth, self._reader.camera, centre.point_mm), _Source(depth, centre, laps.ms)
        )

    def predict(self, files: Sequence[ReadFile], inference: Inference) -> list[JointPrediction | Refusal]:
        """Make the prediction of each frame; frames of one batch share their time evenly."""
        joints, peaks = (inference.predictions[name].double().cpu().numpy() for name in ("joints_mm", "peaks"))
        shares = {{"transforms": "voxelise"}.get(stage, stage): ms / len(files) for stage, ms in inference.ms.items()}
        if self.is_sequential:
            self._centres.update(joints[0], peaks[0])
        return [
            self._make_prediction(file, joints_mm, joint_peaks, shares)
            for file, joints_mm, joint_peaks in zip(files, joints, peaks, strict=True)
        ]

    def compact(self, prediction: JointPrediction) -> JointPrediction:
        """Return the prediction without its depth image."""
        return dataclasses.replace(prediction, depth=None)

    def document(self, prediction: JointPrediction) -> dict[str, Any]:
        """Return all fields except those of the run's set, which `about` has."""
        return {
            "file": str(prediction.file),
            "joints_mm": prediction.joints_mm.tolist(),
            "joints_px": prediction.joints_px.tolist(),
            "peaks": prediction.peaks.tolist(),
            "reference_mm": prediction.reference_mm.tolist(),
            "reference": prediction.reference,
            "camera": list(prediction.camera),
            "treatment": prediction.treatment,
            "ms": {**prediction.ms, "all": prediction.total_ms},
        }

    def row(self, document: Mapping[str, Any]) -> Sequence[Any]:
        """Return file, reference, mean peak and times."""
        times = (f"{ms:.1f}" for ms in document["ms"].values())
        return [document["file"], document["reference"], float(np.mean(document["peaks"])), *times]

    def csv_row(self, document: Mapping[str, Any]) -> Sequence[Any]:
        """Return the coordinates and peaks of every joint, with reference and times."""
        peaks = np.array(document["peaks"])[:, None]
        joints = np.concatenate([document["joints_mm"], document["joints_px"], peaks], axis=1)
        numbers = [*document["reference_mm"], *joints.ravel().tolist(), *document["ms"].values()]
        return [document["file"], document["reference"], *numbers, document["treatment"]]

    def write(self, prediction: JointPrediction, name: Path) -> dict[str, Path]:
        """Write a picture of the part of the depth image about the cube, with the joints."""
        path = name.with_name(name.name + _PICTURE)
        with report_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_png(draw_pose(prediction)))
        return {"picture": path}

    def about(self) -> dict[str, Any]:
        """Return the names of the joints and the bones between them."""
        return {"joint_names": list(self._names), "bones": [list(bone) for bone in self.run.facts["bones"]]}

    def notes(self) -> list[str]:
        """List notes if the camera is that of the run's set, or if training used other reference points."""
        camera = self._reader.notes()
        trained = str(self.run.facts.get("reference_source", ""))
        source = "centre_of_mass" if self._options.refiner is None else "refiner"
        if not trained or (trained == "centre_of_mass") == (source == "centre_of_mass"):
            return camera
        point = "where a refiner puts the middle joint" if source == "refiner" else "the centre of mass"
        line = f"the run was trained about reference points of '{trained}', not {point}: its predictions may be worse"
        return [*camera, line]

    def summary(self, documents: Sequence[Mapping[str, Any]]) -> list[str]:
        """Return the median time of each stage."""
        return [median_times(documents, STAGES, noun="frame")] if documents else []

    def _make_prediction(
        self, file: ReadFile, joints: np.ndarray, peaks: np.ndarray, ms: Mapping[str, float]
    ) -> JointPrediction | Refusal:
        if not (np.isfinite(joints).all() and np.isfinite(peaks).all()):
            return refuse_non_finite(file.path)
        source: _Source = file.source
        joints_mm = self._reader.flip_y(joints)
        times = {**source.ms, **ms}
        return JointPrediction(
            file=file.path,
            joints_mm=joints_mm,
            joints_px=project_points(joints_mm, self._reader.own_camera)[:, :2],
            peaks=peaks,
            joint_names=self._names,
            bones=self._bones,
            reference_mm=self._reader.flip_y(source.centre.point_mm),
            reference=source.centre.source,
            camera=self._camera,
            cube_mm=self._cube_mm,
            treatment=self._treatment,
            ms={stage: times[stage] for stage in STAGES},
            depth=source.depth,
        )


def draw_pose(prediction: JointPrediction) -> np.ndarray:
    """Draw the joints of a prediction and its cube over the part of the depth image that shows the cube."""
    assert prediction.depth is not None, "a prediction keeps its depth image until it is written"
    corners = prediction.reference_mm + (UNIT_CORNERS - 0.5) * prediction.cube_mm
    _, (left, top, right, bottom) = project_cube(corners, np.array(prediction.camera), prediction.depth.shape)
    factor = max(1, _WIDTH_PX // max(right - left, bottom - top))
    depth = prediction.depth[top:bottom, left:right].repeat(factor, axis=0).repeat(factor, axis=1)
    shift = np.array([0.5, 0.5]) - (left, top)  # pixel centres are at integers
    camera = np.concatenate([prediction.camera[:2], np.array(prediction.camera[2:]) + shift]) * factor
    camera[2:] -= 0.5
    is_near = (np.abs(prediction.joints_px) < _MAX_PX).all(axis=1)
    joints = JointFigure("joints", prediction.joints_mm, is_near, prediction.bones, READ)
    is_inside = np.abs(depth - prediction.reference_mm[2]) <= prediction.cube_mm / 2
    cube, _ = project_cube(corners, camera, depth.shape)
    return depth_panel("prediction", depth, camera, [joints], is_inside=is_inside, cube=cube).pixels


@registry.predictors.add("centre")
class CentrePredictor(Predictor[Any]):
    """Refusal of a run of the task `centre`, which refines the reference points of another run. Source: made here."""

    def __init__(self, *, run: TrainedRun) -> None:
        raise UserError(
            f"{run.path}: refines reference points; give it as refiner={run.path} to a run of the task pose"
        )


def _search(*, reference: Literal["centre_of_mass", "previous"] = "centre_of_mass", refiner: str | None = None) -> None:
    """Signature of the arguments about reference points: how they are searched, and the path of the refiner."""
