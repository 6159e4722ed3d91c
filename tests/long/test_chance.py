"""Targets that are spoilt on their way to the loss: each run that ends at chance is named, and no healthy one is."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

import sightline
from sightline.config import read_config
from sightline.training.train_result import Reporter
from sightline.training.train_run import train_run
from tests.conftest import ROOT
from tests.outcomes.reaching import BENCHES_OF_TARGETS, CELLS, ROOMS, SHAPES, Cell, assert_named, train_cell
from tests.planted.catalog import HEALTHY
from tests.planted.planting import BENCHES
from tests.planted.trial import run_case
from tests.recipes import SMALLER, recipes

_LONGER = (
    "train.batch_size=5",
    "train.tail=drop",
    "data.train_size=40",
    "data.test_size=16",
    "train.epochs=5",
    "evaluate.every=1",
    "log.every=2",
)


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_a_run_at_chance_is_named(cell: Cell) -> None:
    assert_named(cell, train_cell(cell))


class Healthy(NamedTuple):
    """Healthy training: its config, overrides, and words of the command line where it is a command's."""

    config: Path | Mapping[str, Any]
    words: tuple[str, ...] = ()


_MOSAIC = (
    "transforms.train=[{name: mosaic, height: 192, width: 256}, {name: flip_image}, "
    "{name: fit_image, height: 192, width: 256}, {name: normalize_image}]"
)
_MIXED = _MOSAIC.replace("{name: flip_image}", "{name: mix_up, probability: 0.5}, {name: flip_image}")
_CUT = _MOSAIC.replace("{name: mosaic, height: 192, width: 256}", "{name: cut_image, low: 0.3, probability: 1.0}")
_OF_CROWDS = BENCHES_OF_TARGETS["crowds"].words


def _list_more(name: str) -> tuple[str, ...]:
    """List further words: so few solids have not all kinds of parts."""
    is_of_parts = name.startswith("segment/synthetic_shapes") or name.endswith("_parts")
    return ("data.train_size=240", "train.epochs=2") if is_of_parts else ()


HEALTHY_RUNS: dict[str, Healthy] = {
    **{
        name: Healthy(ROOT / f"configs/{name}.yaml", (*SMALLER.get(name, ()), *_LONGER, *_list_more(name)))
        for name in recipes()
    },
    "one epoch": Healthy(SHAPES, ("train.epochs=1", "evaluate.every=1")),
    "a share of the data": Healthy(SHAPES, ("data.fraction=0.3", "train.epochs=30")),
    "learnt by heart": Healthy(
        SHAPES, ("data.train_size=24", "train.batch_size=8", "train.epochs=60", "model.dropout=0")
    ),
    "unlike classes": Healthy(
        SHAPES, ("data.imbalance=30.0", "losses=[{name: cross_entropy, class_weights: inverse}]")
    ),
    "smoothed": Healthy(SHAPES, ("losses=[{name: cross_entropy, label_smoothing: 0.3}]",)),
    "turned": Healthy(SHAPES, ("transforms.train=[{name: rotate}, {name: drop_points}, {name: jitter}]",)),
    "crops that lose classes": Healthy(ROOMS, ("transforms.train.1.max_points=64",)),
    "whole rooms": Healthy(ROOMS, ("transforms.train.1.max_points=100000", "train.epochs=2")),
    "mosaics": Healthy(
        BENCHES / "DET.yaml",
        (*_OF_CROWDS, _MOSAIC, "task.anchors.base_strides=1.0", "train.epochs=4", "evaluate.every=2"),
    ),
    "mixed images": Healthy(
        BENCHES / "DET.yaml",
        (*_OF_CROWDS, _MIXED, "task.anchors.base_strides=1.0", "train.epochs=4", "evaluate.every=2"),
    ),
    "cut images": Healthy(BENCHES / "DET.yaml", (*_OF_CROWDS, _CUT, "train.epochs=4", "evaluate.every=2")),
    "flipped scans": Healthy(BENCHES / "LID.yaml", (*BENCHES_OF_TARGETS["lidar"].words, "train.epochs=4")),
    "a frozen encoder": Healthy(SHAPES, ("optimizer={name: adam, lr: 1e-3, frozen: [{modules: encode}]}",)),
    "a large rate": Healthy(SHAPES, ("optimizer.lr=0.02",)),
    "two micro-batches": Healthy(SHAPES, ("train.micro_batches=2",)),
}
"""Healthy trainings by what is unusual of them."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Findings are logged as they are made; they are asserted here."""
    logger = logging.getLogger("sightline")
    propagates, logger.propagate = logger.propagate, False
    yield
    logger.propagate = propagates


def _list_alarms(findings: Any) -> list[str]:
    return [str(each) for each in findings if each.severity != "note"]


@pytest.mark.parametrize("name", HEALTHY_RUNS)
def test_a_healthy_training_has_no_alarm(name: str, tmp_path: Path) -> None:
    config, words = HEALTHY_RUNS[name]
    last = {word.partition("=")[0]: word for word in words}
    result = train_run(read_config(config, [*last.values()]), out=tmp_path / "run", device="cpu", reporter=Reporter())
    assert result.document is not None
    assert not _list_alarms(result.findings)


@pytest.mark.parametrize("case", [case for case in HEALTHY if case.bench not in ("PLAIN", "DDP")], ids=lambda c: c.id)
def test_a_healthy_run_that_looks_odd_has_no_alarm(case: Any) -> None:
    assert not run_case(case, seed=1)


def test_a_training_that_goes_on_has_no_alarm(tmp_path: Path) -> None:
    for words, resume in (("train.epochs=4",), None), (("train.epochs=9",), "auto"):
        config = read_config(SHAPES, (*words, "evaluate.every=1"))
        result = train_run(config, out=tmp_path / "run", device="cpu", reporter=Reporter(), resume=resume)
        assert not _list_alarms(result.findings)


def test_two_processes_have_no_alarm(tmp_path: Path) -> None:
    file = tmp_path / "shapes.yaml"
    file.write_text(json.dumps(SHAPES))
    words = (
        "-m",
        "sightline",
        "train",
        str(file),
        "--processes",
        "2",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "run"),
    )
    subprocess.run([sys.executable, *words], check=True, cwd=tmp_path)
    found = json.loads((tmp_path / "run/findings.json").read_text())
    assert [each for each in found if each["severity"] != "note"] == []


def test_one_class_in_ten_has_no_alarm_of_chance(tmp_path: Path) -> None:
    """All samples of both parts are of one class: what is learnt is right."""
    cell = Cell("shapes", "constant", "both", "label")
    findings = train_cell(cell)
    assert not {each.code for each in findings if each.severity != "note"} & {"chance-figure", "training-targets"}


def test_a_plain_loop_with_a_weighted_sampler_has_no_alarm() -> None:
    torch.manual_seed(0)
    weights = torch.randn(12, 6)
    parts = []
    for size in (240, 120):
        inputs = torch.randn(size, 12)
        parts.append(TensorDataset(inputs, (inputs @ weights).argmax(1)))
    labels = parts[0].tensors[1]
    sampler = WeightedRandomSampler((1 / labels.bincount().double())[labels], len(labels))
    loaders = DataLoader(parts[0], 16, sampler=sampler), DataLoader(parts[1], 40)
    model = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 6))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for _ in range(12):
            model.train()
            for inputs, targets in loaders[0]:
                loss = nn.functional.cross_entropy(model(inputs), targets)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            model.eval()
            with torch.no_grad():
                for inputs, _ in loaders[1]:
                    model(inputs)
    assert not watch.findings, watch.report
