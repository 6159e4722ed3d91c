"""Reference points of a data set, predicted by a refiner and written as files of V2V-PoseNet's format."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from torch import Tensor

from sightline.areas.pose.frame_centres import assert_refiner, get_centre_of_mass
from sightline.areas.pose.sets.depth_frames import DepthFrames
from sightline.areas.pose.sets.references import NoCentreError
from sightline.config import RunConfig
from sightline.contract import registry
from sightline.contract.errors import ConfigError, UserError
from sightline.contract.types import Batch, SampleKey
from sightline.engine.distributed import World
from sightline.engine.run_loading import TrainedRun
from sightline.store.loading.batch_reader import BatchReader
from sightline.workbench.predict.prediction import InferencePipeline

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
