"""Reference points for depth images of the user's own camera: centre of mass, tracking, files, refiner.

Reference points of a data set, predicted by a refiner and written as files of V2V-PoseNet's format.

Refinement of reference points: a run of the task `centre` applied to single frames.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from sightline.areas.pose.depth_reader import DepthFrameOptions, FrameReader
from sightline.areas.pose.sets.depth_frames import DepthFrames
from sightline.areas.pose.sets.references import CentreOfMass, DepthFrame, FrameOrder, NoCentreError, ReferencePointFile
from sightline.config import RunConfig
from sightline.contract import registry
from sightline.contract.errors import ConfigError, DataError, UserError
from sightline.contract.members import TaskMembers, TransformMembers
from sightline.contract.types import Batch, ComponentConfig, DataInfo, Sample, SampleKey
from sightline.engine.distributed import World
from sightline.engine.run_loading import TrainedRun
from sightline.store.loading.batch_reader import BatchReader, NamedTransform
from sightline.workbench.predict.prediction import InferencePipeline

_DEAD_PEAK = 0.1
"""Heat-map peak below which a map carries no information; that of a target is 1."""


class FrameCentre(NamedTuple):
    """Reference point (3,) in mm in the run's frame, and a description of its source."""

    point_mm: np.ndarray
    source: str


class CentreFinder(Protocol):
    """Callable that finds the reference point of each frame.

    `is_sequential` is true if the point depends on the prediction for the previous frame.
    """

    is_sequential: bool

    def __call__(self, path: Path, depth: np.ndarray) -> FrameCentre:
        """Find the reference point of a frame. Raises DataError if there is none."""
        ...

    def update(self, joints_mm: np.ndarray, peaks: np.ndarray) -> None:
        """Take the prediction for the last frame: joints (J, 3) in mm in the run's frame, heat-map peaks (J,)."""
        ...


class CentreOfMassFinder:
    """Centre of mass of the measured pixels, refined by re-cropping."""

    is_sequential = False

    def __init__(self, settings: CentreOfMass, camera: np.ndarray, *, cube_mm: float) -> None:
        self._settings = settings
        self._camera = camera
        self._cube_mm = cube_mm

    def __call__(self, path: Path, depth: np.ndarray) -> FrameCentre:
        point = self._settings.locate(depth, self._camera, cube_mm=self._cube_mm)
        if point is None:
            near, far = self._settings.near_mm, self._settings.far_mm
            reach = f" between {near:g} and {far:g} mm" if far is not None else f" beyond {near:g} mm" if near else ""
            raise DataError(
                f"{path}: has no measured pixel{reach}, so that there is no figure in it; give another image, or other "
                "reference.near_mm= and reference.far_mm="
            )
        return FrameCentre(point, "centre of mass")

    def near(self, start: np.ndarray, depth: np.ndarray) -> np.ndarray | None:
        """Find the centre of mass from `start`; None if nothing is measured in its cube."""
        return self._settings.locate(depth, self._camera, cube_mm=self._cube_mm, start=start)

    def update(self, joints_mm: np.ndarray, peaks: np.ndarray) -> None:
        """Ignore the prediction."""


class TrackingCentreFinder:
    """Centre of mass in the cube about the joints of the previous frame, for the frames of a video, in order.

    The first frame, and a frame after a lost prediction, gets that of the whole image. A prediction is lost if at least
    half of its maps have no peak, or if nothing is measured near it any more.
    """

    is_sequential = True

    def __init__(self, fallback: CentreOfMassFinder) -> None:
        self._fallback = fallback
        self._joints: np.ndarray | None = None
        self._lost = "first frame"

    def __call__(self, path: Path, depth: np.ndarray) -> FrameCentre:
        if self._joints is not None:
            point = self._fallback.near(self._joints.mean(axis=0), depth)
            if point is not None:
                return FrameCentre(point, "previous frame")
            self._lost = "previous prediction lost: no measured pixel near it"
        return self._fallback(path, depth)._replace(source=f"centre of mass ({self._lost})")

    def update(self, joints_mm: np.ndarray, peaks: np.ndarray) -> None:
        num_dead = int((peaks < _DEAD_PEAK).sum())
        is_lost = 2 * num_dead >= len(peaks)
        self._joints = None if is_lost else joints_mm
        if is_lost:
            self._lost = f"previous prediction lost: {num_dead} of {len(peaks)} peaks below {_DEAD_PEAK:g}"


