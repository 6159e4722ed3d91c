"""Small runs that compare two clouds, and a picture, of every object, and ways to plant bugs in them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from sightline.areas.contrast.crosspoint import CrossPointOutput
from sightline.areas.contrast.task import Contrast
from sightline.contract.types import ComponentConfig, Field, SampleKey
from sightline.engine.build import TrainingSetup, build_transforms
from sightline.parts.losses.embeddings import CrossModal, IntraModal
from tests.doctor.planting import make, subject_of, with_data, with_evaluators

CONFIG = """\
data: {name: synthetic_shapes, train_size: 120, test_size: 24, num_points: 64}
task: {name: contrast}
model: {name: intrapoint, points: {name: dgcnn, num_neighbours: 8, embedding: 32}, embedding: 16}
losses: [{name: intra_modal}]
metrics: [{name: pairs}]
transforms:
  train: [{name: two_views, each: [{name: rotate, axis: up}, {name: jitter}]}]
  evaluate: [{name: two_views, each: [{name: rotate, axis: up}, {name: jitter}]}]
optimizer: {name: adam, lr: 1e-3}
train: {epochs: 2, batch_size: 16}
evaluate: {metric: uniformity}
"""

STRONG = (
    "transforms.train=[{name: two_views, each: [{name: normalize_unit_sphere}, "
    "{name: scale, low: 0.5, high: 2.0, isotropic: true}, {name: rotate, axis: up}, "
    "{name: translate, max_shift: 0.5, relative: true}, {name: jitter}, {name: drop_points, max_ratio: 0.875}]}]"
)
"""The six steps of CrossPoint, an override."""


def make_pairs(folder: Path, *overrides: str) -> TrainingSetup:
    """A small run, built from a real config file."""
    return make(folder, *overrides, text=CONFIG)


def with_task(
    built: TrainingSetup, *, model: nn.Module | None = None, losses: Mapping[str, Any] | None = None
) -> TrainingSetup:
    """The run with another model, or other losses under the names given."""
    model = built.job.model if model is None else model
    losses = {"intra_modal": IntraModal()} if losses is None else losses
    task = Contrast(losses=losses, **subject_of(built, model))
    optimizer = torch.optim.SGD([{"params": list(model.parameters()), "lr": 0.1, "base_lr": 0.1}])
    weights = dict.fromkeys(losses, 1.0)
    job = dataclasses.replace(built.job, model=model, task=task, optimizer=optimizer, loss_weights=weights)
    config = dataclasses.replace(built.config, losses=tuple(ComponentConfig(name) for name in losses))
    return with_evaluators(dataclasses.replace(built, job=job, config=config), task=task, loss_names=tuple(losses))


class Pictured:
    """A set whose samples have a picture each, 8 x 8, all its views in `views`; `edit(batch, keys)` plants bugs."""

    def __init__(self, inner: Any, edit: Callable[[dict[str, Any], Sequence[SampleKey]], Any] | None = None) -> None:
        self.inner = inner
        self.edit = edit
        self.views = Shelf([f"object_{index}" for index in range(len(inner))])
        self.pictures = SimpleNamespace(views=self.views, background=None)
        fields = {**inner.info.fields, "image": Field("height width 3", "uint8", "", "", 0, 255)}
        self.info = dataclasses.replace(inner.info, fields=fields)

    def __len__(self) -> int:
        return len(self.inner)

    def sample_name(self, index: int) -> str:
        return f"object_{index}"

    def get_batch(self, keys: Sequence[SampleKey]) -> dict[str, Any]:
        views = [int(key.generator().integers(3)) for key in keys]
        images = [
            torch.from_numpy(self.views.image(self.sample_name(key.index), view))
            for key, view in zip(keys, views, strict=True)
        ]
        batch = {**self.inner.get_batch(keys), "image": torch.stack(images)}
        return batch if self.edit is None else self.edit(batch, keys)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        return {name: value[0] for name, value in self.get_batch([key]).items() if name != "sample_index"}


class Shelf:
    """A stand-in for a view store: three views of every object, drawn from its name."""

    root = "shelf"

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)

    def row_indices(self, names: Sequence[str], *, set_name: str) -> Any:
        return [self.names.index(name) for name in names]

    def counts(self, rows: Any) -> list[int]:
        return [3 for _ in rows]

    def image(self, name: str, view: int, *, background: str | None = None) -> Any:
        generator = torch.Generator().manual_seed(self.names.index(name) * 3 + view)
        return torch.randint(0, 256, (8, 8, 3), generator=generator, dtype=torch.uint8).numpy()


class Both(nn.Module):
    """A cloud's mean and its spread, and a picture's mean, through a linear layer each."""

    def __init__(self) -> None:
        super().__init__()
        self.points = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16))
        self.images = nn.Linear(8 * 8 * 3, 16)

    def forward(self, *, points: Tensor, other_points: Tensor, image: Tensor) -> CrossPointOutput:
        first, second = (self.points(torch.cat([p.mean(1), p.std(1)], 1)) for p in (points, other_points))
        return {"first": first, "second": second, "pictured": self.images(image.flatten(1).float() / 255 - 0.5)}


def make_pictured(folder: Path, edit: Any = None, losses: Mapping[str, Any] | None = None) -> TrainingSetup:
    """A run on clouds and pictures, with both losses."""
    built = make_pairs(folder)
    views = [built.config.transforms.train, built.config.transforms.evaluate]
    assert all(len(each) == 1 for each in views)
    transforms = build_transforms(built.config.transforms.train, built.data.facts)
    pictured = with_data(built, lambda inner: Pictured(inner, edit), transforms)
    data = dataclasses.replace(pictured.data, test=pictured.data.selection)  # clouds of the test part have no pictures
    pictured = dataclasses.replace(pictured, data=data, test_evaluator=pictured.selection_evaluator)
    both = {"intra_modal": IntraModal(), "cross_modal": CrossModal()} if losses is None else losses
    torch.manual_seed(0)
    return with_task(pictured, model=Both(), losses=both)
