"""Benchmark of in-memory batches, augmented together, against the usual loader of single items."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sightline.bench.case import BenchmarkCase, Implementation, Run
from sightline.data.loading.batch_reader import BatchReader, NamedTransform
from sightline.data.synthetic.synthetic_shapes import SyntheticShapes
from sightline.transforms.point_selection import ShufflePoints
from sightline.transforms.points import Scale, Translate
from sightline.types import SampleKey

BATCH = 32
SCALE, SHIFT = (2 / 3, 3 / 2), 0.2
"""Augmentation of PointNet's and DGCNN's code for ModelNet40; the defaults of `Scale` and `Translate`."""


def cases() -> list[BenchmarkCase]:
    return [
        BenchmarkCase(
            suite="data",
            label="batches_{clouds}x{points}",
            size={"clouds": 2048, "points": 1024},
            quick={"clouds": 64, "points": 128},
            make=_make_clouds,
            baseline=Implementation("per_item_loader", _open_loader, _check_augmentation),
            variants=(Implementation("sightline", _open_reader, _check_augmentation),),
        ),
    ]


class PerItem(Dataset[tuple[np.ndarray, int]]):
    """Usual dataset: one cloud at a time, augmented in NumPy, its points permuted.

    `np.random.shuffle`, which swaps rows one by one, would make it several times slower.
    """

    def __init__(self, clouds: np.ndarray, labels: np.ndarray) -> None:
        self.clouds, self.labels = clouds, labels

    def __len__(self) -> int:
        return len(self.clouds)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        scale = np.random.uniform(*SCALE, size=3)
        shift = np.random.uniform(-SHIFT, SHIFT, size=3)
        cloud = (self.clouds[index] * scale + shift).astype(np.float32)
        return cloud[np.random.permutation(len(cloud))], int(self.labels[index])


class _PointDataset:
    """In-memory data set with the fields of `PerItem`, points and labels, that returns whole batches."""

    def __init__(self, inputs: dict[str, Any]) -> None:
        fields = {name: inputs["shapes"].info.fields[name] for name in ("points", "label")}
        self.info = dataclasses.replace(inputs["shapes"].info, fields=fields, features=())
        self._points, self._label = inputs["points"].numpy(), inputs["label"].numpy()

    def __len__(self) -> int:
        return len(self._points)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        return {"points": self._points[key.index], "label": self._label[key.index]}

    def get_batch(self, keys: Sequence[SampleKey]) -> dict[str, Any]:
        index = np.array([key.index for key in keys])
        return {"points": self._points[index], "label": self._label[index], "sample_index": index}


def _make_clouds(*, clouds: int, points: int) -> dict[str, Any]:
    """Make a data set in memory, and the order in which it is read."""
    shapes = SyntheticShapes(split="train", train_size=clouds, num_points=points)
    everything = shapes.get_batch([SampleKey(index, 0, 0) for index in range(clouds)])
    order = torch.randperm(clouds, generator=torch.Generator().manual_seed(0)).tolist()
    return {"shapes": shapes, "points": everything["points"], "label": everything["label"], "order": order}


@contextmanager
def _open_loader(inputs: dict[str, Any]) -> Iterator[Run]:
    items = PerItem(inputs["points"].numpy(), inputs["label"].numpy())
    loader = DataLoader(items, batch_size=BATCH, sampler=inputs["order"])

    def run() -> dict[str, Tensor]:
        for batch in loader:
            points, label = batch
        return {"points": points, "label": label}

    yield run


@contextmanager
def _open_reader(inputs: dict[str, Any]) -> Iterator[Run]:
    parts: dict[str, Any] = {"scale": Scale(), "translate": Translate(), "shuffle_points": ShufflePoints()}
    transforms = [NamedTransform(name, transform) for name, transform in parts.items()]
    reader = BatchReader(_PointDataset(inputs), transforms)
    order = inputs["order"]

    def run() -> dict[str, Tensor]:
        for start in range(0, len(order), BATCH):
            batch = reader([SampleKey(index, 0, 0) for index in order[start : start + BATCH]])
        return {"points": batch["points"], "label": batch["label"]}

    yield run


def _check_augmentation(inputs: dict[str, Any], expected: dict[str, Tensor], actual: dict[str, Tensor]) -> str | None:
    """Check the last batch: the same clouds, scaled and shifted along the axes by random numbers, points shuffled.

    The random numbers differ, so they are recovered: along an axis, sorted coordinates are a linear function of the
    sorted originals. Tolerances: 1e-5 around the line, and 1e-4 around the recipe's ranges.
    """
    last = inputs["order"][(len(inputs["order"]) - 1) // BATCH * BATCH :]
    originals = inputs["points"][last].double().sort(dim=1).values
    for name, answer in (("the baseline", expected), ("it", actual)):
        if not torch.equal(answer["label"], inputs["label"][last]):
            return f"{name} gives other labels"
        if answer["points"].shape != originals.shape:
            return f"{name} gives the shape {tuple(answer['points'].shape)}, not {tuple(originals.shape)}"
        points = answer["points"].double().sort(dim=1).values
        low, high = originals[:, :1], originals[:, -1:]
        scale = (points[:, -1:] - points[:, :1]) / (high - low)
        shift = points[:, :1] - scale * low
        if float((originals * scale + shift - points).abs().max()) > 1e-5:
            return f"{name} does more to a cloud than to scale and shift it"
        if scale.min() < SCALE[0] - 1e-4 or scale.max() > SCALE[1] + 1e-4 or shift.abs().max() > SHIFT + 1e-4:
            return f"{name} scales or shifts by numbers outside the recipe"
    return None