class FileCentreFinder:
    """Reference points of a file with a line for each frame, in order; the fallback replaces `invalid` lines.

    Points of the file are converted into the run's frame by `flip_y`. Raises DataError for a file of another length.
    """

    is_sequential = False

    def __init__(
        self,
        file: Path,
        files: Sequence[Path],
        fallback: CentreOfMassFinder,
        *,
        camera: np.ndarray,
        cube_mm: float,
        flip_y: Callable[[np.ndarray], np.ndarray],
    ) -> None:
        order = FrameOrder("what is given", len(files), camera, cube_mm, centre=0)
        self._stored = ReferencePointFile(path=str(file)).points_for(order)
        self._index_by_path: Mapping[Path, int] = {frame_path: index for index, frame_path in enumerate(files)}
        self._fallback = fallback
        self._flip_y = flip_y
        self._source = file.name

    def __call__(self, path: Path, depth: np.ndarray) -> FrameCentre:
        index = self._index_by_path[path]
        if self._stored.is_known is not None and not self._stored.is_known[index]:
            return self._fallback(path, depth)._replace(source=f"centre of mass (invalid in {self._source})")
        no_joints = np.zeros((0, 3), dtype=np.float32)
        point = self._stored(DepthFrame(depth, no_joints, no_joints[:, 0] > 0), index)
        return FrameCentre(self._flip_y(point), f"{self._source}:{index + 1}")

    def update(self, joints_mm: np.ndarray, peaks: np.ndarray) -> None:
        """Ignore the prediction."""


class RefinedCentreFinder:
    """Reference points of another finder, moved by a network: `refine` maps path, depths and point (3,) to a point."""

    def __init__(self, start: CentreFinder, refine: Callable[[Path, np.ndarray, np.ndarray], np.ndarray]) -> None:
        self.is_sequential = start.is_sequential
        self._start = start
        self._refine = refine

    def __call__(self, path: Path, depth: np.ndarray) -> FrameCentre:
        start = self._start(path, depth)
        return FrameCentre(self._refine(path, depth, start.point_mm), f"{start.source}, refined")

    def update(self, joints_mm: np.ndarray, peaks: np.ndarray) -> None:
        self._start.update(joints_mm, peaks)


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


FileSplit = Literal["train", "test"]


@dataclasses.dataclass(frozen=True, eq=False)
class FrameCentres:
    """Reference points of the frames of a split of a set's files, in the order of the files.

    `points_mm` (F, 3) float32 and `is_known` (F,): false for frames without a measured pixel, and for those that the
    set leaves out. `error_mm` is the mean distance from the true middle joint over the frames that show it, and
    `reference_error_mm` that of the centres of mass; NaN if there are none. `notes` are lines for the user.
    """

    points_mm: np.ndarray
    is_known: np.ndarray
    error_mm: float
    reference_error_mm: float
    notes: tuple[str, ...]

    def to_text(self) -> str:
        """Format the text of a file: `x y z` in mm for every frame, exact in float32, or `invalid`.

        Source: the files of Moon et al. 2018 (V2V-PoseNet).
        """
        lines = [
            " ".join(np.format_float_positional(value, trim="-") for value in point) if is_known else "invalid"
            for point, is_known in zip(self.points_mm, self.is_known, strict=True)
        ]
        return "".join(f"{line}\n" for line in lines)


def find_centres(refiner: TrainedRun, config: RunConfig, *, split: FileSplit, world: World) -> FrameCentres:
    """Predict the reference points of a config's set with a run of the task `centre`, from the centres of mass.

    `split` is that of the set's files: validation frames are in `train`. Raises UserError for a run that predicts none,
    a set that is not of depth images or has another camera, and a refiner that was trained on what the config tests.
    """
    assert_refiner(refiner)
    sets = _build_sets(refiner, config, split)
    _assert_unseen(refiner, config, sets[0])
    pipeline = InferencePipeline(
        refiner, sets[0].info, world, fields=sets[0].info.fields, source=f"data set '{config.data.name}'"
    )
    points = np.zeros((sets[0].part.num_ordered, 3), dtype=np.float32)
    is_known = np.zeros(len(points), dtype=bool)
    errors: list[np.ndarray] = []
    joint = int(refiner.facts["centre_joint"])
    try:
        for frames in sets:
            for batch in _read_batches(frames, refiner):
                centres_mm = pipeline.predict(pipeline.model_inputs(batch))["centre_mm"].double().cpu().numpy()
                frame_indices = frames.frame_indices[batch["sample_index"].numpy()]
                points[frame_indices], is_known[frame_indices] = centres_mm, True
                errors.append(_compute_errors(batch, centres_mm, joint))
    finally:
        refiner.model.cpu()  # a loaded run keeps its model on the CPU
    all_errors = np.concatenate([*errors, np.zeros((0, 2))])
    error_mm, reference_error_mm = all_errors.mean(axis=0).tolist() if len(all_errors) else (np.nan, np.nan)
    return FrameCentres(
        points, is_known, error_mm, reference_error_mm, tuple(_make_notes(refiner, config, split, is_known))
    )


