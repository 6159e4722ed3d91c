"""Predictor of the task `pose`: joints in depth images of any camera, in mm and in pixels, with peaks and a picture."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sightline.areas.pose.centres import (
    INPUTS,
    Refiner,
    assert_depth_run,
    frame_sample,
    get_centre_of_mass,
    without_target_transforms,
)
from sightline.areas.pose.depth_files import DEPTH_KINDS, check_marks, read_depth
from sightline.areas.pose.pictures import UNIT_CORNERS, project_cube
from sightline.areas.pose.sets.depth_frames import CentreOfMass, DepthCamera
from sightline.areas.pose.task import MIN_PEAK
from sightline.config.key_values import read_key_values
from sightline.contract import registry
from sightline.contract.arguments import PositiveFloat, PositiveFraction
from sightline.contract.errors import ConfigError, DataError, UserError
from sightline.draw.pictures import PALETTE, draw_legend, encode_png
from sightline.engine.distributed import World
from sightline.engine.run_loading import TrainedRun, open_trained
from sightline.ops.views.pinhole import project_points
from sightline.store.loading.transform_pipeline import NamedTransform
from sightline.view.panels import depth_panel
from sightline.view.skeletons import READ, JointFigure
from sightline.workbench.predict.predictor import (
    CommandLine,
    Inference,
    Predictor,
    ReadFile,
    Refusal,
    refuse_non_finite,
    report_write_errors,
)

_PICTURE = ".pose.png"
_WIDTH_PX = 640
_PAPER = np.array([252, 252, 252], dtype=np.uint8)
_MAX_PX = 1e4
"""Columns and rows of joints that are drawn."""
_COORDINATES = ("x_mm", "y_mm", "z_mm", "u_px", "v_px", "peak")


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

    The reference point is the centre of mass, computed as `centre_of_mass` states (default: as in the run). A
    `refiner`, a run of the task `centre`, moves the point to the figure's middle joint. Joints with a peak below
    `min_peak` are drawn hollow, as not found.
    """

    camera: CameraOptions = field(default_factory=CameraOptions)
    centre_of_mass: CentreOfMass | None = None
    refiner: TrainedRun | None = None
    min_peak: PositiveFraction = MIN_PEAK


