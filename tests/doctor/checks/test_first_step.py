"""Steps that cannot be taken, told before the run begins."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sightline.areas.clouds.models.pointnet import PointNetPlain, PointNetPlainOutput
from sightline.contract.errors import ConfigError, DataError
from sightline.engine.distributed import World
from sightline.workbench.check.batch_of_one import refuse_batch_of_one
from sightline.workbench.check.context import Context
from sightline.workbench.check.first_step_rules import failed_step
from tests.doctor.planting import CONFIG, Wrapped, caught, judge, make, with_data, with_model


class Misshapen(PointNetPlain):
    def forward(self, *, points: Tensor, features: Tensor | None = None) -> PointNetPlainOutput:
        wide = torch.cat([points, points], dim=-1)
        return {"logits": self.head(self.encode(wide))}


def test_shapes_that_do_not_fit(tmp_path: Path) -> None:
    model = Misshapen(num_classes=12, in_channels=3, embedding=32)
    finding = caught(with_model(make(tmp_path), model), "first-step", "cfg.contract")
    assert finding.where.layer == "encode.0.linear"
    assert finding.where.step == 0
    assert "points (4, 32, 3)" in finding.evidence["batch"]


def test_the_advice_of_a_layer_is_what_to_do(tmp_path: Path) -> None:
    """Too few points for PointNet++: its own message says how to go on, so the config is where to look."""
    text = re.sub(r"(?m)^model:.*$", "model: {name: pointnet2}", CONFIG)
    finding = caught(make(tmp_path, text=text), "first-step", "cfg.contract")
    assert finding.action == "give clouds of at least 512 points or lower num_centres"
    assert finding.where.config_path == "transforms or model.num_centres"
    assert (finding.where.file, finding.where.line) == (str(tmp_path / "small.yaml"), 2)


@pytest.mark.parametrize("part", ["train", "evaluate"])
def test_clouds_too_small_for_a_transform_are_no_damaged_samples(tmp_path: Path, part: str) -> None:
    given = f"transforms.{part}=[{{name: farthest_points, num_points: 500}}]"
    findings = judge(failed_step, Context(make(tmp_path, given), World()))
    assert len(findings) == (1 if part == "train" else 2), "of the validation and the test part"
    for finding in findings:
        assert finding.cause == "cfg.contract"
        assert finding.action == "set num_points to at most 32"
        assert finding.where.config_path == f"transforms.{part}"
        assert "the clouds have 32 points, num_points asks for 500" in finding.measured


def test_a_last_batch_of_one_sample_under_batch_norm(tmp_path: Path) -> None:
    """216 samples in batches of 43 leave one; the head's batch norm needs two rows."""
    finding = caught(make(tmp_path, "train.batch_size=43"), "first-step", "model.norm_mode")
    assert finding.where.step == 5
    assert finding.action == "batch norm needs two samples: set train.tail=drop"
    assert finding.measured.endswith("]); 216 training samples in batches of 43 make a batch of one sample")


def test_a_share_of_the_data_that_leaves_a_last_batch_of_one_sample(tmp_path: Path) -> None:
    words = ("data.fraction=0.5", "train.batch_size=107")
    size = len(make(tmp_path, *words).data.train.indices)
    (finding,) = judge(failed_step, Context(make(tmp_path, words[0], f"train.batch_size={size - 1}"), World()))
    assert finding.cause == "model.norm_mode"
    assert f"{size} training samples, which data.fraction=0.5 leaves, in batches of {size - 1}" in finding.measured


SMALLEST = {
    "the last batch is dropped": (("train.batch_size=43", "train.tail=drop"), 1, None),
    "the last batch is not reached": (("train.batch_size=43", "train.steps=5"), 1, None),
    "the last batch is reached": (("train.batch_size=43", "train.steps=6"), 1, (5, "train.tail=drop")),
    "micro-batches": (("train.micro_batches=16",), 1, (0, "train.micro_batches=1")),
    "the smaller micro-batch": (("train.batch_size=3", "train.micro_batches=2"), 1, (0, "train.micro_batches=1")),
    "synchronised on one process": (
        ("train.batch_size=43", "distributed.sync_batch_norm=true"),
        1,
        (5, "train.tail=drop"),
    ),
    "two processes": (("train.batch_size=107",), 2, (2, "train.tail=drop")),
    "two processes and the smaller micro-batch": (
        ("train.batch_size=6", "train.micro_batches=2"),
        2,
        (0, "train.micro_batches=1"),
    ),
    "more processes than half of a batch": (("train.batch_size=4",), 3, (0, "train.batch_size=6")),
    "synchronised between processes": (("train.batch_size=107", "distributed.sync_batch_norm=true"), 2, None),
    "frozen": (("train.batch_size=43", "optimizer.frozen=[{modules: head}]"), 1, None),
    "frozen at first": (
        ("train.batch_size=43", "optimizer.frozen=[{modules: head, until_epoch: 1}]"),
        1,
        (5, "train.tail=drop"),
    ),
}


@pytest.mark.parametrize("name", SMALLEST)
def test_the_smallest_batch_of_a_process_is_known_before_the_first_step(name: str, tmp_path: Path) -> None:
    words, num_processes, expected = SMALLEST[name]
    built = make(tmp_path, *words)
    plan = dataclasses.replace(built.job.stream.plan, num_processes=num_processes)
    sizes = [[len(part) for micro in plan.step_keys(step) for part in micro] for step in range(plan.steps_per_epoch)]
    assert [min(each) for each in sizes] == [plan.smallest_part(step) for step in range(plan.steps_per_epoch)]
    built.job.stream = dataclasses.replace(built.job.stream, plan=plan)
    world = World(size=num_processes)
    findings = judge(failed_step, Context(built, world))
    if expected is None:
        assert findings == []
        refuse_batch_of_one(built, world)
        return
    step, setting = expected
    (finding,) = findings
    assert (finding.cause, finding.where.step) == ("model.norm_mode", step)
    assert finding.action == f"batch norm needs two samples: set {setting}"
    with pytest.raises(ConfigError, match=rf"step {step} cannot be taken: .* {setting}$"):
        refuse_batch_of_one(built, world)


def test_a_damaged_sample(tmp_path: Path) -> None:
    def edit(batch: dict[str, Any], keys: Any) -> None:
        if any(key.index == 9 for key in keys):
            raise DataError("cloud_9.txt: line 3 has 5 columns, expected 6")

    finding = caught(with_data(make(tmp_path), lambda inner: Wrapped(inner, edit)), "first-step", "data.corrupt_sample")
    assert finding.where.sample == 9
    assert "cloud_9.txt" in finding.measured
    assert finding.where.file == __file__