def _build_sets(refiner: TrainedRun, config: RunConfig, split: FileSplit) -> list[DepthFrames]:
    """Build the splits of a config's set in one split of its files, about the refiner's reference points."""
    centre_of_mass = get_centre_of_mass(refiner)
    reference = {
        "name": "centre_of_mass",
        "passes": centre_of_mass.passes,
        "near_mm": centre_of_mass.near_mm,
        "far_mm": centre_of_mass.far_mm,
    }
    data = config.data
    if issubclass(registry.data.entry(data).builder, DepthFrames):  # type: ignore[arg-type]
        joints = refiner.config.data.arguments.get("joints", ())  # not the joints of the poses to be trained
        data = dataclasses.replace(data, arguments={**data.arguments, "reference": reference, "joints": joints})
    first = registry.data.build(data, facts={"split": split})
    if not isinstance(first, DepthFrames):
        raise ConfigError(f"{data.location}: data set '{data.name}' has no depth images; give a config of one that has")
    for name in ("cube_mm", "num_joints", "centre_joint"):
        if first.info.facts[name] != refiner.facts[name]:
            raise ConfigError(
                f"{refiner.path}: was trained with {name} = {refiner.facts[name]}; data set '{data.name}' has "
                f"{first.info.facts[name]}"
            )
    if first.info.facts["camera_px"][1] * refiner.facts["camera_px"][1] < 0:
        raise ConfigError(f"{refiner.path}: was trained with Y pointing the other way than in data set '{data.name}'")
    other_splits = [name for name in first.info.split_sizes if name not in ("train", "test")]
    other_sets = [registry.data.build(data, facts={"split": name}) for name in other_splits] if split == "train" else []
    return [first, *(frames for frames in other_sets if frames.part.file_split == split)]


def _read_batches(frames: DepthFrames, refiner: TrainedRun) -> Iterator[Batch]:
    """Yield batches with the refiner's evaluation transforms, without frames that have no centre of mass."""
    reader, size = BatchReader(frames, refiner.transforms), refiner.config.evaluate.batch_size
    for start in range(0, len(frames), size):
        keys = [SampleKey(index, 0, refiner.config.seed) for index in range(start, min(start + size, len(frames)))]
        try:
            yield reader(keys)
        except NoCentreError:
            for key in keys:
                try:
                    yield reader([key])
                except NoCentreError:
                    continue


def _compute_errors(batch: Batch, centres_mm: np.ndarray, joint: int) -> np.ndarray:
    """Compute the distances (F, 2) in mm of prediction and reference from the joint, for frames that show it."""
    joints: Tensor = batch["joints"][:, joint].double()
    points = np.stack([centres_mm, batch["reference"].double().numpy()], axis=1)
    distances: np.ndarray = np.sqrt(((points - joints.numpy()[:, None]) ** 2).sum(axis=-1))
    return distances[batch["visible"][:, joint].numpy()]


def _assert_unseen(refiner: TrainedRun, config: RunConfig, frames: DepthFrames) -> None:
    """Raise UserError if the refiner, or a run that it started from, was trained on a fold that the config tests."""
    tested = set(frames.info.folds.tested) if frames.info.folds is not None else set()
    if not tested:
        return
    for trained_run, trained in _find_training_folds(refiner, config.data):
        if trained is None:
            raise UserError(
                f"{trained_run}: does not record on which parts of '{config.data.name}' it was trained; train it again"
            )
        if shared := sorted(tested & trained):
            raise UserError(
                f"{trained_run}: was trained on {', '.join(shared)}, on which this config is tested: its centres would "
                f"leak the test labels; give a refiner that was trained without {', '.join(shared)}"
            )


def _find_training_folds(refiner: TrainedRun, data: ComponentConfig) -> Iterator[tuple[str, set[str] | None]]:
    """Yield the folds of a set on which a run, and every run that it started from, was trained; None: unknown."""
    if refiner.config.data.name == data.name:
        folds = refiner.files.inputs.folds
        yield str(refiner.path), None if folds is None else set(folds.names) - set(folds.tested)
    lineage = refiner.files.lineage
    while lineage is not None and "layout" not in lineage:
        trained_run, source = f"{refiner.path}, which started from {lineage['from']}", lineage["source"]
        if source is None:
            yield trained_run, None
        elif source["data"]["name"] == data.name:
            yield trained_run, _read_training_folds(source["data"], data)
        lineage = lineage["lineage"]


def _read_training_folds(data_block: Mapping[str, Any], data: ComponentConfig) -> set[str] | None:
    """Build a set of another run's config; return the folds on which it trains, or None without folds."""
    arguments = {name: value for name, value in data_block.items() if name not in ("name", "reference")}
    if "root" in data.arguments:
        arguments["root"] = data.arguments["root"]
    folds = registry.data.build(ComponentConfig(data.name, arguments), facts={"split": "test"}).info.folds
    return None if folds is None else set(folds.names) - set(folds.tested)


def _make_notes(refiner: TrainedRun, config: RunConfig, split: FileSplit, is_known: np.ndarray) -> Sequence[str]:
    """List the notes for the user about training frames, frames without a point and other references."""
    notes = []
    if split == "train" and refiner.config.data.name == config.data.name:
        notes.append(
            "the refiner was trained on frames of this part: their points are nearer than those of unseen frames"
        )
    if num_unknown := int((~is_known).sum()):
        notes.append(f"{num_unknown} of {len(is_known)} frames have no point; their lines are 'invalid'")
    source = refiner.facts.get("reference_source")
    if source != "centre_of_mass":
        notes.append(f"the refiner was trained about reference points of '{source}', and is given centres of mass here")
    return notes
