"""Samples of a data set after each transform on their way to the model, and a model's predictions for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol

from sightline.contract.catalogue import load_members
from sightline.contract.errors import ConfigError
from sightline.contract.task import Task
from sightline.contract.types import Batch, DataInfo, Sample, SampleKey
from sightline.draw.pictures import Frame
from sightline.store.loading.batch_reader import BatchReader
from sightline.view.cloud_stages import CloudStages
from sightline.view.image_stages import ImageStages, draws_pictures, has_more_targets, target_stages
from sightline.view.sample_predictor import SHOWN, SamplePredictor
from sightline.view.stages import Stage, ViewedSample

_MODEL_INPUT = {"train": "model input in training", "evaluate": "model input in evaluation"}


@dataclass(frozen=True)
class Branch:
    """Branch from the data set to the model (training or evaluation); `reader` applies its transforms, in `epoch`."""

    name: Literal["train", "evaluate"]
    reader: BatchReader
    epoch: int = 0


class StageBuilder(Protocol):
    """Builder of the stages of one kind of sample: raw, after each transform, and prediction.

    It is called with a raw sample, its `DataInfo` and facts. `kind` names the samples, which have the fields `needs`.
    `whole` are facts about the whole sample, `frame` is the coordinate frame of its stages.
    """

    kind: ClassVar[str]
    needs: ClassVar[frozenset[str]]
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
    is_trained: bool = False,
    all_stages: bool = False,
) -> ViewedSample:
    """Build the stages of a sample: raw, as the model reads it, its targets and, with a predictor, as predicted.

    The stages contain exactly the bits that training in the branch's epoch, or evaluation, reads; with a predictor the
    last branch is evaluation. What `task` computes before the forward pass, such as an assignment, follows the first
    branch; `is_trained`: with the weights of a run. Raises ConfigError for a data set that cannot be drawn.

    Of a branch, the last stage of each thing that its transforms make is shown, and of several branches the first and
    the one that is predicted; a stage that was verified to be wrong always is. `all_stages` shows every transform of
    every branch, and all that the task can draw of its targets.
    """
    description: dict[str, Any] = {"index": index}
    clouds: list[Stage] = []
    has_more = False
    kind: StageBuilder | None = None
    for branch in branches:
        stages = branch.reader.sample_stages(SampleKey(index, branch.epoch, seed))
        _, sample = next(stages)
        if kind is None:
            kind = _choose_builder(sample, branch.reader.dataset.info, facts)
            clouds.append(_add_description(kind.raw_stage(sample), _describe_raw(branches)))
        by_transform: list[list[Stage]] = []
        for transform_index, (transform, transformed) in enumerate(stages, start=1):
            name_of_stage = f"{branch.name} {transform_index}: {transform}"
            by_transform.append([*kind.after_transform(name_of_stage, sample, transformed)])
            sample = transformed
        if by_transform:
            by_transform[-1] = [_mark_input(stage, _MODEL_INPUT[branch.name]) for stage in by_transform[-1]]
        transformed_stages = [stage for of_transform in by_transform for stage in of_transform]
        is_shown = branch is branches[0] or predictor is not None
        short = _list_last(by_transform) if is_shown else [s for s in transformed_stages if s.is_right is False]
        has_more |= len(short) < len(transformed_stages)
        clouds += transformed_stages if all_stages else short
        if task is not None and branch is branches[0]:
            pixels = kind.pixels if isinstance(kind, ImageStages) else None
            batch = branch.reader([SampleKey(index, branch.epoch, seed)])
            clouds += target_stages(task, batch, pixels=pixels, all_stages=all_stages, is_trained=is_trained)
            has_more |= has_more_targets(task)
    assert kind is not None, "a sample is read by one branch at least"
    description |= kind.whole
    if predictor is not None:  # the last branch is the one that evaluates
        batch, predictions = predictor(SampleKey(index, 0, seed))
        predicted, description["prediction"] = kind.prediction_stages(
            [clouds[0], *transformed_stages], batch, predictions, predictor
        )
        clouds.append(predicted)
    return ViewedSample(name, tuple(clouds), kind.frame, description, has_more)


def _list_last(by_transform: Sequence[Sequence[Stage]]) -> list[Stage]:
    """List, of the stages after each transform, the last ones of each thing that they show, and wrong ones."""
    last = {stage.shows: number for number, stages in enumerate(by_transform) for stage in stages}
    return [
        stage
        for number, stages in enumerate(by_transform)
        for stage in stages
        if number == last[stage.shows] or stage.is_right is False
    ]


def _list_builders() -> list[Any]:
    """List the classes of builders by kind: a sample is of the first kind whose needed fields it has."""
    return sorted([CloudStages, ImageStages, *load_members("stages")], key=lambda builder: builder.kind)


def can_draw_predictions(task: Task, info: DataInfo) -> bool:
    """Return True if predictions of a task can be drawn over the samples of a set."""
    first_kind = next((builder for builder in _list_builders() if builder.needs <= info.fields.keys()), None)
    return draws_pictures(task) if first_kind is ImageStages else bool(SHOWN.keys() & task.predicts)


def _choose_builder(sample: Sample, info: DataInfo, facts: Mapping[str, Any]) -> StageBuilder:
    builders = _list_builders()
    for builder in builders:
        if builder.needs <= sample.keys():
            chosen: StageBuilder = builder(sample, info, facts)
            return chosen
    kinds = ", ".join(f"{builder.kind} ({', '.join(sorted(builder.needs))})" for builder in builders)
    raise ConfigError(f"view: the data set has the fields {', '.join(sorted(sample))}; view shows {kinds}")


def _describe_raw(branches: Sequence[Branch]) -> str:
    return ", ".join(_MODEL_INPUT[branch.name] for branch in branches if not branch.reader.has_transforms)


def _mark_input(stage: Stage, text: str) -> Stage:
    """Return the stage described as the model's input, and so the picture that is all of it."""
    panels = tuple(replace(panel, caption=text) if panel.name == stage.stage else panel for panel in stage.panels)
    return _add_description(replace(stage, panels=panels), text)


def _add_description(cloud: Stage, *more: str) -> Stage:
    """Return the stage with a longer description."""
    return replace(cloud, description="; ".join(line for line in (cloud.description, *more) if line))
