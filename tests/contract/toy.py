"""A toy task, its data and its metric, as the contract tests run one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.contract.binding import AvailableKeys, bind, declared_outputs
from sightline.contract.dataset import Dataset
from sightline.contract.loss import Loss
from sightline.contract.metric import MeanMetric
from sightline.contract.types import DataInfo, Field, SampleKey
from sightline.engine.evaluate import BoundMetric
from sightline.engine.learnt_losses import LearntLosses
from sightline.parts.tasks.supervised import Supervised
from sightline.store.loading.batch_reader import BatchReader
from sightline.store.loading.transform_pipeline import NamedTransform

NUM_SAMPLES = 43
NUM_CLASSES = 3


class Logits(TypedDict):
    logits: Tensor


class CrossEntropySum(Loss):
    """Ignores class -1 and weighs classes, so that its counts are not whole numbers."""

    def __init__(self, weights: tuple[float, ...] = (1.0, 1.0, 1.0)) -> None:
        super().__init__()
        self.register_buffer("weights", torch.tensor(weights, dtype=torch.float64))

    def count(self, *, label: Tensor) -> Tensor:
        return self.weights[label[label >= 0]].sum()

    def forward(self, *, logits: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(logits, label, weight=self.weights, ignore_index=-1, reduction="sum")


class Hits(MeanMetric):
    """The share of right arg-max answers, of samples or of their pixels with a label."""

    figures = ("accuracy",)

    def values(self, *, logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        return logits.argmax(1) == label, label >= 0


@dataclass(frozen=True)
class Toy:
    """A model, a task and data; the data set makes sample i from its generator alone."""

    model: Callable[[], nn.Module]
    task: Callable[[nn.Module, frozenset[str]], Any]
    dataset: Any
    weights: dict[str, float]
    metrics: tuple[Callable[[], Any], ...] = (Hits,)
    transforms: tuple[NamedTransform, ...] = ()
    predicts: frozenset[str] = frozenset()

    @property
    def reader(self) -> BatchReader:
        return BatchReader(self.dataset, self.transforms)


class Made(Dataset):
    """A data set whose samples are drawn from (`seed`, index), whatever the epoch."""

    def __init__(
        self,
        make: Callable[[np.random.Generator], dict[str, Any]],
        /,
        num_samples: int = NUM_SAMPLES,
        seed: int = 7,
        **fields: Field,
    ) -> None:
        self.make = make
        self.num_samples = num_samples
        self.seed = seed
        self.info = DataInfo(facts={}, fields=fields, split_sizes={"train": num_samples})

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        return self.make(SampleKey(key.index, 0, self.seed).generator())


def supervised(
    losses: dict[str, Callable[[], Loss]], task: type[Supervised] = Supervised
) -> Callable[[nn.Module, frozenset[str]], Supervised]:
    def make(model: nn.Module, keys: frozenset[str]) -> Supervised:
        outputs = AvailableKeys("model", declared_outputs(model.forward, owner="model"))
        built = {name: loss().double() for name, loss in losses.items()}
        made = task(model=model, losses=built, batch_keys=AvailableKeys("data", keys), output_keys=outputs)
        made.learnt = LearntLosses(built)  # type: ignore[attr-defined]
        return made

    return make


def meters(toy: Toy, model: nn.Module, reader: BatchReader) -> list[BoundMetric]:
    task, outputs = toy.task(model, reader.keys), declared_outputs(model.forward, owner="model") | toy.predicts
    offers = AvailableKeys("data", reader.keys), AvailableKeys("model", outputs)
    offers = *offers, AvailableKeys("task", task.context_keys)
    metrics = [make() for make in toy.metrics]
    return [BoundMetric(each, bind(each.update, *offers, owner="metric", exclude=("state",))) for each in metrics]


def field(collate: str = "stack") -> Field:
    return Field("any", "float64", collate=collate)  # type: ignore[arg-type]
