"""The recipe of a frozen extractor: only its head learns, nothing else moves, and the checks are silent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import sightline
from sightline.runs import checkpoint
from tests.command import succeed
from tests.processes import ROOT

RECIPE = ROOT / "configs/classify/modelnet40_point_bert_frozen_cpu.yaml"
SMALL = (
    "data={name: synthetic_shapes, train_size: 96, test_size: 24, num_points: 64}",
    "transforms.train.0.num_points=48",
    "transforms.evaluate.0.num_points=48",
    "model.width=24",
    "model.depth=3",
    "model.num_groups=8",
    "model.group_size=6",
    "train.batch_size=8",
    "train.epochs=2",
    "log.tensorboard=false",
)
"""What brings the recipe down to a set that needs no files."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("frozen") / "run"
    succeed("train", RECIPE, *SMALL, "--device", "cpu", "--out", path)
    return path


def test_nothing_but_the_head_moves(run: Path) -> None:
    """Parameters and batch statistics of the extractor have the bits of the run's start, made from its seed."""
    ended = checkpoint.load(run).model
    again = run.parent / "again"
    words = ("--no-check", "--device", "cpu", "--out", again)
    succeed("train", RECIPE, *SMALL, "optimizer.lr=1e-12", *words)
    started = checkpoint.load(again).model
    changed = {name for name, value in ended.items() if (value - started[name]).abs().max() > 1e-6}
    assert changed == {"head.0.weight", "head.0.bias", "head.3.weight", "head.3.bias"}
    assert all(torch.equal(ended[name], started[name]) for name in ended.keys() - changed)


def test_the_head_learns_what_the_frozen_feature_holds(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss/cross_entropy"] for line in lines if line["split"] == "train"]
    assert losses[-1] < losses[0]


def test_the_run_is_an_extractor(run: Path) -> None:
    """`encode` gives the same feature whatever company a cloud is in: batch statistics are those stored."""
    model = sightline.load_run(run).model
    points = torch.randn(4, 48, 3)
    with torch.no_grad():
        together = model.encode(points=points)
        torch.testing.assert_close(model.encode(points=points[:1]), together[:1], rtol=1e-5, atol=1e-5)
    assert together.shape == (4, 48)


def test_checks_are_silent(tmp_path: Path) -> None:
    succeed("check", RECIPE, *SMALL, "--json", tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())["findings"]
    assert [each["code"] for each in found if each["severity"] != "note"] == []
