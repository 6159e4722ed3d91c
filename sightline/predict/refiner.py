"""Depth runs applied to single frames: a refiner moves a reference point to where the middle joint of a figure is."""

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
    "centre_of_mass_of",
    "frame_sample",
    "without_target_transforms",
]

INPUTS = ("depth", "camera", "reference")
"""The fields of a frame's sample: no labels."""


def assert_refiner(run: TrainedRun) -> None:
    """Raises ConfigError for a run that does not refine reference points."""
    if "centre_mm" not in TaskMembers.predicts.get(registry.tasks.entry(run.config.task).builder):
        raise ConfigError(
            f"{run.path}: the task '{run.config.task.name}' finds no centres; give a run of the task centre"
        )


def assert_depth_run(run: TrainedRun, info: DataInfo) -> None:
    """Raises ConfigError for a run that was not trained on depth images."""
    missing = [name for name in INPUTS if name not in info.fields]
    if missing:
        raise ConfigError(
            f"{run.path}: was trained on {', '.join(info.fields)}, without {', '.join(missing)}; not on depth images"
        )


def centre_of_mass_of(run: TrainedRun) -> CentreOfMass:
    """How a run's set finds its centres of mass; the usual way where its reference points are others."""
    blocks = registry.nested_blocks(run.config.data, "reference") if "reference" in run.config.data.arguments else []
    own = [block for block in blocks if block.name == "centre_of_mass"]
    found: CentreOfMass = registry.references.build(own[0], facts={}) if own else CentreOfMass()
    return found


class Refiner:
    """A run of the task `centre` on one frame at a time; points are those of the frame of another run."""

    def __init__(self, run: TrainedRun, other: FrameReader, own: DepthFrameOptions, world: World) -> None:
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
        self._reader = FrameReader(run, dataclasses.replace(own, intrinsics=(fx, fy, u0, v0)))
        self._other = other

    def __call__(self, path: Path, depth: np.ndarray, point_mm: np.ndarray) -> np.ndarray:
        here = self._reader.turned(self._other.turned(point_mm))  # by way of the user's frame
        batch: Batch = self._pipeline.make_batch([path], [frame_sample(depth, self._reader.camera, here)])
        found = self._pipeline.predict(self._pipeline.model_inputs(batch))["centre_mm"][0].double().cpu().numpy()
        moved: np.ndarray = self._other.turned(self._reader.turned(found))
        return moved


def frame_sample(depth: np.ndarray, camera: np.ndarray, point_mm: np.ndarray) -> Sample:
    """A frame as a sample of a depth run."""
    return {"depth": depth, "camera": camera, "reference": point_mm.astype(np.float32)}


def without_target_transforms(transforms: Sequence[NamedTransform], info: DataInfo) -> list[NamedTransform]:
    """The transforms but those that draw targets: they need labels, and all that they give is added.

    One that needs labels and adds nothing changes what the network sees by them, and is left for the error.
    """
    labels = info.fields.keys() - set(INPUTS)

    def draws_targets(each: NamedTransform) -> bool:
        needs_labels = labels & inspect.signature(each.apply.__call__).parameters.keys()
        return bool(needs_labels and TransformMembers.adds.get(each.apply))

    return [each for each in transforms if not draws_targets(each)]
