"""Refinement of reference points: a run of the task `centre` applied to single frames."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sightline import registry
from sightline.data.depth.references import CentreOfMass
from sightline.data.loading.batch_reader import NamedTransform
from sightline.engine.distributed import World
from sightline.engine.run_loading import TrainedRun
from sightline.errors import ConfigError
from sightline.optional_members import TaskMembers, TransformMembers
from sightline.predict.depth_reader import DepthFrameOptions, FrameReader
from sightline.predict.inference import InferencePipeline
from sightline.runs.inputs import read_inputs
from sightline.types import Batch, DataInfo, Sample

__all__ = [
    "INPUTS",
    "Refiner",
    "assert_depth_run",
    "assert_refiner",
    "frame_sample",
    "get_centre_of_mass",
    "without_target_transforms",
]

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
    blocks = registry.nested_blocks(run.config.data, "reference") if "reference" in run.config.data.arguments else []
    matches = [block for block in blocks if block.name == "centre_of_mass"]
    settings: CentreOfMass = registry.references.build(matches[0], facts={}) if matches else CentreOfMass()
    return settings


class Refiner:
    """Run of the task `centre` on one frame at a time; points are in the frame of another run."""

    def __init__(self, run: TrainedRun, other: FrameReader, options: DepthFrameOptions, world: World) -> None:
        assert_refiner(run)
        info = read_inputs(run.path, run.config)
        assert_depth_run(run, info)
        fx, fy, u0, v0 = other.own_camera.tolist()
        self._pipeline = InferencePipeline(
            run,
            info,
            world,
            fields={name: info.fields[name] for name in INPUTS},
            source="a depth image",
            transforms=without_target_transforms(run.transforms, info),
        )
        self._reader = FrameReader(run, dataclasses.replace(options, intrinsics=(fx, fy, u0, v0)))
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