@dataclass(frozen=True, eq=False)
class JointPrediction:
    """Predicted joints of one depth image.

    `joints_mm` (J, 3) float64 and `reference_mm` (3,) are in the frame of the image's `camera` (fx, fy, u0, v0), whose
    Y points up if fy is negative. `joints_px` (J, 2) are columns and rows. `peaks` (J,) are the largest values of
    the joints' heat maps: 1 for a confident prediction, near 0 for a dead map. `reference` names the source of the
    reference point, `treatment` describes what was done to the frame. `depth` (H, W) is kept while predictions come one
    by one. Joints with a peak below `min_peak` count as not found.
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
    depth: np.ndarray | None = None
    min_peak: float = MIN_PEAK


@registry.predictors.add("pose")
class PosePredictor(Predictor[JointPrediction]):
    """Predictor of a `JointPrediction` per depth image, from the `joints_mm` and `peaks` of the task.

    `frames` states how the images are read, and where the figure is searched. The run sees them in its own frame, in
    which Y points as in its set. Raises UserError for a run whose camera is unknown; ConfigError for a run that was not
    trained on depth images, or whose set does not name its joints, and for a refiner of another task.
    Source: made here.
    """

    reads = frozenset({"joints_mm", "peaks"})
    suffixes = tuple(DEPTH_KINDS)
    endings = (_PICTURE,)
    noun = "frame"
    columns = ("file", "looked for about", "joints found", "mean peak")

    def __init__(self, *, run: TrainedRun, world: World, frames: DepthFrameOptions | None = None) -> None:
        super().__init__(run=run)
        assert_depth_run(run, self.info)
        missing = [name for name in ("joint_names", "bones", "cube_mm") if name not in run.facts]
        if missing:
            raise ConfigError(f"{run.path}: its data set states no {', '.join(missing)}; predict needs them for joints")
        self._options = frames or DepthFrameOptions()
        self._world = world
        self._trained = _load_camera(run)
        own_intrinsics = self._options.camera.intrinsics
        self._own_camera = self._trained.intrinsics if own_intrinsics is None else own_intrinsics
        self._turn = np.array([1.0, np.sign(self._trained.fy * self._own_camera[1]), 1.0])
        self._camera = self._own_camera * [*self._turn, 1.0]
        self.fields = {name: self.info.fields[name] for name in INPUTS}
        self._names = tuple(run.facts["joint_names"])
        self._bones = tuple((int(first), int(second)) for first, second in run.facts["bones"])
        self._cube_mm = float(run.facts["cube_mm"])
        self._treatment = "as it is"
        if self._turn[1] < 0:
            direction, trained = ("down", "up") if self._own_camera[1] > 0 else ("up", "down")
            self._treatment = f"Y points {direction}, in the run {trained}: turned for the run, and back"

    @classmethod
    def options(cls, run: TrainedRun, line: CommandLine) -> dict[str, Any]:
        """Parse `frames` from the arguments `camera.*`, `reference.*`, `refiner` and `min_peak`."""
        arguments: dict[str, list[str]] = {"camera.": [], "reference.": [], "": []}
        for argument in line.key_values:
            key = argument.partition("=")[0].strip()
            prefix = "" if key in ("refiner", "min_peak") else f"{key.partition('.')[0]}."
            if prefix not in arguments:
                allowed = "camera.*, reference.*, refiner and min_peak"
                raise UserError(f"predict: found {argument!r}, allowed is key=value with {allowed}")
            arguments[prefix].append(argument)
        camera, mass, search = (
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
            refiner=open_trained(search["refiner"], plugins=line.plugins) if "refiner" in search else None,
            min_peak=search.get("min_peak", MIN_PEAK),
        )
        return {"frames": frames}

    def start(self, files: Sequence[Path]) -> None:
        """Make the finder of reference points."""
        refiner = self._options.refiner
        self._mass = self._options.centre_of_mass or get_centre_of_mass(refiner or self.run)
        self._refine = None if refiner is None else Refiner(refiner, self._camera, self._world)

    def close(self) -> None:
        """Move the refiner back to the CPU."""
        if self._options.refiner is not None:
            self._options.refiner.model.cpu()  # a loaded run keeps its model on the CPU

    def transforms(self) -> Sequence[NamedTransform]:
        """Return the run's evaluation transforms without those that draw targets, which need labels."""
        return without_target_transforms(self.run.transforms, self.info)

    def read(self, path: Path) -> ReadFile:
        """Read the depths, the camera and the reference point of a frame; `source` is the point."""
        width, height = self._trained.size_px
        camera = self._options.camera
        depth = read_depth(path, mm_per_unit=camera.mm_per_unit, no_return=camera.no_return)
        check_marks(depth, path, mm_per_unit=camera.mm_per_unit)
        if camera.intrinsics is None and depth.shape != (height, width):
            raise DataError(
                f"{path}: the image is {depth.shape[1]} x {depth.shape[0]} pixels, those of the run's camera are "
                f"{width} x {height}; give this camera's own camera.fx=, camera.fy=, camera.u0= and camera.v0="
            )
        point = self._locate(path, depth)
        return ReadFile(path, frame_sample(depth, self._camera, point), point)

    def _locate(self, path: Path, depth: np.ndarray) -> np.ndarray:
        """Locate the reference point (3,) of a frame in mm, in the run's frame. Raises DataError if there is none."""
        near, far = self._mass.near_mm, self._mass.far_mm
        cube_mm = float((self._options.refiner or self.run).facts["cube_mm"])
        point = self._mass.locate(depth, self._camera, cube_mm=cube_mm)
        if point is None:
            reach = f" between {near:g} and {far:g} mm" if far is not None else f" beyond {near:g} mm" if near else ""
            raise DataError(
                f"{path}: has no measured pixel{reach}, so that there is no figure in it; give another image, or other "
                "reference.near_mm= and reference.far_mm="
            )
        return point if self._refine is None else self._refine(self.draw_name(path), depth, point)

    def predict(self, files: Sequence[ReadFile], inference: Inference) -> list[JointPrediction | Refusal]:
        """Make the prediction of each frame."""
        joints, peaks = (inference.predictions[name].double().cpu().numpy() for name in ("joints_mm", "peaks"))
        return [
            self._make_prediction(file, joints_mm, joint_peaks)
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
        }

    def row(self, document: Mapping[str, Any]) -> Sequence[Any]:
        """Return file, reference, how many joints have a peak of `min_peak` or more, and the mean peak."""
        peaks = np.array(document["peaks"])
        found = f"{int((peaks >= self._options.min_peak).sum())} of {len(peaks)}"
        return [document["file"], document["reference"], found, float(peaks.mean())]

    def csv_cells(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Return the coordinates and peaks of every joint, and the reference point."""
        peaks = np.array(document["peaks"])[:, None]
        joints = np.concatenate([document["joints_mm"], document["joints_px"], peaks], axis=1)
        names = [f"{name} {coordinate}" for name in self._names for coordinate in _COORDINATES]
        reference = zip(("x_mm", "y_mm", "z_mm"), document["reference_mm"], strict=True)
        return {
            **super().csv_cells(document),
            **{f"reference {axis}": value for axis, value in reference},
            **dict(zip(names, joints.ravel().tolist(), strict=True)),
        }

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
        notes = []
        if self._options.camera.intrinsics is None:
            fx, fy, u0, v0 = (f"{value:g}" for value in self._own_camera)
            notes.append(
                f"no camera.* is given: frames of {self._trained.width_px} x {self._trained.height_px} pixels are "
                f"taken for those of the run's camera, fx {fx}, fy {fy}, u0 {u0}, v0 {v0}; another needs its own "
                "camera.fx=, camera.fy=, camera.u0=, camera.v0="
            )
        trained, is_refined = str(self.run.facts.get("reference_source", "")), self._options.refiner is not None
        if trained and (trained == "centre_of_mass") == is_refined:
            point = "where a refiner puts the middle joint" if is_refined else "the centre of mass"
            notes.append(
                f"the run was trained about reference points of '{trained}', not {point}: its predictions may be worse"
            )
        return notes

    def _make_prediction(self, file: ReadFile, joints: np.ndarray, peaks: np.ndarray) -> JointPrediction | Refusal:
        if not (np.isfinite(joints).all() and np.isfinite(peaks).all()):
            return refuse_non_finite(file.path)
        joints_mm = joints * self._turn
        return JointPrediction(
            file=file.path,
            joints_mm=joints_mm,
            joints_px=project_points(joints_mm, self._own_camera)[:, :2],
            peaks=peaks,
            joint_names=self._names,
            bones=self._bones,
            reference_mm=file.source * self._turn,
            reference="centre of mass" if self._refine is None else "centre of mass, refined",
            camera=tuple(self._own_camera.tolist()),
            cube_mm=self._cube_mm,
            treatment=self._treatment,
            depth=np.asarray(file.sample["depth"]),
            min_peak=self._options.min_peak,
        )


def _load_camera(run: TrainedRun) -> DepthCamera:
    """Load the camera of the set that a run was trained on. Raises UserError if the run does not record it."""
    size, intrinsics = run.facts.get("image_size_px"), run.facts.get("camera_px")
    if size is None or intrinsics is None:
        raise UserError(f"{run.path}: does not record its camera and the size of its images; make the run again")
    return DepthCamera(*intrinsics, *size)


def draw_pose(prediction: JointPrediction) -> np.ndarray:
    """Draw the joints of a prediction and its cube over the part of the depth image that shows the cube.

    Joints with a peak below the prediction's `min_peak` are hollow; names of joints and, if there are hollow ones, that
    peak are written below.
    """
    assert prediction.depth is not None, "a prediction keeps its depth image until it is written"
    corners = prediction.reference_mm + (UNIT_CORNERS - 0.5) * prediction.cube_mm
    _, (left, top, right, bottom) = project_cube(corners, np.array(prediction.camera), prediction.depth.shape)
    factor = max(1, _WIDTH_PX // max(right - left, bottom - top))
    depth = prediction.depth[top:bottom, left:right].repeat(factor, axis=0).repeat(factor, axis=1)
    shift = np.array([0.5, 0.5]) - (left, top)  # pixel centres are at integers
    camera = np.concatenate([prediction.camera[:2], np.array(prediction.camera[2:]) + shift]) * factor
    camera[2:] -= 0.5
    is_near = (np.abs(prediction.joints_px) < _MAX_PX).all(axis=1)
    is_sure = prediction.peaks >= prediction.min_peak
    joints = JointFigure("joints", prediction.joints_mm, is_near, prediction.bones, READ, is_sure=is_sure)
    is_inside = np.abs(depth - prediction.reference_mm[2]) <= prediction.cube_mm / 2
    cube, _ = project_cube(corners, camera, depth.shape)
    pixels = depth_panel("prediction", depth, camera, [joints], is_inside=is_inside, cube=cube).pixels
    names = [(name, PALETTE[joint % len(PALETTE)]) for joint, name in enumerate(prediction.joint_names)]
    legend = [*names, *([] if is_sure.all() else [(f"hollow: not found, peak below {prediction.min_peak:g}", _PAPER)])]
    return np.concatenate([pixels, draw_legend(legend, pixels.shape[1])])


@registry.predictors.add("centre")
class CentrePredictor(Predictor[Any]):
    """Refusal of a run of the task `centre`, which refines the reference points of another run. Source: made here."""

    def __init__(self, *, run: TrainedRun) -> None:
        raise UserError(
            f"{run.path}: refines reference points; give it as refiner={run.path} to a run of the task pose"
        )


def _search(*, refiner: str | None = None, min_peak: PositiveFraction = MIN_PEAK) -> None:
    """Signature of further arguments: the path of the refiner, and the peak below which joints are drawn hollow."""
