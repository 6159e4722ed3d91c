"""Clouds without a point, in the data or after a transform."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sightline.contract.types import Sample
from sightline.engine.distributed import World
from sightline.store.loading.batch_reader import NamedTransform
from sightline.workbench.check.checks.data.empty_loader import empty_cloud
from sightline.workbench.check.context import Context
from tests.doctor.planting import assert_healthy, caught, make
from tests.doctor.segmenting import Edited, Joined, make_parts, make_rooms


def emptied(*indices: int) -> Any:
    """The set without a point in these samples."""

    def edit(sample: Sample, index: int) -> Sample:
        return {name: value[:0] for name, value in sample.items()} if index in indices else sample

    return lambda inner: Edited(inner, edit)


class Crop:
    """Keeps one half of a room; of every room with an odd number of points nothing."""

    def __call__(self, draws: Any, *, points: Tensor, grey: Tensor, label: Tensor) -> dict[str, Tensor]:
        is_kept = points[0, :, 0] >= 1.5
        if len(is_kept) % 2:
            is_kept = torch.zeros_like(is_kept)
        return {"points": points[:, is_kept], "grey": grey[:, is_kept], "label": label[:, is_kept]}


def test_a_stored_sample_without_points(tmp_path: Path) -> None:
    finding = caught(make_rooms(tmp_path, emptied(5)), "empty-cloud", "data.corrupt_sample")
    assert finding.where.sample == 5
    assert "(0, 3) in sample 5" in finding.measured


def test_equal_neighbours_in_a_batch_that_the_set_makes_itself(tmp_path: Path) -> None:
    """Offsets with equal neighbours are as many as the points: nothing is broken but the cloud is not there."""
    built = make_rooms(tmp_path, lambda inner: Joined(emptied(3, 5, 7)(inner)))
    finding = caught(built, "empty-cloud", "data.corrupt_sample")
    assert finding.where.sample in (3, 5, 7)


def test_an_empty_test_sample(tmp_path: Path) -> None:
    built = make_rooms(tmp_path, wrap_test=emptied(2))
    (finding,) = empty_cloud(Context(built, World()))
    assert (finding.where.dataset or "").endswith("/test")
    assert finding.where.sample == 2


def test_a_crop_that_keeps_nothing(tmp_path: Path) -> None:
    """The stored cloud has points; the transform is named."""
    built = make_rooms(tmp_path, transforms=[NamedTransform("crop", Crop())])
    finding = caught(built, "empty-cloud", "data.sampling")
    assert "equal neighbours at index" in finding.measured
    assert "points before the transforms" in finding.measured


def test_healthy_runs(tmp_path: Path) -> None:
    assert_healthy(make_rooms(tmp_path))
    for built in (make_parts(tmp_path), make(tmp_path)):
        assert empty_cloud(Context(built, World())) == []
