"""Samples on their way to the model: the bits of each stage, and answers laid over the points that they are for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sightline.areas.clouds.sets.synthetic_shapes import SyntheticShapes
from sightline.contract.dataset import Dataset
from sightline.contract.errors import ConfigError, DataError
from sightline.contract.types import Batch, DataInfo, Field, Sample, SampleKey
from sightline.draw.pictures import UNLABELLED
from sightline.engine.device.numerics import Precision
from sightline.parts.tasks.segment import WRONG
from sightline.parts.tasks.supervised import Supervised
from sightline.parts.transforms.point_selection import SamplePoints, ShufflePoints
from sightline.parts.transforms.points import Rotate, Scale
from sightline.parts.transforms.two_views import TwoViews
from sightline.store.loading.batch_reader import BatchReader
from sightline.store.loading.transform_pipeline import NamedTransform
from sightline.view.cloud_stages import CloudStages
from sightline.view.sample_predictor import SamplePredictor
from sightline.view.samples import Branch, view_sample
from sightline.view.stages import ClassColoring, Stage, ViewedSample

NAMES = ("low", "middle", "high")
ERROR_GREY = (196, 201, 208)


class Rooms(Dataset):
    """One ragged room with colours, twelve points; the third has an ignored label."""

    def __init__(self) -> None:
        facts = {"num_classes": 3, "class_names": NAMES, "in_channels": 6, "up_axis": "y", "ignore_index": 255}
        point = {"collate": "concatenate"}
        fields = {name: Field("points 3", "float32", "m", **point) for name in ("points", "colours")}
        self.info = DataInfo(facts, fields | {"label": Field("points", "int64", **point)}, features=("colours",))
        self.points = torch.arange(36.0).view(12, 3)
        self.label = torch.tensor([0, 1, 255, *[2] * 9])

    def __len__(self) -> int:
        return 1

    def __getitem__(self, key: SampleKey) -> Sample:
        colours = torch.linspace(-0.2, 1.2, 36).view(12, 3)
        return {"points": self.points.clone(), "colours": colours, "label": self.label.clone()}


class Answering(Supervised):
    """A task that answers as it is told, whatever the model says, in the form of `segment` or of `classify`."""

    def __init__(self, answers: list[int], *, num_classes: int = 3, whole: bool = False) -> None:
        self.answers, self.num_classes, self.whole = torch.tensor(answers), num_classes, whole

    def predict(self, model: nn.Module, batch: Batch) -> Mapping[str, Any]:
        assert not torch.is_grad_enabled()
        probabilities = torch.nn.functional.one_hot(self.answers, self.num_classes) * 0.8
        if self.whole:
            return {"probabilities": probabilities}
        target = batch["whole_label"] if "whole_label" in batch else batch["label"].flatten()
        return {"probabilities": probabilities, "cloud_offsets": torch.tensor([0, len(target)]), "target": target}


def predictor(task: Any, reader: BatchReader) -> SamplePredictor:
    return SamplePredictor(nn.Linear(1, 1), task, reader, Precision("float32"), torch.device("cpu"))


def shapes() -> SyntheticShapes:
    return SyntheticShapes(split="train", train_size=24, num_points=64)


def turned() -> list[NamedTransform]:
    chosen = NamedTransform("sample_points", SamplePoints(num_points=32))
    return [NamedTransform("rotate", Rotate(up_axis="z")), NamedTransform("scale", Scale()), chosen]


def seen(subject: ViewedSample, stage: str) -> np.ndarray:
    return next(cloud.points for cloud in subject.stages if cloud.stage == stage)


def subject_of(dataset: Any, *branches: Branch, **more: Any) -> ViewedSample:
    return view_sample(more.pop("index", 0), name="it", branches=branches, seed=1, facts=dataset.info.facts, **more)


def test_stages_hold_the_bits_that_training_and_evaluation_see() -> None:
    dataset = shapes()
    train, test = BatchReader(dataset, turned()), BatchReader(dataset, turned()[2:])
    branches = (Branch("train", train, 3), Branch("evaluate", test))
    subject = subject_of(dataset, *branches, index=5, all_stages=True)
    stages = ["raw", "train 1: rotate", "train 2: scale", "train 3: sample_points", "evaluate 1: sample_points"]
    assert [cloud.stage for cloud in subject.stages] == stages
    assert np.array_equal(seen(subject, "raw"), dataset[SampleKey(5, 0, 0)]["points"].numpy())
    assert np.array_equal(seen(subject, stages[3]), train([SampleKey(5, 3, 1)])["points"][0].numpy())
    assert np.array_equal(seen(subject, stages[4]), test([SampleKey(5, 0, 1)])["points"][0].numpy())
    assert not np.array_equal(seen(subject, stages[3]), train([SampleKey(5, 4, 1)])["points"][0].numpy())
    assert [bool(cloud.description) for cloud in subject.stages] == [False, False, False, True, True]
    assert [cloud.unit for cloud in subject.stages] == ["radius of the shape", "", "", "", ""]
    short = subject_of(dataset, *branches, index=5)
    assert [cloud.stage for cloud in short.stages] == ["raw", "train 3: sample_points"]
    assert np.array_equal(short.stages[1].points, subject.stages[3].points)
    assert short.has_more
    assert subject.has_more
    alone = subject_of(dataset, Branch("evaluate", test), index=5)
    assert [cloud.stage for cloud in alone.stages] == ["raw", "evaluate 1: sample_points"]
    assert not alone.has_more


def test_both_views_of_a_pair_are_shown_by_height_alone() -> None:
    """Its parts and normals belong to the rows of the raw cloud: a view may have dropped or turned them."""
    dataset = shapes()
    reader = BatchReader(dataset, [NamedTransform("two_views", TwoViews(transforms=(Rotate(up_axis="z"),)))])
    subject = subject_of(dataset, Branch("train", reader, 3), index=5)
    stages = ["raw", "train 1: two_views, first", "train 1: two_views, second"]
    assert [cloud.stage for cloud in subject.stages] == stages
    batch = reader([SampleKey(5, 3, 1)])
    for stage, field in zip(stages[1:], ("points", "other_points"), strict=True):
        assert np.array_equal(seen(subject, stage), batch[field][0].numpy())
    assert [len(cloud.colorings) for cloud in subject.stages] == [3, 1, 1]


def test_a_raw_sample_that_nothing_changes_is_what_the_model_sees() -> None:
    dataset = shapes()
    subject = subject_of(dataset, Branch("train", BatchReader(dataset)), Branch("evaluate", BatchReader(dataset)))
    assert subject.stages[0].description == "model input in training, model input in evaluation"
    assert subject.facts["class"] == dataset.info.facts["class_names"][dataset.strata[0]]


class Making(CloudStages):
    """Stages of a cloud of which transforms make grids, one of them a wrong one."""

    def after_transform(self, stage: str, before: Sample, sample: Sample) -> Iterator[Stage]:
        made = "" if "turn" in stage else "grid"
        for cloud in super().after_transform(stage, before, sample):
            yield replace(cloud, shows=made, is_right="wrong" not in stage if made else None)


def test_the_last_stage_of_each_thing_is_shown_and_a_wrong_one_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sightline.view.samples.CloudStages", Making)
    dataset = shapes()

    def stages(*names: str, all_stages: bool = False, second: Sequence[str] = ()) -> list[str]:
        readers = [
            BatchReader(dataset, [NamedTransform(name, Rotate(up_axis="z")) for name in each])
            for each in (names, second)
        ]
        branches = [Branch("train", readers[0]), *([Branch("evaluate", readers[1])] if second else [])]
        return [cloud.stage for cloud in subject_of(dataset, *branches, all_stages=all_stages).stages[1:]]

    assert stages("turn", "grid") == ["train 1: turn", "train 2: grid"]
    assert stages("turn", "grid", "turn", "grid") == ["train 3: turn", "train 4: grid"]
    assert stages("turn", "wrong", "grid") == ["train 1: turn", "train 2: wrong", "train 3: grid"]
    assert stages("grid", second=("turn", "wrong")) == ["train 1: grid", "evaluate 2: wrong"]
    assert len(stages("turn", "grid", "turn", all_stages=True, second=("turn",))) == 4


def test_a_ragged_sample_is_coloured_by_what_it_has() -> None:
    dataset = Rooms()
    (raw,) = subject_of(dataset, Branch("evaluate", BatchReader(dataset))).stages
    assert [each.name for each in raw.colorings] == ["colours", "ground truth", "height"]
    assert raw.colorings[0].colors().min() == 0  # colours that a transform took out of [0, 1] are cut off
    assert raw.colorings[0].colors().max() == 255
    assert raw.to_dict()["classes"]["ground truth"] == {"low": 1, "middle": 1, "high": 9, "unlabelled": 1}
    light = raw.colorings[2].colors().astype(int).sum(axis=1)
    assert light.argmax() == 11  # y is up


def test_answers_are_right_wrong_or_not_counted() -> None:
    dataset = Rooms()
    reader = BatchReader(dataset)
    task = Answering([0, 2, 1, *[2] * 8, 0])
    subject = subject_of(dataset, Branch("evaluate", reader), predictor=predictor(task, reader))
    cloud = subject.stages[-1]
    assert [each.name for each in cloud.colorings[:3]] == ["ground truth", "prediction", "error"]
    truth, prediction, error = cloud.colorings[:3]
    assert isinstance(prediction, ClassColoring)
    assert prediction.labels().tolist() == [0, 2, 1, *[2] * 8, 0]
    assert isinstance(truth, ClassColoring)
    assert truth.labels().tolist() == [0, 1, -1, *[2] * 9]
    expected = [ERROR_GREY, WRONG, UNLABELLED, *[ERROR_GREY] * 8, WRONG]
    assert np.array_equal(error.colors(), np.array(expected))
    assert subject.facts["prediction"] == {"num_points": 12, "accuracy": 9 / 11}
    assert cloud.description == "81.8% of its points right"


def test_answers_for_thinned_clouds_lie_on_the_original_points() -> None:
    dataset = Rooms()
    thin = [
        NamedTransform("shuffle_points", ShufflePoints()),
        NamedTransform("sample_points", SamplePoints(num_points=5, score_all=True)),
    ]
    reader = BatchReader(dataset, thin)
    task = Answering([0] * 12)
    branch, answering = Branch("evaluate", reader), predictor(task, reader)
    subject = subject_of(dataset, branch, predictor=answering, all_stages=True)
    sizes = [len(cloud.points) for cloud in subject.stages]
    assert sizes == [12, 12, 5, 12]
    short = subject_of(dataset, branch, predictor=answering)
    assert [len(cloud.points) for cloud in short.stages] == [12, 5, 12]
    assert np.array_equal(short.stages[2].points, subject.stages[3].points)
    short = subject_of(dataset, Branch("train", reader), branch, predictor=answering)
    inputs = ["train 2: sample_points", "evaluate 2: sample_points"]
    assert [cloud.stage for cloud in short.stages] == ["raw", *inputs, "prediction"]
    # Those of the order in which sample_points met them, not of the raw one: it is their labels that were scored.
    assert np.array_equal(subject.stages[3].points, subject.stages[1].points)
    assert not np.array_equal(subject.stages[3].points, subject.stages[0].points)


def test_answers_for_points_of_no_stage_are_refused() -> None:
    dataset = Rooms()
    reader = BatchReader(dataset)

    class Odd(Answering):
        def predict(self, model: nn.Module, batch: Batch) -> Mapping[str, Any]:
            return {"probabilities": torch.ones(7, 3), "cloud_offsets": torch.tensor([0, 7])}

    with pytest.raises(DataError, match="predicts 7 points, but no stage of the sample has as many: raw 12"):
        subject_of(dataset, Branch("evaluate", reader), predictor=predictor(Odd([0]), reader))


@pytest.mark.parametrize("is_right", [True, False])
def test_the_class_of_a_whole_cloud_is_told_with_the_true_one(is_right: bool) -> None:
    dataset = shapes()
    names, label = dataset.info.facts["class_names"], int(dataset.strata[0])
    answer = label if is_right else (label + 1) % 12
    reader = BatchReader(dataset)
    task = Answering([answer], num_classes=12, whole=True)
    subject = subject_of(dataset, Branch("evaluate", reader), predictor=predictor(task, reader))
    cloud = subject.stages[-1]
    assert cloud.is_right is is_right
    assert cloud.description == f"predicted {names[answer]} (0.80), {'right' if is_right else f'is {names[label]}'}"
    assert subject.facts["prediction"]["true_class"] == names[label]


def test_what_is_neither_cloud_nor_frame_nor_image_or_no_classes_is_refused() -> None:
    class Words(Rooms):
        def __getitem__(self, key: SampleKey) -> dict[str, Tensor]:
            return {"words": torch.zeros(3)}

    class Poses(Answering):
        def predict(self, model: nn.Module, batch: Batch) -> Mapping[str, Any]:
            return {"joints": torch.zeros(1, 21, 3)}

    kinds = r"boxes in clouds \(boxes, points\), clouds \(points\), depth frames \(.*\), images \(image\)"
    with pytest.raises(ConfigError, match=f"has the fields words; view shows {kinds}"):
        subject_of(Words(), Branch("evaluate", BatchReader(Words())))
    reader = BatchReader(Rooms())
    with pytest.raises(ConfigError, match="the task predicts joints; view shows classes of clouds"):
        subject_of(Rooms(), Branch("evaluate", reader), predictor=predictor(Poses([0]), reader))
