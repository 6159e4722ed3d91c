"""NaN or infinity in the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sightline.engine.distributed import World
from sightline.store.loading.batch_reader import NamedTransform
from sightline.workbench.check.checks.data.batches import sample_of_element
from sightline.workbench.check.suite import run_all
from tests.doctor.planting import Wrapped, assert_healthy, caught, make, with_data


class Named(Wrapped):
    def sample_name(self, index: int) -> str:
        return f"shape_{index:04d}.off"


def spoiled(name: str, value: float, index: int) -> Any:
    def edit(batch: dict, keys: Any) -> dict:
        values = batch[name].clone()
        values[batch["sample_index"] == index, 4, 1] = value
        return {**batch, name: values}

    return lambda inner: Named(inner, edit)


def vanish(draws: Any, *, points: Tensor) -> dict[str, Tensor]:
    """A transform that divides by an extent that may be zero: here it always is."""
    flat = points * torch.tensor([1.0, 1.0, 0.0])
    return {"points": flat / (flat.amax(dim=1, keepdim=True) - flat.amin(dim=1, keepdim=True))}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_number_in_one_sample(tmp_path: Path, value: float) -> None:
    built = make(tmp_path)
    index = int(built.data.train.indices[30])
    finding = caught(with_data(built, spoiled("points", value, index)), "non-finite-data", "data.corrupt_sample")
    assert finding.where.sample == index
    assert f"points[4, 1] of sample {index} (shape_{index:04d}.off)" in finding.measured


def test_a_field_that_nothing_reads(tmp_path: Path) -> None:
    built = make(tmp_path)
    built = with_data(built, spoiled("normals", float("nan"), int(built.data.train.indices[0])))
    assert_healthy(built)
    assert "non-finite-data" in {finding.code for finding in run_all(built, World())}


def test_a_transform_that_divides_by_zero(tmp_path: Path) -> None:
    built = with_data(
        make(tmp_path), lambda inner: Wrapped(inner, lambda batch, keys: None), [NamedTransform("vanish", _Vanish())]
    )
    finding = caught(built, "non-finite-data", "data.normalisation")
    assert finding.where.sample in built.data.train.indices
    assert "the sample is finite" in finding.measured


class _Vanish:
    __call__ = staticmethod(vanish)


def test_rows_are_found_by_offsets() -> None:
    """Clouds of 2, 0 and 3 points: row 3 is the second point of the third cloud."""
    batch = {"sample_index": torch.tensor([7, 8, 9]), "offsets": torch.tensor([0, 2, 2, 5])}
    assert sample_of_element(batch, torch.zeros(5, 3), (3, 0)) == 9
    assert sample_of_element(batch, torch.zeros(5, 3), (1, 0)) == 7
    assert sample_of_element(batch, torch.zeros(3, 4), (1, 0)) == 8
    assert sample_of_element(batch, torch.zeros(6, 4), (1, 0)) is None
