"""Reference points that a refiner predicts, a run of the task `centre`: of single frames, and of a whole data set."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from sightline.areas.pose.sets.depth_frames import CentreOfMass, DepthFrames, NoCentreError
from sightline.config import RunConfig
from sightline.contract import registry
from sightline.contract.errors import ConfigError, UserError
from sightline.contract.types import Batch, DataInfo, Sample, SampleKey
from sightline.engine.distributed import World
from sightline.engine.run_loading import TrainedRun
from sightline.store.loading.batch_reader import BatchReader
from sightline.store.loading.transform_pipeline import NamedTransform
from sightline.workbench.predict.prediction import InferencePipeline

FileSplit = Literal["train", "test"]
INPUTS = ("depth", "camera", "reference")
"""Fields of a frame's sample, without labels."""


def assert_refiner(run: TrainedRun) -> None:
    """Raise ConfigError for a run that does not refine reference points."""
    if "centre_mm" not in registry.tasks.get_class(run.config.task).predicts:
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
        return bool(needs_labels and transform.apply.adds)

    return [transform for transform in transforms if not draws_targets(transform)]


class Refiner:
    """Run of the task `centre` on one frame at a time, before the `camera` (4,) of the run that it refines for."""

    def __init__(self, run: TrainedRun, camera: np.ndarray, world: World) -> None:
        assert_refiner(run)
        info = run.files.inputs
        assert_depth_run(run, info)
        _assert_same_y(run, camera[1], "the run that it refines for")
        self._camera = camera
        self._pipeline = InferencePipeline(
            run,
            info,
            world,
            fields={name: info.fields[name] for name in INPUTS},
            source="a depth image",
            transforms=without_target_transforms(run.transforms, info),
        )

    def __call__(self, name: str, depth: np.ndarray, point_mm: np.ndarray) -> np.ndarray:
        """Refine the point (3,) in mm of the depth image (H, W) of a file with this draw name."""
        batch = self._pipeline.make_batch([name], [frame_sample(depth, self._camera, point_mm)])
        centre: np.ndarray = _predict_centres(self._pipeline, batch)[0]
        return centre


def _predict_centres(pipeline: InferencePipeline, batch: Batch) -> np.ndarray:
    """Predict the centres (B, 3) float64 in mm of a batch."""
    centres: np.ndarray = pipeline.predict(pipeline.model_inputs(batch))["centre_mm"].double().cpu().numpy()
    return centres


def _assert_same_y(refiner: TrainedRun, fy: float, other: str) -> None:
    if refiner.facts["camera_px"][1] * fy < 0:
        raise ConfigError(f"{refiner.path}: was trained with Y pointing the other way than in {other}")


@dataclasses.dataclass(frozen=True, eq=False)
class FrameCentres:
    """Reference points of the frames of a split of a set's files, in the order of the files.

    `points_mm` (F, 3) float32 and `is_known` (F,): false for frames without a measured pixel, and for those that the
    set leaves out. `notes` are lines for the user.
    """

    points_mm: np.ndarray
    is_known: np.ndarray
    notes: tuple[str, ...] = ()

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
    info = sets[0].info
    pipeline = InferencePipeline(refiner, info, world, fields=info.fields, source=f"data set '{config.data.name}'")
    points = np.zeros((sets[0].part.num_ordered, 3), dtype=np.float32)
    is_known = np.zeros(len(points), dtype=bool)
    try:
        for frames in sets:
            for batch in _read_batches(frames, refiner):
                frame_indices = frames.frame_indices[batch["sample_index"].numpy()]
                points[frame_indices], is_known[frame_indices] = _predict_centres(pipeline, batch), True
    finally:
        refiner.model.cpu()  # a loaded run keeps its model on the CPU
    return FrameCentres(points, is_known, tuple(_make_notes(refiner, config, split, is_known)))


def _build_sets(refiner: TrainedRun, config: RunConfig, split: FileSplit) -> list[DepthFrames]:
    """Build the splits of a config's set in one split of its files, about the refiner's reference points."""
    mass = get_centre_of_mass(refiner)
    reference = {"name": "centre_of_mass", "passes": mass.passes, "near_mm": mass.near_mm, "far_mm": mass.far_mm}
    data = config.data
    if issubclass(registry.data.get_class(data), DepthFrames):
        data = dataclasses.replace(data, arguments={**data.arguments, "reference": reference})
    first = registry.data.build(data, facts={"split": split})
    if not isinstance(first, DepthFrames):
        raise ConfigError(f"{data.location}: data set '{data.name}' has no depth images; give a config of one that has")
    for name in ("cube_mm", "num_joints", "centre_joint"):
        if first.info.facts[name] != refiner.facts[name]:
            raise ConfigError(
                f"{refiner.path}: was trained with {name} = {refiner.facts[name]}; data set '{data.name}' has "
                f"{first.info.facts[name]}"
            )
    _assert_same_y(refiner, first.info.facts["camera_px"][1], f"data set '{data.name}'")
    other_splits = [name for name in first.info.split_sizes if name not in ("train", "test")]
    other_sets = [registry.data.build(data, facts={"split": name}) for name in other_splits] if split == "train" else []
    depth_sets = [frames for frames in other_sets if isinstance(frames, DepthFrames)]
    return [first, *(frames for frames in depth_sets if frames.part.file_split == split)]


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


def _assert_unseen(refiner: TrainedRun, config: RunConfig, frames: DepthFrames) -> None:
    """Raise UserError if the refiner was trained on a fold that the config tests, or on another run's weights."""
    tested = set(frames.info.folds.tested) if frames.info.folds is not None else set()
    if not tested:
        return
    if refiner.files.lineage is not None:
        raise UserError(
            f"{refiner.path}: started from {refiner.files.lineage['from']}, which may have been trained on "
            f"{', '.join(sorted(tested))}, on which this config is tested; give a refiner that started from no weights"
        )
    if refiner.config.data.name != config.data.name:
        return
    folds = refiner.files.inputs.folds
    if folds is None:
        raise UserError(
            f"{refiner.path}: does not record on which parts of '{config.data.name}' it was trained; train it again"
        )
    if shared := sorted(tested & (set(folds.names) - set(folds.tested))):
        raise UserError(
            f"{refiner.path}: was trained on {', '.join(shared)}, on which this config is tested: its centres would "
            f"leak the test labels; give a refiner that was trained without {', '.join(shared)}"
        )


def _make_notes(refiner: TrainedRun, config: RunConfig, split: FileSplit, is_known: np.ndarray) -> Iterator[str]:
    """Yield the notes for the user about training frames, frames without a point and other references."""
    if split == "train" and refiner.config.data.name == config.data.name:
        yield "the refiner was trained on frames of this part: their points are nearer than those of unseen frames"
    if num_unknown := int((~is_known).sum()):
        yield f"{num_unknown} of {len(is_known)} frames have no point; their lines are 'invalid'"
    source = refiner.facts.get("reference_source")
    if source != "centre_of_mass":
        yield f"the refiner was trained about reference points of '{source}', and is given centres of mass here"
