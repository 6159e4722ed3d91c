"""Healthy runs, shipped, small, ragged and toys, on which no check finds an error or a warning."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sightline.config import RunConfig, read_config
from sightline.config.run_config import Evaluate, Train
from sightline.contract.types import ComponentConfig
from sightline.engine.batches.sampler import BatchSampler
from sightline.engine.batches.stream import BatchStream
from sightline.engine.build import TrainingSetup, build
from sightline.engine.device.numerics import Precision
from sightline.engine.distributed import World
from sightline.engine.evaluate import Evaluator
from sightline.engine.run_data import Data, DataSubset
from sightline.engine.schedules import Constant
from sightline.engine.train import TrainState
from tests.conftest import ROOT
from tests.contract.toy import NUM_SAMPLES, meters
from tests.contract.toys import TOYS
from tests.doctor.planting import assert_healthy, make, with_data
from tests.doctor.segmenting import Edited, Joined, PerPoint, make_parts, make_rooms
from tests.marks import long_but


def test_a_config_that_needs_no_files_is_healthy() -> None:
    """All of them: tests/long/test_recipes.py."""
    few = ("data.train_size=24", "data.validation_size=8", "data.test_size=8")
    widths = ("model.backbone.width=16", "model.neck.width=32")  # torch 2.13 breaks memory at 8: 1 x 1, channels last
    prepared = "{name: fit_image, height: 96, width: 128}, {name: normalize_image}"  # of half the size, as anchors are
    trained, evaluated = f"transforms.train=[{{name: flip_image}}, {prepared}]", f"transforms.evaluate=[{prepared}]"
    halved = (trained, evaluated, "task.anchors.base_strides=1.0")
    assert_shipped_is_healthy("detect/synthetic_crowds_retinanet", (*few, *widths, *halved))


def assert_shipped_is_healthy(name: str, overrides: Sequence[str] = ()) -> None:
    path = ROOT / "configs" / f"{name}.yaml"
    is_from_a_run = read_config(path).init is not None  # which is not there: from scratch then
    words = [*overrides, *(["init=null"] if is_from_a_run else [])]
    assert_healthy(build(read_config(path, words), World()))


def test_small_runs_are_healthy_whatever_the_seed(tmp_path: Path) -> None:
    """More models and seeds: tests/long/test_recipes.py."""
    assert_small_is_healthy(tmp_path, "dgcnn", seed=1)


def assert_small_is_healthy(tmp_path: Path, model: str, seed: int) -> None:
    more = ", num_neighbours: 8, embedding: 64" if model == "dgcnn" else ""
    assert_healthy(make(tmp_path, f"model={{name: {model}{more}}}", f"seed={seed}"))


def test_small_runs_on_parts_are_healthy_whatever_the_seed(tmp_path: Path) -> None:
    """More seeds: tests/long/test_recipes.py."""
    assert_parts_are_healthy(tmp_path, seed=1)


def assert_parts_are_healthy(tmp_path: Path, seed: int) -> None:
    for normals, num_channels in (("none", 3), ("file", 6)):
        model = PerPoint(in_channels=num_channels, num_classes=30)
        assert_healthy(make_parts(tmp_path, f"seed={seed}", f"data.normals={normals}", model=model))
    assert_healthy(make_parts(tmp_path, f"seed={seed}"))


@pytest.mark.parametrize("wrap", [lambda dataset: dataset, Joined], ids=["our collate", "its own"])
def test_ragged_runs_are_healthy(tmp_path: Path, wrap: Any) -> None:
    assert_healthy(make_rooms(tmp_path, wrap))


def ragged(inner: Any) -> Edited:
    """Objects with parts, each with a number of points of its own."""
    fields = dict(inner.info.fields)
    for name in ("points", "normals", "label"):
        shape = "points" if name == "label" else "points 3"
        fields[name] = dataclasses.replace(fields[name], shape=shape, collate="concatenate")

    def edit(sample: dict, index: int) -> dict:
        return {name: value if name == "category" else value[: 40 + index % 24] for name, value in sample.items()}

    return Edited(inner, edit, fields=fields)


def test_ragged_objects_with_parts_are_healthy(tmp_path: Path) -> None:
    assert_healthy(with_data(make_parts(tmp_path, model=PerPoint(in_channels=3, num_classes=30)), ragged))


def toy_run(name: str) -> TrainingSetup:
    """A toy of the contract tests as a built run."""
    toy, world = TOYS[name], World()
    torch.manual_seed(0)
    model, reader, precision = toy.model().double(), toy.reader, Precision("float64")
    task = toy.task(model, reader.keys)
    plan = BatchSampler(np.arange(NUM_SAMPLES), 8, seed=3)
    optimizer = torch.optim.AdamW([{"params": list(model.parameters()), "lr": 0.02, "base_lr": 0.02}])
    job = TrainState(
        model=model,
        task=task,
        optimizer=optimizer,
        schedule=Constant(num_steps=8, steps_per_epoch=6, warmup_epochs=0.5),
        stream=BatchStream(plan, reader, world.rank),
        num_steps=8,
        loss_weights=toy.weights,
        precision=precision,
    )
    part = DataSubset(toy.dataset, np.arange(NUM_SAMPLES), reader, "train")
    evaluator = Evaluator(
        task, meters(toy, model, reader), reader, part.indices, 7, loss_names=tuple(toy.weights), precision=precision
    )
    config = RunConfig(
        name=name,
        data=ComponentConfig("toy"),
        model=ComponentConfig("toy"),
        losses=tuple(ComponentConfig(loss) for loss in toy.weights),
        metrics=(ComponentConfig("toy"),),
        optimizer=ComponentConfig("adamw"),
        train=Train(epochs=2, batch_size=8),
        evaluate=Evaluate(metric="toy"),
    )
    return TrainingSetup(config, Data(part, part, part, {}), job, evaluator, evaluator)


@pytest.mark.parametrize("name", long_but(TOYS.keys() - {"detector", "detector_objects", "detector_pairs"}, TOYS))
def test_every_kind_of_task_is_healthy(name: str) -> None:
    assert_healthy(toy_run(name))
