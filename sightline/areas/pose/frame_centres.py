"""Reference points for depth images of the user's own camera: centre of mass, tracking, refiner."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sightline.areas.pose.depth_reader import DepthFrameOptions, FrameReader
from sightline.areas.pose.sets.references import CentreOfMass
from sightline.contract import registry
from sightline.contract.errors import ConfigError, DataError
from sightline.contract.members import TaskMembers, TransformMembers
from sightline.contract.types import Batch, DataInfo, Sample
from sightline.engine.distributed import World
from sightline.engine.run_loading import TrainedRun
from sightline.store.loading.batch_reader import NamedTransform
from sightline.workbench.predict.prediction import InferencePipeline

_DEAD_PEAK = 0.1
"""Heat-map peak below which a map carries no information; that of a target is 1."""


class FrameCentre(NamedTuple):
    """Reference point (3,) in mm in the run's frame, and a description of its source."""

    point_mm: np.ndarray
    source: str


class CentreFinder:
    """Finder of the reference point of each frame, of frames in order.

    It is the centre of mass. With `tracks_previous` it is searched in the cube about the joints of the previous frame;
    the first frame, and a frame after a lost prediction, gets that of the whole image. A prediction is lost if at least
    half of its maps have no peak, or if nothing is measured near it any more. `refine` maps path, depths and point (3,)
    to the final point.
    """

    def __init__(
        self,
        settings: CentreOfMass,
        camera: np.ndarray,
        *,
        cube_mm: float,
        tracks_previous: bool = False,
        refine: Callable[[Path, np.ndarray, np.ndarray], np.ndarray] | None = None,
    ) -> None:
        self._settings = settings
        self._locate = partial(settings.locate, camera=camera, cube_mm=cube_mm)
        self._tracks_previous = tracks_previous
        self._refine = refine
        self._joints: np.ndarray | None = None
        self._lost = "first frame"

    def __call__(self, path: Path, depth: np.ndarray) -> FrameCentre:
        """Find the reference point of a frame. Raises DataError if there is none."""
        centre = self._find(path, depth)
        if self._refine is None:
            return centre
        return FrameCentre(self._refine(path, depth, centre.point_mm), f"{centre.source}, refined")

    def update(self, joints_mm: np.ndarray, peaks: np.ndarray) -> None:
        """Take the prediction for the last frame: joints (J, 3) in mm in the run's frame, heat-map peaks (J,)."""
        num_dead = int((peaks < _DEAD_PEAK).sum())
        is_lost = 2 * num_dead >= len(peaks)
        self._joints = None if is_lost else joints_mm
        if is_lost:
            self._lost = f"previous prediction lost: {num_dead} of {len(peaks)} peaks below {_DEAD_PEAK:g}"

    def _find(self, path: Path, depth: np.ndarray) -> FrameCentre:
        reason = ""
        if self._tracks_previous:
            if self._joints is not None:
                point = self._locate(depth, start=self._joints.mean(axis=0))
                if point is not None:
                    return FrameCentre(point, "previous frame")
                self._lost = "previous prediction lost: no measured pixel near it"
            reason = f" ({self._lost})"
        point = self._locate(depth)
        if point is None:
            near, far = self._settings.near_mm, self._settings.far_mm
            reach = f" between {near:g} and {far:g} mm" if far is not None else f" beyond {near:g} mm" if near else ""
            raise DataError(
                f"{path}: has no measured pixel{reach}, so that there is no figure in it; give another image, or other "
                "reference.near_mm= and reference.far_mm="
            )
        return FrameCentre(point, f"centre of mass{reason}")


def make_centre_finder(run: TrainedRun, reader: FrameReader, options: DepthFrameOptions, world: World) -> CentreFinder:
    """Make the finder of reference points that `options` state, in the frame of `run`."""
    source_run = options.refiner or run
    return CentreFinder(
        options.centre_of_mass or get_centre_of_mass(source_run),
        reader.camera,
        cube_mm=float(source_run.facts["cube_mm"]),
        tracks_previous=options.tracks_previous,
        refine=None if options.refiner is None else Refiner(options.refiner, reader, options, world),
    )


INPUTS = ("depth", "camera", "reference")
"""Fields of a frame's sample, without labels."""


def assert_refiner(run: TrainedRun) -> None:
    """Raise ConfigError for a run that does not refine reference points."""
    if "centre_mm" not in TaskMembers.predicts.get(registry.tasks.entry(run.config.task).builder):
        raise ConfigError(
            f"{run.path}: the task '{run.config.task.name}' predicts no centres; give a run of the task centre"
        )


def assert_depth_run(run: TrainedRun, info: DataInfo) -> None:
    """Raise ConfigError for a run that was not trained on depth images."""
    missing = [name for name in INPUTS if name not in info.fields]
    if missing:
        raise ConfigError(
            f"{run.path}: was trained on {', '.join(info.fields)}, without {', '.join(missing)}; not on depth images"
        )


def get_centre_of_mass(run: TrainedRun) -> CentreOfMass:
    """Return the centre-of-mass settings of a run's set; the defaults if it uses other reference points."""
    for block in registry.data.bind(run.config.data).blocks.get("reference", ()):
        if block.entry.name == "centre_of_mass":
            settings: CentreOfMass = block.build(facts={})
            return settings
    return CentreOfMass()


class Refiner:
    """Run of the task `centre` on one frame at a time; points are in the frame of another run."""

    def __init__(self, run: TrainedRun, other: FrameReader, options: DepthFrameOptions, world: World) -> None:
        assert_refiner(run)
        info = run.files.inputs
        assert_depth_run(run, info)
        fx, fy, u0, v0 = other.own_camera.tolist()
        camera = dataclasses.replace(options.camera, fx=fx, fy=fy, u0=u0, v0=v0)
        self._pipeline = InferencePipeline(
            run,
            info,
            world,
            fields={name: info.fields[name] for name in INPUTS},
            source="a depth image",
            transforms=without_target_transforms(run.transforms, info),
        )
        self._reader = FrameReader(run, dataclasses.replace(options, camera=camera))
        self._other = other

    def __call__(self, path: Path, depth: np.ndarray, point_mm: np.ndarray) -> np.ndarray:
        start = self._reader.flip_y(self._other.flip_y(point_mm))  # via the user's frame
        batch: Batch = self._pipeline.make_batch([path], [frame_sample(depth, self._reader.camera, start)])
        centre = self._pipeline.predict(self._pipeline.model_inputs(batch))["centre_mm"][0].double().cpu().numpy()
        refined: np.ndarray = self._other.flip_y(self._reader.flip_y(centre))
        return refined


def frame_sample(depth: np.ndarray, camera: np.ndarray, point_mm: np.ndarray) -> Sample:
    """Make the sample of a frame for a depth run."""
    return {"depth": depth, "camera": camera, "reference": point_mm.astype(np.float32)}


def without_target_transforms(transforms: Sequence[NamedTransform], info: DataInfo) -> list[NamedTransform]:
    """Return the transforms without those that draw targets: these need labels, and only add fields.

    A transform that needs labels and adds nothing changes the network's input by them, and stays, to raise an error.
    """
    labels = info.fields.keys() - set(INPUTS)

    def draws_targets(transform: NamedTransform) -> bool:
        needs_labels = labels & inspect.signature(transform.apply.__call__).parameters.keys()
        return bool(needs_labels and TransformMembers.adds.get(transform.apply))

    return [transform for transform in transforms if not draws_targets(transform)]
