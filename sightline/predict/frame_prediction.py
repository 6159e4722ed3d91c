"""Joints in depth images of one's own: read, centred, transformed as for evaluation, answered; each stage timed."""

from __future__ import annotations

import dataclasses
import inspect
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sightline import registry
from sightline.data.depth.references import CentreOfMass
from sightline.data.loading.reading import NamedTransform
from sightline.engine.distributed import World
from sightline.engine.loading import TrainedRun
from sightline.errors import ConfigError, UserError
from sightline.members import TaskMembers, TransformMembers
from sightline.predict.answers import Predictions, Refusal
from sightline.predict.applied import AppliedRun
from sightline.predict.frame_centres import Centres, MassCentres, PreviousCentres, RefinedCentres, StoredCentres
from sightline.predict.grouping import Waiting, answer_each
from sightline.predict.joint_answers import JointAnswers, JointPrediction, ReadFrame
from sightline.predict.own_frames import DEPTH_SUFFIXES, FrameReader, OwnFrames
from sightline.predict.prediction import files_of
from sightline.runs.inputs import read_inputs
from sightline.types import Batch, DataInfo, Sample

__all__ = ["answers_joints", "centre_of_mass_of", "predict_depth_files", "predict_frames", "refines_centres"]

_INPUTS = ("depth", "camera", "reference")
"""What a sample of a file has: no labels."""


def answers_joints(run: TrainedRun) -> bool:
    """Whether a run says where the joints of a figure are."""
    return "joints_mm" in _predicted(run)


def refines_centres(run: TrainedRun) -> bool:
    """Whether a run moves reference points to where they should be."""
    return "centre_mm" in _predicted(run)


def predict_depth_files(
    run: TrainedRun, paths: Sequence[Path], *, own: OwnFrames, world: World, batch_size: int | None = None
) -> Predictions[JointPrediction]:
    """The answer to each depth image, all of them in memory, without their depths; `paths` may be folders.

    Errors are those of `predict_frames`.
    """
    files, refused = files_of(paths, suffixes=DEPTH_SUFFIXES)
    predicted: dict[Path, JointPrediction] = {}
    refusals: dict[Path, Refusal] = {}
    for path, answer in predict_frames(run, files, own=own, world=world, batch_size=batch_size):
        if isinstance(answer, Refusal):
            refusals[path] = answer
        else:
            predicted[path] = answer.without_depth()
    refused += [refusals[path] for path in files if path in refusals]
    return Predictions(tuple(predicted[path] for path in files if path in predicted), tuple(refused))


def predict_frames(
    run: TrainedRun,
    files: Sequence[Path],
    *,
    own: OwnFrames,
    world: World | None = None,
    batch_size: int | None = None,
) -> Iterator[tuple[Path, JointPrediction | Refusal]]:
    """Depth images and their answers as they come, by the run's own evaluation transforms and weights; no votes.

    A file's answer does not depend on the others, but where `own.follows` the one before; then frames go through the
    network one by one, in the order given. A file that is damaged, or in which there is nothing, is refused with its
    reason, and the others go on. `batch_size` is that of evaluation where it is None.
    Raises UserError for a run whose camera is not known, for a refiner that is none, and for a file of reference points
    that does not fit; ConfigError for a run that gives no joints.
    """
    if not answers_joints(run):
        raise ConfigError(
            f"{run.path}: the task '{run.config.task.name}' predicts no joints; give a run of the task pose"
        )
    world = world or World()
    reader = FrameReader(run, own)
    centres = _centres(run, reader, own, files, world)
    predictor = _FramePredictor(run, reader, centres, world)
    waiting = Waiting[ReadFrame](
        1 if centres.is_sequential else batch_size or run.config.evaluate.batch_size,
        kind_of=lambda frame: frame.depth.shape,
        size_of=lambda frame: 0,  # frames that wait are as many as are answered together
        most_at_once=1,
        most_batches=1,
    )
    try:
        yield from answer_each(files, predictor, waiting)
    finally:
        for used in (run, own.refiner):
            if used is not None:
                used.model.cpu()  # where a loaded run promises it to be


def centre_of_mass_of(run: TrainedRun) -> CentreOfMass:
    """How a run's set finds its centres of mass; the usual way where its reference points are others."""
    blocks = registry.blocks_of(run.config.data, "reference") if "reference" in run.config.data.arguments else []
    own = [block for block in blocks if block.name == "centre_of_mass"]
    found: CentreOfMass = registry.references.build(own[0], facts={}) if own else CentreOfMass()
    return found


