"""Samples of a data set at every stage on their way to the model, and the predictions of a model for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from sightline.data.loading.batch_reader import BatchReader
from sightline.engine.train import Task
from sightline.errors import ConfigError
from sightline.optional_members import TaskMembers
from sightline.pictures import Frame
from sightline.types import Batch, DataInfo, Sample, SampleKey
from sightline.view.cloud_stages import CloudStages
from sightline.view.depth_stages import DepthStages
from sightline.view.digests import RawReads
from sightline.view.image_stages import ImageStages, draws_pictures, target_stages
from sightline.view.predictor import SHOWN, SamplePredictor
from sightline.view.stages import Stage, ViewedSample

__all__ = ["Branch", "can_draw_predictions", "view_sample"]

_SEEN = {"train": "model input in training", "evaluate": "model input in evaluation"}


@dataclass(frozen=True)
class Branch:
    """One way from the data set to the model; `reader` applies its transforms, in `epoch`."""

    name: Literal["train", "evaluate"]
    reader: BatchReader
    epoch: int = 0


class StageBuilder(Protocol):
    """The stages of samples of one kind: the raw one, the result of each transform, the prediction.

    `whole` are facts of the sample as a whole, `frame` is the frame of its stages.
    """

    whole: dict[str, str]
    frame: Frame

    def raw_stage(self, sample: Sample) -> Stage: ...

    def after_transform(self, stage: str, before: Sample, sample: Sample) -> Iterable[Stage]: ...

    def prediction_stages(
        self, clouds: Sequence[Stage], batch: Batch, predictions: Mapping[str, Any], predictor: SamplePredictor
    ) -> tuple[Stage, dict[str, Any]]: ...


def view_sample(
    index: int,
    *,
    name: str,
    branches: Sequence[Branch],
    seed: int,
    facts: Mapping[str, Any],
    task: Task | None = None,
    predictor: SamplePredictor | None = None,
    raw_epochs: Sequence[int] = (),
) -> ViewedSample:
    """A sample as its data set gives it, after each transform of each branch and, with a predictor, as predicted.

    The stages hold the very bits that training in the branch's epoch, or evaluation, sees; with a predictor the last
    branch is evaluation. In `raw_epochs` the sample is read and transformed by the first branch before all else, to
    show whether its raw item changes. What `task` works out before the forward pass, such as an assignment, follows the
    first branch. Raises ConfigError for a data set that cannot be drawn.
    """
    description: dict[str, Any] = {"index": index}
    reads = RawReads.read(branches[0].reader, index=index, seed=seed, epochs=raw_epochs) if raw_epochs else None
    clouds: list[Stage] = []
    kind: StageBuilder | None = None
    for branch in branches:
        stages = branch.reader.sample_stages(SampleKey(index, branch.epoch, seed))
        _, sample = next(stages)
        if kind is None:
            kind = _kind_of(sample, branch.reader.dataset.info, facts)
            clouds.append(
                _described(kind.raw_stage(sample), reads.line if reads else "", _description_of_raw(branches))
            )
        changed: list[Stage] = []
        last = len(clouds)
        for place, (transform, after) in enumerate(stages, start=1):
            last = len(clouds) + len(changed)
            changed += kind.after_transform(f"{branch.name} {place}: {transform}", sample, after)
            sample = after
        clouds += changed
        clouds[last:] = [_described(cloud, _SEEN[branch.name]) for cloud in clouds[last:]]
        if task is not None and branch is branches[0]:
            pixels = kind.pixels if isinstance(kind, ImageStages) else None
            clouds += target_stages(task, branch.reader([SampleKey(index, branch.epoch, seed)]), pixels=pixels)
    assert kind is not None, "a sample is read by one branch at least"
    description |= kind.whole
    if reads is not None:
        description["raw"] = reads.to_dict()
    if predictor is not None:  # the last branch is the one that evaluates
        batch, predictions = predictor(SampleKey(index, 0, seed))
        predicted, description["prediction"] = kind.prediction_stages(
            [clouds[0], *changed], batch, predictions, predictor
        )
        clouds.append(predicted)
    return ViewedSample(name, tuple(clouds), kind.frame, description)


_KINDS: dict[str, type[CloudStages | DepthStages | ImageStages]] = {
    "clouds": CloudStages,
    "depth frames": DepthStages,
    "images": ImageStages,
}
"""In this order: a sample is of the first kind whose needs it meets."""


def can_draw_predictions(task: Task, info: DataInfo) -> bool:
    """Whether predictions of a task can be drawn over the samples of a set."""
    kind = next((each for each in _KINDS.values() if each.needs <= info.fields.keys()), None)
    return draws_pictures(task) if kind is ImageStages else bool(SHOWN.keys() & TaskMembers.predicts.get(task))


def _kind_of(sample: Sample, info: DataInfo, facts: Mapping[str, Any]) -> StageBuilder:
    for kind in _KINDS.values():
        if kind.needs <= sample.keys():
            return kind(sample, info, facts)
    kinds = ", ".join(f"{name} ({', '.join(sorted(kind.needs))})" for name, kind in _KINDS.items())
    raise ConfigError(f"view: the data set gives {', '.join(sorted(sample))}; view shows {kinds}")


def _description_of_raw(branches: Sequence[Branch]) -> str:
    return ", ".join(_SEEN[branch.name] for branch in branches if not branch.reader.has_transforms)


def _described(cloud: Stage, *more: str) -> Stage:
    """The stage with a longer description."""
    return replace(cloud, description="; ".join(line for line in (cloud.description, *more) if line))
