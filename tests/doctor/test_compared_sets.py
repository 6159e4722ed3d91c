"""Training and evaluation sets that differ in up axis, scale or channels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

import sightline
from sightline.contract.transform import Transform
from sightline.contract.types import DataInfo
from sightline.doctor.finding import Finding
from sightline.engine.build import TrainingSetup
from sightline.engine.distributed import World
from sightline.store.loading.batch_reader import BatchReader
from sightline.store.loading.transform_pipeline import NamedTransform
from sightline.workbench.check.context import Context
from sightline.workbench.check.other_set_rules import compare_sets, sample_clouds
from sightline.workbench.check.run_subject import examine_run
from sightline.workbench.check.suite import all_rules
from tests.cases import run_each
from tests.doctor.planting import Wrapped, make, with_data
from tests.doctor.segmenting import Edited, make_rooms


def on_test(built: TrainingSetup, wrap: Callable[[Any], Any]) -> TrainingSetup:
    """The run with another test set."""
    dataset = wrap(built.data.test.dataset)
    part = dataclasses.replace(built.data.test, dataset=dataset, reader=BatchReader(dataset))
    return dataclasses.replace(built, data=dataclasses.replace(built.data, test=part))


def declared(**info: Any) -> Callable[[Any], Any]:
    """The set that says something else of itself."""
    return lambda inner: Wrapped(inner, lambda batch, keys: batch, **info)


def unbounded(inner: Any, unit: str = "m") -> dict[str, Any]:
    """Fields of a set whose coordinates promise no range, as in metres of a site."""
    points = dataclasses.replace(inner.info.fields["points"], unit=unit, low=None, high=None)
    return {**inner.info.fields, "points": points}


def scaled(factor: float, unit: str = "m") -> Callable[[Any], Any]:
    edit = lambda batch, keys: {**batch, "points": batch["points"] * factor}  # noqa: E731
    return lambda inner: Wrapped(inner, edit, fields=unbounded(inner, unit))


def in_metres(folder: Path) -> TrainingSetup:
    """A run with a training set that promises no range."""
    return with_data(make(folder), scaled(1.0))


def judge(built: TrainingSetup) -> list[Finding]:
    """What the rules of runs find of two sets."""
    all_rules()
    return [each for each in examine_run(Context(built, World()))[1] if each.code == "dataset-mismatch"]


def site(inner: Any) -> Edited:
    return Edited(inner, fields=unbounded(inner))


class Crop(Transform):
    """Training on a tenth of each room."""

    def __call__(self, draws: Any, *, points: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"points": points * 0.1}


HEALTHY: dict[str, Callable[[Path], TrainingSetup]] = {
    "as it is": lambda folder: make(folder, "data.normals=file"),
    "scaled at random": lambda folder: make(folder, "transforms.train=[{name: scale}, {name: rotate}]"),
    "crops of rooms": lambda folder: make_rooms(folder, site, transforms=[NamedTransform("crop", Crop())]),
}
OTHERS: dict[str, tuple[str, str, Callable[[Path], TrainingSetup]]] = {
    "y up, declared": (
        "error",
        "cfg.axis_swap",
        lambda folder: on_test(make(folder), declared(facts={"up_axis": "y"})),
    ),
    "millimetres": ("warning", "data.normalisation", lambda folder: on_test(in_metres(folder), scaled(1000.0))),
    "millimetres, declared": (
        "error",
        "data.normalisation",
        lambda folder: on_test(in_metres(folder), scaled(1000.0, unit="mm")),
    ),
    "no normals": (
        "error",
        "cfg.contract",
        lambda folder: on_test(make(folder, "data.normals=file"), declared(features=(), facts={"in_channels": 3})),
    ),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_sets_that_are_alike(name: str, tmp_path: Path) -> None:
    assert judge(HEALTHY[name](tmp_path)) == []


@pytest.mark.parametrize("name", OTHERS)
def test_sets_that_differ(name: str, tmp_path: Path) -> None:
    severity, cause, make_run = OTHERS[name]
    (finding,) = judge(make_run(tmp_path))
    assert (finding.severity, finding.cause, finding.where.config_path) == (severity, cause, "data")


def test_without_clouds_what_is_declared_is_compared(tmp_path: Path) -> None:
    built = make(tmp_path)
    ours = sample_clouds(built.data.train, built.config)._replace(sizes=())
    other = sample_clouds(built.data.test, built.config)
    assert compare_sets(ours, other) == []
    info: DataInfo = dataclasses.replace(other.info, facts={**other.info.facts, "up_axis": "x"})
    (finding,) = compare_sets(ours, other._replace(info=info))
    assert (finding.severity, finding.cause) == ("error", "cfg.axis_swap")


class Scaled(Dataset[tuple[Tensor, Tensor]]):
    """Rows of two classes, which a transform may change."""

    def __init__(self, transform: Callable[[Tensor], Tensor] | None) -> None:
        self.labels = torch.arange(80) % 2
        self.rows = torch.randn(80, 4, generator=torch.Generator().manual_seed(0)) + self.labels[:, None]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        row = self.rows[index]
        return row if self.transform is None else self.transform(row), self.labels[index]


def jitter(row: Tensor) -> Tensor:
    return row + 0.1 * torch.randn(4)


@run_each(
    "training, evaluation, is_said",
    [
        (jitter, None, True),  # the transform of training holds for the evaluation, too
        (torch.neg, None, True),  # that of the evaluation was set last
        (jitter, torch.neg, False),
        (None, None, False),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_parts_of_one_object_have_one_transform(training: Any, evaluation: Any, is_said: bool) -> None:
    """As `random_split` leaves them; a set of its own for each part has the transform of its own."""
    one = Scaled(training)
    other = Scaled(evaluation) if evaluation is not None else one
    loaders = [DataLoader(Subset(each, range(*ends)), 8) for each, ends in ((one, (0, 64)), (other, (64, 80)))]
    model, loss = nn.Linear(4, 2), nn.CrossEntropyLoss()
    report = sightline.check(model, loss, loaders[0], evaluation=loaders[1])
    with sightline.watch(model, check=False) as watch:
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for inputs, labels in loaders[0]:
            optimizer.zero_grad()
            loss(model(inputs), labels).backward()
            optimizer.step()
        model.eval()
        for inputs, _ in loaders[1]:
            model(inputs)
    for findings in (report.findings, watch.report.findings):
        notes = [each.severity for each in findings if each.code == "shared-transform"]
        assert notes == ["note"] * is_said
