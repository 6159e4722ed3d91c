"""Labels in another order than their points, and rows that fill clouds up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sightline.config import read_config
from sightline.engine.build import TrainingSetup, build
from sightline.engine.distributed import World
from sightline.workbench.check.checks.data.point_labels import padded_points, scattered_labels
from sightline.workbench.check.context import Context
from sightline.workbench.check.core.sample_statistics import count_padding
from tests.conftest import ROOT
from tests.doctor.planting import Wrapped, assert_complete, caught, make, with_data
from tests.doctor.segmenting import make_parts, make_rooms
from tests.marks import long_but

Batch = dict[str, Any]


def edited(folder: Path, change: Callable[[Batch], Batch], seed: int = 0, **facts: Any) -> TrainingSetup:
    """A run on parts, whose batches of training have other fields."""
    built = make_parts(folder, f"seed={seed}", f"data.data_seed={seed}")
    return with_data(built, lambda inner: Wrapped(inner, lambda batch, keys: batch | change(batch), facts=facts))


def reorder(label: Tensor) -> Tensor:
    return label[:, torch.randperm(label.shape[1], generator=torch.Generator().manual_seed(1))]


SCATTERED: dict[str, Callable[[Batch], Batch]] = {
    "from the end": lambda batch: {"label": batch["label"].flip(1)},
    "in no order": lambda batch: {"label": reorder(batch["label"])},
    "seven points on": lambda batch: {"label": batch["label"].roll(7, 1)},
    "points sorted, labels not": lambda batch: {"points": batch["points"].sort(1).values},
}


@pytest.mark.parametrize("seed", long_but([0], [0, 1, 2]))
@pytest.mark.parametrize("name", SCATTERED)
def test_labels_in_another_order(tmp_path: Path, name: str, seed: int) -> None:
    (finding,) = scattered_labels(Context(edited(tmp_path, SCATTERED[name], seed), World(), forward_s=1.5))
    assert (finding.cause, finding.severity) == ("data.pairing", "warning")
    assert finding.value < finding.bound  # type: ignore[operator]


@pytest.mark.parametrize("seed", long_but([0], [0, 1, 2]))
def test_labels_in_order(tmp_path: Path, seed: int) -> None:
    assert scattered_labels(Context(make_parts(tmp_path, f"seed={seed}", f"data.data_seed={seed}"), World())) == []
    assert scattered_labels(Context(make_rooms(tmp_path), World())) == []
    assert scattered_labels(Context(make(tmp_path), World())) == []


def test_labels_that_nothing_reads_may_be_left_behind() -> None:
    """Two views of a cloud are learnt from without labels; where they drop points, the first one is repeated."""
    words = ("data.train_size=96", "data.test_size=48", "data.num_points=128", "train.batch_size=16")
    config = read_config(ROOT / "configs/contrast/synthetic_shapes_intrapoint_parts.yaml", words)
    context = Context(build(config, World()), World(), forward_s=1.5)
    assert "label" in context.dry_run.batch
    assert scattered_labels(context) == []


def test_clouds_of_one_part_say_nothing(tmp_path: Path) -> None:
    built = edited(tmp_path, lambda batch: {"label": batch["label"][:, :1].expand_as(batch["label"]).clone()})
    assert scattered_labels(Context(built, World())) == []


def fill_up(value: Callable[[Tensor], Tensor | float], count: int = 8) -> Callable[[Batch], Batch]:
    """Fill the ends of clouds of even indices up with a value or a point."""

    def change(batch: Batch) -> Batch:
        is_padded = (torch.arange(batch["points"].shape[1]) >= batch["points"].shape[1] - count)[:, None]
        is_padded = is_padded & (batch["sample_index"] % 2 == 0)[:, None, None]
        return {"points": torch.where(is_padded, value(batch["points"]), batch["points"])}

    return change


PADDED = {
    "zeros": fill_up(lambda points: 0.0),
    "a constant": fill_up(lambda points: -1.0),
    "the last point": fill_up(lambda points: points[:, -9:-8] + 0.001),
}


@pytest.mark.parametrize("seed", long_but([0], [0, 1, 2]))
@pytest.mark.parametrize("name", PADDED)
def test_rows_that_fill_up(tmp_path: Path, name: str, seed: int) -> None:
    finding, *_ = padded_points(Context(edited(tmp_path, PADDED[name], seed), World(), forward_s=1.5))
    assert_complete(finding)
    assert (finding.cause, finding.severity) == ("data.padding", "warning")
    assert "the last 8 points" in finding.measured


def test_one_finding_names_all_parts(tmp_path: Path) -> None:
    found = caught(edited(tmp_path, PADDED["zeros"]), "padded-points", "data.padding", "warning")
    assert "labels that the loss counts" in found.measured


def test_padding_with_the_ignored_label_is_in_order(tmp_path: Path) -> None:
    def change(batch: Batch) -> Batch:
        padded = PADDED["zeros"](batch)
        return {**padded, "label": torch.where((padded["points"] == 0).all(-1), -1, batch["label"])}

    assert padded_points(Context(edited(tmp_path, change, ignore_index=-1), World())) == []


def test_points_drawn_twice_are_no_padding() -> None:
    """Clouds that are drawn with replacement, or whose dropped points are set to the first one."""
    points = torch.rand(64, 3)
    assert count_padding(points) == 0
    dropped = torch.where(torch.arange(64)[:, None] % 3 > 0, points[:1], points)
    assert count_padding(dropped) == 0
    assert count_padding(torch.cat([dropped, dropped[:1], dropped[:1]])) == 0
    assert count_padding(torch.cat([points, points[-1:], points[-1:]])) == 3
    assert count_padding(torch.zeros(64, 3)) == 0
    assert count_padding(points[:1]) == 0


@pytest.mark.parametrize("seed", long_but([0], [0, 1, 2]))
def test_whole_clouds_are_silent(tmp_path: Path, seed: int) -> None:
    assert padded_points(Context(make_parts(tmp_path, f"seed={seed}"), World())) == []
    assert padded_points(Context(make_rooms(tmp_path), World())) == []
