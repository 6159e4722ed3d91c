"""Reference points that a trained refiner finds for a data set, for files in the format of the authors of V2V."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from torch import Tensor

from sightline import registry
from sightline.config import RunConfig
from sightline.data.depth.depth_frames import DepthFrames
from sightline.data.depth.references import NoCentreError
from sightline.data.loading.batch_reader import BatchReader
from sightline.engine.distributed import World
from sightline.engine.run_loading import TrainedRun
from sightline.errors import ConfigError, UserError
from sightline.predict.inference import InferencePipeline
from sightline.predict.refiner import assert_refiner, centre_of_mass_of
from sightline.runs.inputs import read_inputs
from sightline.runs.lineage import read_lineage
from sightline.types import Batch, ComponentConfig, SampleKey

__all__ = ["FrameCentres", "centre_lines", "find_centres"]

FileSplit = Literal["train", "test"]


@dataclasses.dataclass(frozen=True, eq=False)
class FrameCentres:
    """A point for each frame of a part of a set, in the order of the set's files.

    `points_mm` (F, 3) float32 and `is_known` (F,): false for frames without a measured pixel, and for those that the
    set leaves out. `error_mm` is the mean distance from the true middle joint of the frames that show it, and
    `reference_error_mm` that of the centres of mass; NaN where there are none. `notes` are lines for the user.
    """

    points_mm: np.ndarray
    is_known: np.ndarray
    error_mm: float
    reference_error_mm: float
    notes: tuple[str, ...]


def find_centres(refiner: TrainedRun, config: RunConfig, *, split: FileSplit, world: World) -> FrameCentres:
    """The points that a run of the task `centre` finds for the frames of a config's set, about their centres of mass.

    `split` is that of the set's files: validation frames lie in `train`. Raises UserError for a run that finds none, a
    set that is not of depth images or seen from elsewhere, and a refiner that was trained on what the config tests.
    """
    assert_refiner(refiner)
    sets = _sets(refiner, config, split)
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
            for batch in _batches(frames, refiner):
                found = pipeline.predict(pipeline.model_inputs(batch))["centre_mm"].double().cpu().numpy()
                places = frames.frame_indices[batch["sample_index"].numpy()]
                points[places], is_known[places] = found, True
                errors.append(_errors(batch, found, joint))
    finally:
        refiner.model.cpu()  # where a loaded run promises it to be
    every = np.concatenate([*errors, np.zeros((0, 2))])
    after, before = every.mean(axis=0).tolist() if len(every) else (np.nan, np.nan)
    return FrameCentres(points, is_known, after, before, tuple(_notes(refiner, config, split, is_known)))


def centre_lines(found: FrameCentres) -> str:
    """The text of a file: `x y z` in mm for every frame, to the last bit of float32, or `invalid`.

    Source: the files of Moon et al. 2018 (V2V-PoseNet).
    """
    lines = [
        " ".join(np.format_float_positional(value, trim="-") for value in point) if known else "invalid"
        for point, known in zip(found.points_mm, found.is_known, strict=True)
    ]
    return "".join(f"{line}\n" for line in lines)


def _sets(refiner: TrainedRun, config: RunConfig, split: FileSplit) -> list[DepthFrames]:
    """The splits of a config's set whose frames lie in a split of its files, about the refiner's reference points."""
    how = centre_of_mass_of(refiner)
    reference = {"name": "centre_of_mass", "passes": how.passes, "near_mm": how.near_mm, "far_mm": how.far_mm}
    data = config.data
    if issubclass(registry.data.entry(data).builder, DepthFrames):  # type: ignore[arg-type]
        joints = refiner.config.data.arguments.get("joints", ())  # not those that the poses are to have
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
    others = [name for name in first.info.split_sizes if name not in ("train", "test")]
    more = [registry.data.build(data, facts={"split": name}) for name in others] if split == "train" else []
    return [first, *(each for each in more if each.part.file_split == split)]


def _batches(frames: DepthFrames, refiner: TrainedRun) -> Iterator[Batch]:
    """Frames as the refiner's evaluation sees them, those without a centre of mass left out."""
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


def _errors(batch: Batch, found: np.ndarray, joint: int) -> np.ndarray:
    """Distances (frames that show the joint, 2) of what was found, and of what was refined."""
    true: Tensor = batch["joints"][:, joint].double()
    both = np.stack([found, batch["reference"].double().numpy()], axis=1)
    distances: np.ndarray = np.sqrt(((both - true.numpy()[:, None]) ** 2).sum(axis=-1))
    return distances[batch["visible"][:, joint].numpy()]


def _assert_unseen(refiner: TrainedRun, config: RunConfig, frames: DepthFrames) -> None:
    """Raises UserError where the refiner, or what it started from, was trained on a part that the config tests."""
    tested = set(frames.info.folds.tested) if frames.info.folds is not None else set()
    if not tested:
        return
    for trained_run, trained in _trained_on(refiner, config.data):
        if trained is None:
            raise UserError(
                f"{trained_run}: does not record on which parts of '{config.data.name}' it was trained; train it again"
            )
        if seen := sorted(tested & trained):
            raise UserError(
                f"{trained_run}: was trained on {', '.join(seen)}, on which this config is tested: its centres would "
                f"leak the test labels; give a refiner that was trained without {', '.join(seen)}"
            )


def _trained_on(refiner: TrainedRun, data: ComponentConfig) -> Iterator[tuple[str, set[str] | None]]:
    """The parts of a set on which a run, and every run that its weights come from, was trained; None: unknown."""
    if refiner.config.data.name == data.name:
        folds = read_inputs(refiner.path, refiner.config).folds
        yield str(refiner.path), None if folds is None else set(folds.names) - set(folds.tested)
    lineage = read_lineage(refiner.path)
    while lineage is not None and "layout" not in lineage:
        trained_run, source = f"{refiner.path}, which started from {lineage['from']}", lineage["source"]
        if source is None:
            yield trained_run, None
        elif source["data"]["name"] == data.name:
            yield trained_run, _trained_with(source["data"], data)
        lineage = lineage["lineage"]


def _trained_with(given: Mapping[str, Any], data: ComponentConfig) -> set[str] | None:
    arguments = {name: value for name, value in given.items() if name not in ("name", "reference")}
    if "root" in data.arguments:
        arguments["root"] = data.arguments["root"]
    folds = registry.data.build(ComponentConfig(data.name, arguments), facts={"split": "test"}).info.folds
    return None if folds is None else set(folds.names) - set(folds.tested)


def _notes(refiner: TrainedRun, config: RunConfig, split: FileSplit, is_known: np.ndarray) -> Sequence[str]:
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
