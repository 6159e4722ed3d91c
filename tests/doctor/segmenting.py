"""Small segmentation runs of toy models on embedded and on toy data, for planting bugs and for healthy controls."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from sightline.contract import registry
from sightline.contract.binding import AvailableKeys, bind
from sightline.contract.dataset import Dataset
from sightline.contract.types import DataInfo, Field, Sample, SampleKey
from sightline.engine.build import TrainingSetup, build_evaluator
from sightline.engine.evaluate import BoundMetric
from sightline.engine.run_data import Data, DataSubset
from sightline.parts.tasks.segment import Segment
from sightline.store.loading.batch_reader import BatchReader
from sightline.store.loading.transform_pipeline import NamedTransform
from tests.doctor.planting import losses_of, make, subject_of, with_evaluators

PARTS = (
    "task={name: segment}",
    "data={name: synthetic_shapes, target: parts, num_points: 64, train_size: 240, test_size: 60}",
    "metrics=[{name: part_iou}]",
    "evaluate.metric=instance_miou",
)
CLASS_NAMES = ("floor", "wall", "ceiling", "chair")


class Logits(TypedDict):
    """What classifiers and segmenting networks return."""

    logits: Tensor


class PerPoint(nn.Module):
    """Answers for each point alone, in whichever form the clouds come; hears the category where it is told one."""

    def __init__(self, *, in_channels: int, num_classes: int, width: int = 16) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(in_channels, width), nn.Linear(width, num_classes)

    def forward(self, *, points: Tensor, features: Tensor | None = None) -> Logits:
        channels = points if features is None else torch.cat([points, features], dim=-1)
        return {"logits": self.last(torch.tanh(self.first(channels)))}


class OfCategory(PerPoint):
    """Adds an embedding of the category, of clouds of one size."""

    def __init__(self, *, in_channels: int, num_classes: int, num_categories: int) -> None:
        super().__init__(in_channels=in_channels, num_classes=num_classes)
        self.table = nn.Linear(num_categories, num_classes, bias=False)

    def forward(self, *, points: Tensor, category: Tensor) -> Logits:
        told = nn.functional.one_hot(category.long(), self.table.in_features).to(points.dtype)
        return {"logits": super().forward(points=points)["logits"] + self.table(told)[:, None]}


def make_parts(folder: Path, *overrides: str, model: nn.Module | None = None) -> TrainingSetup:
    """A run on the parts of the embedded shapes, by default with a model that hears the category."""
    return _with_task(make(folder, *PARTS, *overrides), model)


class Rooms(Dataset):
    """Ragged rooms of a floor, a wall, a ceiling and chairs, with grey values; z is up."""

    def __init__(self, count: int, *, seed: int, split_sizes: dict[str, int]) -> None:
        point: dict[str, Any] = {"collate": "concatenate"}
        fields = {
            "points": Field("points 3", "float32", "m", low=-10, high=10, **point),
            "grey": Field("points 1", "float32", "", low=0, high=1, **point),
            "label": Field("points", "int64", "class", low=0, high=3, **point),
        }
        facts = {"num_classes": 4, "class_names": CLASS_NAMES, "in_channels": 4, "up_axis": "z"}
        self.info = DataInfo(facts, fields, split_sizes, features=("grey",))
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, key: SampleKey) -> Sample:
        draw = np.random.default_rng((self.seed, key.index))
        size = int(draw.integers(40, 90))
        label = np.concatenate([np.arange(4), draw.integers(0, 4, size - 4)])
        points = draw.uniform(0, 3, size=(size, 3))
        points[:, 2] = np.select([label == 0, label == 2, label == 3], [0.0, 3.0, points[:, 2] / 4], points[:, 2])
        grey = draw.uniform(0, 1, size=(size, 1))
        return {
            "points": torch.from_numpy(points.astype(np.float32)),
            "grey": torch.from_numpy(grey.astype(np.float32)),
            "label": torch.from_numpy(label),
        }


class Edited(Dataset):
    """A set whose samples pass through `edit(sample, index)`; `info` takes changes of its facts and fields."""

    def __init__(
        self, inner: Any, edit: Callable[[Sample, int], Sample] = lambda sample, index: sample, **info: Any
    ) -> None:
        facts = {**inner.info.facts, **info.pop("facts", {})}
        self.inner, self.edit = inner, edit
        self.info = dataclasses.replace(inner.info, facts=facts, **info)

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, key: SampleKey) -> Sample:
        return self.edit(self.inner[key], key.index)


class Joined(Edited):
    """A set that makes its batches itself; `spoil` is given the offsets that are right."""

    def __init__(self, inner: Any, spoil: Callable[[Tensor], Tensor] = lambda offsets: offsets) -> None:
        super().__init__(inner)
        self.spoil = spoil

    def collate(self, samples: list[Sample]) -> dict[str, Any]:
        sizes = torch.tensor([0, *(len(sample["points"]) for sample in samples)])
        names = samples[0].keys() - {"sample_index"}
        joined = {name: torch.cat([sample[name] for sample in samples]) for name in names}
        return {**joined, "offsets": self.spoil(sizes.cumsum(0))}


def make_rooms(
    folder: Path,
    wrap: Callable[[Any], Any] = lambda dataset: dataset,
    *,
    transforms: Sequence[NamedTransform] = (),
    model: nn.Module | None = None,
) -> TrainingSetup:
    """A run on ragged rooms."""
    sizes = {"train": 24, "test": 12}
    first, second = (wrap(Rooms(size, seed=seed, split_sizes=sizes)) for seed, size in enumerate(sizes.values(), 1))
    train = DataSubset(first, np.arange(24), BatchReader(first, transforms), "train")
    test = DataSubset(second, np.arange(12), BatchReader(second), "test")
    data = Data(train, test, test, dict(first.info.facts))
    overrides = ("task={name: segment}", "metrics=[{name: iou}]", "evaluate.metric=miou", "train.batch_size=6")
    return _with_task(make(folder, *overrides, data=data), model)


def with_metric(built: TrainingSetup, metric: Any) -> TrainingSetup:
    """The run with another metric in the place of its own."""
    task = built.job.task
    offers = AvailableKeys("data", built.data.train.reader.keys), AvailableKeys("task", task.predicts)  # type: ignore[attr-defined]
    meter = BoundMetric(metric, bind(metric.update, *offers, owner="metric", exclude=("state",)))
    return with_evaluators(built, metrics=[meter])


def _with_task(built: TrainingSetup, model: nn.Module | None) -> TrainingSetup:
    """The run with a toy model; the config's own was only built."""
    facts = built.data.facts
    widths = {"in_channels": facts["in_channels"], "num_classes": facts["num_classes"]}
    if model is None:
        torch.manual_seed(0)
        is_told = "category" in built.data.train.reader.keys
        model = OfCategory(**widths, num_categories=facts["num_categories"]) if is_told else PerPoint(**widths)
    task = Segment(losses=losses_of(built), **subject_of(built, model))  # type: ignore[arg-type]
    optimizer = registry.optimizers.build(built.config.optimizer, facts=facts).build(model)
    job = dataclasses.replace(built.job, model=model, task=task, optimizer=optimizer)
    evaluators = {
        name: build_evaluator(built.config, part, task, built.selection_evaluator.metrics)
        for name, part in (("selection_evaluator", built.data.selection), ("test_evaluator", built.data.test))
    }
    return dataclasses.replace(built, job=job, **evaluators)
