"""Why classes are hard: ranks as SciPy's, boundaries by hand, and a run whose hard class is hard by construction."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from sightline.workbench.describe.difficulty import boundary_mask, rank_correlation
from tests.command import run_here


@pytest.mark.parametrize("seed", range(5))
def test_rank_correlation_is_scipys_with_ties(seed: int) -> None:
    random = np.random.default_rng(seed)
    first, second = random.integers(0, 6, 20).astype(float), random.normal(size=20)
    assert rank_correlation(first, second) == pytest.approx(spearmanr(first, second).statistic, abs=1e-12)


def test_rank_correlation_leaves_out_what_is_no_number() -> None:
    nan = math.nan
    assert rank_correlation([1, nan, 2, 3], [10, 0, 20, 30]) == pytest.approx(1.0)
    assert math.isnan(rank_correlation([1, nan, 2], [1, 2, 3]))
    assert math.isnan(rank_correlation([1, 2, 3], [5, 5, 5]))


def test_boundaries_of_a_line_and_never_across_clouds() -> None:
    line = torch.arange(8.0)[:, None] * torch.tensor([1.0, 0, 0])
    label = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    two = torch.cat([line, line])
    found = boundary_mask(two, torch.cat([label, 1 - label]), torch.tensor([0, 8, 16]), num_neighbours=3)
    assert found.tolist() == [False, False, False, True, True, False, False, False] * 2
    alone = boundary_mask(line[:1], label[:1], torch.tensor([0, 1]), num_neighbours=3)
    assert alone.tolist() == [False]


CONFIG = """
task: {name: segment}
data: {name: synthetic_shapes, target: parts, train_size: 90, test_size: 24, num_points: 64, imbalance: 4}
model: {name: %s}
losses: [{name: cross_entropy}]
metrics: [{name: part_iou}]
optimizer: {name: adam, lr: 1e-2}
train: {epochs: 1, batch_size: 16}
evaluate: {metric: instance_miou, batch_size: 8}
log: {tensorboard: false}
"""
PLUGIN = """
from typing import TypedDict

from torch import Tensor, nn

from sightline.contract import registry


class Output(TypedDict):
    logits: Tensor


@registry.models.add("per_point")
class PerPoint(nn.Module):
    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(in_channels, 8), nn.ReLU(), nn.Linear(8, num_classes))

    def forward(self, *, points: Tensor) -> Output:
        return {"logits": self.net(points)}
"""


def test_evaluate_tells_why_parts_are_hard(tmp_path: Path) -> None:
    (tmp_path / "plugin.py").write_text(PLUGIN)
    (tmp_path / "parts.yaml").write_text(CONFIG % "per_point")
    words = ("--plugin", tmp_path / "plugin.py", "--device", "cpu")
    done = run_here("train", tmp_path / "parts.yaml", *words, "--no-check", "--out", tmp_path / "run")
    assert done.code == 0, done.err
    num_trained = int(done.err.split("samples: ")[1].split(" of training")[0])
    done = run_here("evaluate", tmp_path / "run", *words, "--json", tmp_path / "out.json")
    assert done.code == 0, done.err
    document = json.loads((tmp_path / "out.json").read_text())
    final = json.loads((tmp_path / "run" / "final.json").read_text())
    assert document["metrics"] == final["metrics"]
    found = document["difficulty"]
    rows = found["classes"]
    assert {name: row["iou"] for name, row in rows.items()} == {
        name: row["miou"] for name, row in final["per_class"].items()
    }
    assert sum(row["num_points"] for row in rows.values()) == 24 * 64
    assert found["trained_on_unit"] == "objects"
    assert sum(row["trained_on"] for row in rows.values()) == num_trained
    ious = [row["iou"] for row in rows.values() if row["iou"] is not None]
    counts = [row["trained_on"] for row in rows.values() if row["iou"] is not None]
    assert found["rank_correlation_of_iou"]["trained_on"] == pytest.approx(spearmanr(ious, counts).statistic)
    worst = [entry["iou"] for entry in found["hardest"]]
    assert worst == sorted(worst)
    assert len(worst) == 5
    confusion = np.array(final["confusion"]["counts"])
    names = final["confusion"]["classes"]
    for row in rows.values():
        for wrong in row["confusions"]:
            label, answer = names.index(wrong["label"]), names.index(wrong["answer"])
            assert wrong["share"] == confusion[label, answer] / confusion[label].sum()
    assert "why classes are hard" in done.out
    assert "hardest: " in done.err
