"""Parts without samples, and plans that are no partition."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.engine.batch_stream import BatchSampler
from sightline.engine.build import TrainingSetup
from sightline.engine.distributed import World
from sightline.workbench.check.checks.data.empty_loader import empty_loader
from sightline.workbench.check.context import Context
from tests.doctor.planting import assert_healthy, caught, make
from tests.doctor.segmenting import make_parts


class SamePart(BatchSampler):
    """Every process gets what the first one gets."""

    def step_keys(self, step: int) -> list:
        return [[micro[0]] * self.num_processes for micro in super().step_keys(step)]


class SameOrder(BatchSampler):
    def step_keys(self, step: int) -> list:
        return super().step_keys(step % self.steps_per_epoch)


class Forgetful(BatchSampler):
    """The last sample of every step is never visited."""

    def step_keys(self, step: int) -> list:
        return [[part[:-1] for part in micro] for micro in super().step_keys(step)]


def planned(built: TrainingSetup, kind: type[BatchSampler], **changes: Any) -> TrainingSetup:
    plan = built.job.stream.plan
    arguments = {f.name: getattr(plan, f.name) for f in dataclasses.fields(plan) if f.init} | changes
    stream = dataclasses.replace(built.job.stream, plan=kind(**arguments))
    return dataclasses.replace(built, job=dataclasses.replace(built.job, stream=stream))


def selected(built: TrainingSetup, indices: np.ndarray) -> TrainingSetup:
    part = dataclasses.replace(built.data.selection, indices=indices)
    return dataclasses.replace(built, data=dataclasses.replace(built.data, selection=part))


@pytest.mark.parametrize("overrides", [("train.tail=drop",), ("train.micro_batches=4",), ("train.batch_size=200",)])
def test_every_way_to_deal_is_a_partition(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    context = Context(make(tmp_path, *overrides), World())
    assert empty_loader(context) == []


def test_uneven_parts_of_three_processes_are_a_partition(tmp_path: Path) -> None:
    assert empty_loader(Context(planned(make(tmp_path), BatchSampler, num_processes=3), World())) == []


def test_an_empty_part_is_named(tmp_path: Path) -> None:
    finding = caught(selected(make(tmp_path), np.zeros(0, dtype=np.int64)), "empty-loader", "data.empty_loader")
    assert finding.where.dataset == "synthetic_shapes/validation"
    assert finding.where.file is not None
    assert finding.where.file.endswith("small.yaml")
    assert finding.where.line == 1


def test_indices_of_another_set_are_named(tmp_path: Path) -> None:
    finding = caught(selected(make(tmp_path), np.arange(230, 260)), "empty-loader", "data.split")
    assert finding.where.sample == 240


def test_fewer_held_out_samples_than_classes(tmp_path: Path) -> None:
    finding = caught(
        make(tmp_path, "data.train_size=22", "train.batch_size=4"), "empty-loader", "data.split", "warning"
    )
    assert "10 samples for 12 classes" in finding.summary


def test_a_batch_of_more_samples_than_there_are(tmp_path: Path) -> None:
    built = make(tmp_path, "data.train_size=60", "train.batch_size=500")
    num_samples = len(built.data.train.indices)
    finding = caught(built, "empty-loader", "data.sampling", "warning")
    assert finding.summary.startswith(f"train.batch_size is 500, the training part has {num_samples} samples")
    assert finding.where.config_path == "train.batch_size"
    assert f"lower train.batch_size below {num_samples}" in finding.action
    assert_healthy(make(tmp_path, "data.train_size=60", f"train.batch_size={num_samples}"))


def test_processes_that_read_the_same_samples(tmp_path: Path) -> None:
    finding = caught(planned(make(tmp_path), SamePart, num_processes=2), "empty-loader", "dist.sampler")
    assert "twice or more" in finding.summary
    assert finding.where.sample is not None


def test_samples_that_are_never_visited(tmp_path: Path) -> None:
    built = planned(make(tmp_path), Forgetful)
    finding = caught(built, "empty-loader", "data.sampling")
    visited = {key.index for step in range(14) for key in built.job.stream.plan.step_keys(step)[0][0]}
    assert finding.where.sample not in visited


def test_an_order_that_never_changes(tmp_path: Path) -> None:
    caught(planned(make(tmp_path), SameOrder), "empty-loader", "data.ordering")


def test_an_order_that_never_changes_is_no_matter_in_one_epoch(tmp_path: Path) -> None:
    assert_healthy(planned(make(tmp_path, "train.epochs=1"), SameOrder))


def test_a_stream_of_another_rank(tmp_path: Path) -> None:
    built = make(tmp_path)
    stream = dataclasses.replace(built.job.stream, rank=1)
    built = dataclasses.replace(built, job=dataclasses.replace(built.job, stream=stream))
    findings = empty_loader(Context(built, World()))
    assert [finding.cause for finding in findings] == ["dist.sampler"]


def test_a_selection_part_of_few_objects_with_many_parts(tmp_path: Path) -> None:
    """24 objects show all 30 parts; what they must hold is each of the 12 categories. 6 cannot."""
    built = make_parts(tmp_path)
    assert empty_loader(Context(built, World())) == []
    selection = dataclasses.replace(built.data.selection, indices=built.data.selection.indices[:6])
    few = dataclasses.replace(built, data=dataclasses.replace(built.data, selection=selection))
    (finding,) = empty_loader(Context(few, World()))
    assert finding.cause == "data.split"
    assert "6 samples for 12 classes" in finding.summary
