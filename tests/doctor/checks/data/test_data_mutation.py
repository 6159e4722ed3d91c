"""Samples that change by being read."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sightline.contract.types import SampleKey
from sightline.engine.build import TrainingSetup
from sightline.engine.distributed import World
from sightline.store.loading.batch_reader import NamedTransform
from sightline.workbench.check.checks.data.data_mutation import data_mutation
from sightline.workbench.check.context import Context
from tests.doctor.planting import Wrapped, assert_healthy, caught, make, with_data


class Stored:
    """A set that holds its clouds in memory, as NumPy or torch arrays, and gives them one at a time."""

    def __init__(self, inner: Any, kind: str = "numpy") -> None:
        self.info = dataclasses.replace(inner.info, fields={k: inner.info.fields[k] for k in ("points", "label")})
        everything = inner.get_batch([SampleKey(index, 0, 0) for index in range(len(inner))])
        points = everything["points"] * 0.9 + 0.05
        self.clouds: Any = points if kind == "torch" else points.numpy().copy()
        self.strata = inner.strata

    def __len__(self) -> int:
        return len(self.strata)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        return {"points": self.cloud(key), "label": int(self.strata[key.index])}

    def cloud(self, key: SampleKey) -> Any:
        return self.clouds[key.index].copy() if isinstance(self.clouds, np.ndarray) else self.clouds[key.index].clone()


class CentredInPlace(Stored):
    def cloud(self, key: SampleKey) -> Any:
        cloud = self.clouds[key.index]
        cloud -= cloud.mean(0)
        return cloud + 0


class ScaledInPlace(Stored):
    """Boxes scaled without a copy: every read scales the stored annotation again."""

    def cloud(self, key: SampleKey) -> Any:
        cloud = self.clouds[key.index]
        cloud *= 0.99
        return cloud + 0


class Counting(Stored):
    """Nothing stored changes but a counter, which leaks into the sample."""

    reads = 0

    def cloud(self, key: SampleKey) -> Any:
        self.reads += 1
        return super().cloud(key) * (1 + 1e-3 * self.reads)


class Lazy(Stored):
    """Makes each cloud on its first read and remembers it: legal, nothing that a key gives ever changes."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.made = np.zeros_like(self.clouds)
        self.is_made = np.zeros(len(self), dtype=bool)

    def cloud(self, key: SampleKey) -> Any:
        if not self.is_made[key.index]:
            self.made[key.index] = self.clouds[key.index] * 0.5
            self.is_made[key.index] = True
        return self.made[key.index].copy()


class OwnGenerator(Stored):
    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.generators = [np.random.default_rng(0), torch.Generator().manual_seed(3)]

    def cloud(self, key: SampleKey) -> Any:
        return (
            super().cloud(key)
            * self.generators[0].uniform(0.5, 1)
            * torch.rand((), generator=self.generators[1]).item()
        )


class FromGlobalState(Stored):
    def cloud(self, key: SampleKey) -> Any:
        return super().cloud(key) * np.random.uniform(0.5, 1)


class Views(Stored):
    """Whole batches that are views of what is stored, where the keys allow it."""

    def get_batch(self, keys: Any) -> dict[str, Any]:
        first = keys[0].index
        if [key.index for key in keys] == list(range(first, first + len(keys))):
            points = torch.from_numpy(self.clouds[first : first + len(keys)])
        else:
            points = torch.from_numpy(self.clouds[[key.index for key in keys]])
        index = torch.tensor([key.index for key in keys])
        return {"points": points, "label": torch.from_numpy(self.strata[index.numpy()]), "sample_index": index}


class ShiftInPlace:
    """A transform that edits what it is given."""

    def __call__(self, draws: Any, *, points: Tensor) -> dict[str, Tensor]:
        return {"points": points.add_(0.001)}


def line_of(function: Any, text: str) -> int:
    lines, start = inspect.getsourcelines(function)
    return start + next(place for place, line in enumerate(lines) if text in line)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize(("cls", "text"), [(CentredInPlace, "cloud -="), (ScaledInPlace, "cloud *=")])
def test_the_writer_is_named(tmp_path: Path, kind: str, cls: Any, text: str) -> None:
    built = with_data(make(tmp_path), lambda inner: cls(inner, kind))
    finding = caught(built, "data-mutation", "data.item_mutation")
    assert (finding.where.file, finding.where.line) == (__file__, line_of(cls.cloud, text))
    assert finding.evidence["field"] == "points"
    assert "stored and changed: clouds" in finding.measured
    assert finding.where.sample is not None
    assert "sample" in finding.measured


def test_the_size_of_the_change_is_told(tmp_path: Path) -> None:
    """0.99 of a number of at most 1 differs from it by at most 0.01, and by 0.0099 after one more read."""
    finding = caught(with_data(make(tmp_path), ScaledInPlace), "data-mutation", "data.item_mutation")
    told = finding.measured.split("differ in ")[1]
    assert 0 < float(told.split("by ")[1].split(" at most")[0]) <= 0.01


def test_a_transform_that_writes_into_views(tmp_path: Path) -> None:
    transforms = [NamedTransform("shift_in_place", ShiftInPlace())]
    finding = caught(with_data(make(tmp_path), Views, transforms), "data-mutation", "data.item_mutation")
    assert (finding.where.file, finding.where.line) == (__file__, line_of(ShiftInPlace, "add_"))


def test_a_counter(tmp_path: Path) -> None:
    finding = caught(with_data(make(tmp_path), Counting), "data-mutation", "data.item_mutation")
    assert "although no stored array does" in finding.summary
    assert "data.duplicate_randomness" in finding.alternatives


@pytest.mark.parametrize("cls", [Stored, Lazy, Views])
def test_healthy_sets(tmp_path: Path, cls: Any) -> None:
    assert_healthy(with_data(make(tmp_path), cls))


@pytest.mark.parametrize("cls", [OwnGenerator, FromGlobalState])
def test_random_states_are_put_back_before_each_read(tmp_path: Path, cls: Any) -> None:
    assert data_mutation(Context(with_data(make(tmp_path), cls), World())) == []


def test_generators_and_flags_are_left_as_they_were(tmp_path: Path) -> None:
    from sightline.workbench.check.suite import run_all

    built = with_data(make(tmp_path), OwnGenerator)
    dataset = built.data.train.dataset
    before = dataset.generators[0].bit_generator.state, dataset.generators[1].get_state()
    run_all(built, World())
    assert dataset.generators[0].bit_generator.state == before[0]
    assert torch.equal(dataset.generators[1].get_state(), before[1])


def test_stored_arrays_are_writable_again(tmp_path: Path) -> None:
    built: TrainingSetup = with_data(make(tmp_path), CentredInPlace)
    data_mutation(Context(built, World()))
    assert built.data.train.dataset.clouds.flags.writeable


def test_the_changed_values_are_counted(tmp_path: Path) -> None:
    def edit(batch: dict, keys: Any) -> dict:
        edit.calls += 1  # type: ignore[attr-defined]
        points = batch["points"].clone()
        points[:, 3, 1] += 1e-3 * edit.calls  # type: ignore[attr-defined]
        return {**batch, "points": points}

    edit.calls = 0  # type: ignore[attr-defined]
    finding = data_mutation(Context(with_data(make(tmp_path), lambda inner: Wrapped(inner, edit)), World()))[0]
    assert "1 of 96 values" in finding.measured
