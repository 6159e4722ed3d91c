"""Weights to start from that do not fit, or that did not get there."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from sightline.areas.clouds.models.pointnet import PointNetPlain
from sightline.engine.build import TrainingSetup
from sightline.engine.distributed import World
from sightline.workbench.check.context import Context
from sightline.workbench.check.init_rules import checkpoint_match
from tests.doctor.planting import assert_healthy, caught, judge, make, with_model
from tests.planted.files import save_weights


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A run directory that holds the checkpoint of another model of the same kind."""
    save_weights(tmp_path / "run")
    return tmp_path / "run"


def started(tmp_path: Path, source: Path) -> TrainingSetup:
    return make(tmp_path, f"init={{from: '{source}'}}")


def test_healthy_start(tmp_path: Path, source: Path) -> None:
    assert_healthy(started(tmp_path, source))


def test_weights_of_another_model(tmp_path: Path, source: Path) -> None:
    built = started(tmp_path, source)
    model = PointNetPlain(num_classes=12, in_channels=3, embedding=16, dropout=0.0)
    finding = caught(with_model(built, model), "checkpoint-match", "ckpt.key_mismatch")
    assert "encode.4.linear.weight" in finding.measured
    assert finding.where.config_path == "init.from"


def test_everything_may_be_missing(tmp_path: Path, source: Path) -> None:
    built = started(tmp_path, source)
    init = dataclasses.replace(built.config.init, may_be_missing=("encode", "head", "other"))  # type: ignore[type-var]
    renamed = torch.nn.Module()
    renamed.other = built.job.model  # type: ignore[assignment]
    renamed.forward = built.job.model.forward  # type: ignore[method-assign]
    built = dataclasses.replace(built, config=dataclasses.replace(built.config, init=init))
    (finding,) = judge(checkpoint_match, Context(with_model(built, renamed), World()))
    assert (finding.cause, finding.severity) == ("ckpt.key_mismatch", "error")
    assert "nothing is loaded" in finding.summary


def test_a_damaged_checkpoint(tmp_path: Path, source: Path) -> None:
    built = started(tmp_path, source)
    file = source / "checkpoints" / "last" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    finding = caught(built, "checkpoint-match", "ckpt.corrupt")
    assert "model.safetensors" in finding.measured


def test_a_resumed_run_has_its_weights_from_elsewhere(tmp_path: Path, source: Path) -> None:
    built = make(tmp_path, "init={from: gone}", is_resumed=True)
    assert judge(checkpoint_match, Context(built, World())) == []