class _FramePredictor:
    """Reads frames, and answers for groups of them."""

    def __init__(self, run: TrainedRun, reader: FrameReader, centres: Centres, world: World) -> None:
        self._reader = reader
        self._centres = centres
        self._applied = _applied(run, world)
        self._answers = JointAnswers(run, reader)
        self._world = world
        self._is_warm = False

    def read(self, path: Path) -> ReadFrame:
        """Raises DataError for a file that cannot be predicted."""
        laps = _Laps(self._world)
        depth = self._reader.read(path)
        laps.end("read")
        centre = self._centres(path, depth)
        laps.end("centre")
        return ReadFrame(path, depth, centre, laps.ms)

    def __call__(self, frames: Sequence[ReadFrame]) -> dict[Path, Any | Refusal]:
        """The answer to each frame; where the model refuses several at once, each is asked for alone."""
        try:
            if not self._is_warm:  # the first pass loads and compiles; timed, it would be all that one sees
                self._predict(frames[:1], _Laps(self._world))
                self._is_warm = True
            laps = _Laps(self._world)
            predictions = self._predict(frames, laps)
        except (UserError, ValueError, MemoryError) as error:
            if len(frames) > 1:
                return {path: answer for frame in frames for path, answer in self([frame]).items()}
            path, told = frames[0].path, " ".join(str(error).split())
            return {path: Refusal(path, f"{path}: the model takes no such frame: {told}")}
        answers = self._answers(frames, predictions, laps.ms)
        if self._centres.is_sequential:
            self._centres.note(*(predictions[name][0].double().cpu().numpy() for name in ("joints_mm", "peaks")))
        return answers

    def _predict(self, frames: Sequence[ReadFrame], laps: _Laps) -> Mapping[str, Any]:
        """What the task says of these frames, by its own two steps, so that they can be timed."""
        applied = self._applied
        samples = [_sample(frame.depth, self._reader.camera, frame.centre.point_mm) for frame in frames]
        seen = applied.seen(applied.read([frame.path for frame in frames], samples))
        laps.end("voxelise")
        with torch.no_grad(), applied.autocast():
            outputs = applied.task.outputs(applied.model, seen)
            laps.end("network")
            predictions: Mapping[str, Any] = applied.task.interpret(outputs, seen)
        laps.end("decode")
        return predictions


class _Laps:
    """Milliseconds of stages that follow one another, the GPU's work in them included."""

    def __init__(self, world: World) -> None:
        self.ms: dict[str, float] = {}
        self._is_gpu = world.device.type == "cuda"
        self._at = time.perf_counter_ns()

    def end(self, stage: str) -> None:
        """The stage that ended now."""
        if self._is_gpu:
            torch.cuda.synchronize()
        now = time.perf_counter_ns()
        self.ms[stage] = (now - self._at) / 1e6
        self._at = now


def _predicted(run: TrainedRun) -> frozenset[str]:
    return TaskMembers.predicts.of(registry.tasks.entry(run.config.task).builder)


def _centres(run: TrainedRun, reader: FrameReader, own: OwnFrames, files: Sequence[Path], world: World) -> Centres:
    """Where figures are looked for, as the user wants it."""
    refine = None if own.refiner is None else _Refiner(own.refiner, reader, own, world)
    found_by = own.refiner or run
    cube_mm = float(found_by.facts["cube_mm"])
    mass = MassCentres(own.centre_of_mass or centre_of_mass_of(found_by), reader.camera, cube_mm=cube_mm)
    if own.centres is not None:
        return StoredCentres(own.centres, files, mass, camera=reader.camera, cube_mm=cube_mm, turned=reader.turned)
    start: Centres = PreviousCentres(mass) if own.follows else mass
    return start if refine is None else RefinedCentres(start, refine)


class _Refiner:
    """A run of the task `centre` on one frame at a time; points are those of the frame of another run."""

    def __init__(self, run: TrainedRun, other: FrameReader, own: OwnFrames, world: World) -> None:
        if not refines_centres(run):
            raise ConfigError(
                f"--refiner {run.path}: the task '{run.config.task.name}' finds no centres; give a run of the task "
                "centre"
            )
        fx, fy, u0, v0 = other.own_camera.tolist()
        self._applied = _applied(run, world)
        self._reader = FrameReader(run, dataclasses.replace(own, intrinsics=(fx, fy, u0, v0)))
        self._other = other

    def __call__(self, path: Path, depth: np.ndarray, point_mm: np.ndarray) -> np.ndarray:
        here = self._reader.turned(self._other.turned(point_mm))  # by way of the user's frame
        batch: Batch = self._applied.read([path], [_sample(depth, self._reader.camera, here)])
        found = self._applied.predict(self._applied.seen(batch))["centre_mm"][0].double().cpu().numpy()
        moved: np.ndarray = self._other.turned(self._reader.turned(found))
        return moved


def _sample(depth: np.ndarray, camera: np.ndarray, point_mm: np.ndarray) -> Sample:
    return {"depth": depth, "camera": camera, "reference": point_mm.astype(np.float32)}


def _applied(run: TrainedRun, world: World) -> AppliedRun:
    info = read_inputs(run.path, run.config)
    missing = [name for name in _INPUTS if name not in info.fields]
    if missing:
        raise ConfigError(
            f"{run.path}: was trained on {', '.join(info.fields)}, without {', '.join(missing)}; not on depth images"
        )
    return AppliedRun(
        run,
        info,
        world,
        fields={name: info.fields[name] for name in _INPUTS},
        told="a depth image",
        transforms=_unlabelled(run.transforms, info),
    )


def _unlabelled(transforms: Sequence[NamedTransform], info: DataInfo) -> list[NamedTransform]:
    """The transforms but those that draw targets: they need labels, and all that they give is added.

    One that needs labels and adds nothing changes what the network sees by them, and is left for the error.
    """
    labels = info.fields.keys() - set(_INPUTS)
    return [
        each
        for each in transforms
        if not (
            labels & inspect.signature(each.apply.__call__).parameters.keys() and TransformMembers.adds.of(each.apply)
        )
    ]
