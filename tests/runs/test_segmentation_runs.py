"""Whole runs on parts and scenes: from files to figures, every point scored, the same on two processes."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from torch import Tensor

import sightline
from sightline.areas.scenes.sets.s3dis import S3dis
from tests.command import refuse, run_here, succeed
from tests.data.clouds.shapenet_part_writers import CATEGORIES, LAYOUTS, prepare, write_layout
from tests.data.scenes.scene_writers import ROOMS, no_progress, write_s3dis
from tests.processes import ROOT
from tests.runs.broken_off import metrics, run_forked

# --- shapeNetPart from its files to its figures: trained on chosen points, scored on all of them, stopped ------------


PLUGIN = '''
import os
import signal
from typing import TypedDict

import torch
from torch import Tensor, nn

from sightline.contract import registry
from sightline.contract.arguments import Probability
from sightline.layers.mlp import as_dense, as_packed, one_hot_category


class Output(TypedDict):
    logits: Tensor


def net(num_inputs: int, num_classes: int, dropout: float) -> nn.Module:
    return nn.Sequential(nn.Linear(num_inputs, 48), nn.ReLU(), nn.Dropout(dropout), nn.Linear(48, num_classes))


@registry.models.add("dense_toy")
class DenseToy(nn.Module):
    """Takes clouds of one size, in either form. Ends its process politely at the call that STOP_AT counts."""

    def __init__(
        self, *, num_classes: int, in_channels: int, num_categories: int, dropout: Probability = 0.1
    ) -> None:
        super().__init__()
        self.num_categories, self.num_calls = num_categories, 0
        self.net = net(in_channels + num_categories, num_classes, dropout)

    def forward(
        self, *, points: Tensor, category: Tensor, features: Tensor | None = None, offsets: Tensor | None = None
    ) -> Output:
        self.num_calls += self.training
        if self.training and str(self.num_calls) == os.environ.get("STOP_AT"):
            os.kill(os.getpid(), signal.SIGTERM)
        dense, more = as_dense(points, features, offsets)
        hot = one_hot_category(category, like=dense, num_categories=self.num_categories)
        whole = torch.cat([dense, *([] if more is None else [more]), hot[:, None].expand(-1, dense.shape[1], -1)], -1)
        logits = self.net(whole)
        return {"logits": logits.view(*points.shape[:-1], -1)}


@registry.models.add("packed_toy")
class PackedToy(nn.Module):
    """Takes clouds of any sizes, in either form."""

    def __init__(
        self, *, num_classes: int, in_channels: int, num_categories: int, dropout: Probability = 0.1
    ) -> None:
        super().__init__()
        self.num_categories = num_categories
        self.net = net(in_channels + num_categories, num_classes, dropout)

    def forward(
        self, *, points: Tensor, category: Tensor, features: Tensor | None = None, offsets: Tensor | None = None
    ) -> Output:
        rows, more, starts = as_packed(points, features, offsets)
        hot = one_hot_category(category, like=category.float(), num_categories=self.num_categories)
        of_point = hot.repeat_interleave(starts.diff(), dim=0)
        logits = self.net(torch.cat([rows, *([] if more is None else [more]), of_point], dim=-1))
        return {"logits": logits.view(*points.shape[:-1], -1)}
'''
CONFIG = f"""
base: {ROOT}/configs/segment/_parts.yaml
data: {{name: shapenet_part}}
model: {{name: dense_toy}}
losses: [{{name: cross_entropy}}]
transforms:
  train: [{{name: sample_points, num_points: 16}}, {{name: jitter}}]
  evaluate: [{{name: sample_points, num_points: 16, order: first, score_all: true}}]
optimizer: {{name: adam, lr: 2e-2}}
train: {{epochs: 30, batch_size: 8}}
evaluate: {{every: 10, batch_size: 5}}
log: {{tensorboard: false}}
"""
WHOLE = ("transforms.train=[]", "transforms.evaluate=[]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plugin, a config, and the set prepared from each layout."""
    folder = tmp_path_factory.mktemp("parts")
    (folder / "plugin.py").write_text(PLUGIN)
    (folder / "parts.yaml").write_text(CONFIG)
    for layout in LAYOUTS:
        prepare(write_layout(layout, folder / "in" / layout), folder / layout)
    return folder


def words_of(folder: Path, run: str, *overrides: str, layout: str = "text") -> tuple[str, ...]:
    given = (f"data.root={folder / layout}", *overrides)
    places = ("--plugin", folder / "plugin.py", "--device", "cpu", "--out", folder / run)
    return tuple(map(str, ("train", folder / "parts.yaml", *given, *places)))


def trained(folder: Path, run: str, *overrides: str, layout: str = "text") -> dict[str, float]:
    if not (folder / run / "final.json").exists():
        succeed(*words_of(folder, run, *overrides, layout=layout), "--no-check")
    return json.loads((folder / run / "final.json").read_text())["metrics"]


def shapes(root: Path, split: str) -> list[tuple[np.ndarray, np.ndarray, int]]:
    """Points, parts and category of every shape, by NumPy alone."""
    points, label, category, offsets = (
        np.load(root / f"{split}.{name}.npy") for name in ("points", "label", "category", "offsets")
    )
    return [(points[a:b], label[a:b], int(c)) for (a, b), c in zip(pairwise(offsets), category, strict=True)]


def shape_iou(answer: np.ndarray, label: np.ndarray, category: int) -> float:
    _, first, last = list(CATEGORIES.values())[category]
    ious = []
    for part in range(first, last + 1):
        union = np.sum((answer == part) | (label == part))
        ious.append(np.sum((answer == part) & (label == part)) / union if union else 1.0)
    return float(np.mean(ious))


def blind_miou(root: Path) -> float:
    """Of answering every point with its category's most frequent part in training."""
    counts = np.zeros((16, 50))
    for _, label, category in shapes(root, "train"):
        counts[category] += np.bincount(label, minlength=50)
    frequent = counts.argmax(axis=1)
    return float(np.mean([shape_iou(np.full_like(y, frequent[c]), y, c) for _, y, c in shapes(root, "test")]))


def test_figures_are_those_of_all_points_by_an_independent_evaluation(folder: Path) -> None:
    metrics = trained(folder, "run")
    assert metrics["instance_miou"] > blind_miou(folder / "text")
    loaded = sightline.load_run(folder / "run", checkpoint="best", plugins=[folder / "plugin.py"])
    ious: dict[int, list[float]] = {}
    num_right = num_points = 0
    for points, label, category in shapes(folder / "text", "test"):
        kept = torch.from_numpy(points[:16])
        with torch.no_grad():
            logits: Tensor = loaded.model(points=kept[None], category=torch.tensor([category]))["logits"][0]
        _, first, last = list(CATEGORIES.values())[category]
        of_kept = first + logits[:, first : last + 1].numpy().argmax(axis=1)
        answer = of_kept[cKDTree(points[:16]).query(points)[1]]
        ious.setdefault(category, []).append(shape_iou(answer, label, category))
        num_right, num_points = num_right + int(np.sum(answer == label)), num_points + len(label)
    assert len(ious) == 16
    assert metrics["instance_miou"] == pytest.approx(np.mean([iou for group in ious.values() for iou in group]))
    assert metrics["class_miou"] == pytest.approx(np.mean([np.mean(group) for group in ious.values()]))
    assert metrics["point_accuracy"] == pytest.approx(num_right / num_points)
    assert num_points == sum(len(label) for _, label, _ in shapes(folder / "text", "test"))


def test_a_run_stopped_and_resumed_is_the_unbroken_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(folder, "run")
    monkeypatch.setenv("STOP_AT", "53")
    words = words_of(folder, "stopped")
    assert run_here(*words, "--no-check").code == 143
    assert not (folder / "stopped/final.json").exists()
    monkeypatch.delenv("STOP_AT")
    succeed(*words, "--no-check", "--resume", "auto")
    for name in ("final.json", "checkpoints/last/model.safetensors"):
        assert (folder / "run" / name).read_bytes() == (folder / "stopped" / name).read_bytes()


def test_whole_shapes_of_any_size_feed_a_model_that_takes_them(folder: Path) -> None:
    metrics = trained(folder, "ragged", "model.name=packed_toy", "data.normals=file", *WHOLE)
    assert metrics["instance_miou"] > blind_miou(folder / "text")


def test_a_model_for_one_size_says_what_to_do_with_ragged_shapes(folder: Path) -> None:
    done = run_here(*words_of(folder, "refused", *WHOLE), "--no-check")
    assert done.code != 0
    assert "let a transform choose as many of each (sample_points)" in done.err


def test_shapes_with_too_few_points_are_named_before_anything_is_trained(folder: Path) -> None:
    many = "transforms.train=[{name: sample_points, num_points: 21}]"
    done = refuse(*words_of(folder, "few", many), "--no-check")
    assert "the clouds have 20 points, num_points asks for 21" in done
    repeated = "transforms.train=[{name: sample_points, num_points: 21, if_fewer: repeat}]"
    succeed(*words_of(folder, "enough", repeated, "train.epochs=1"), "--no-check")


# --- whole small runs on scenes: every transform of the recipe, every point scored, the same numbers on t ------------


SCENES_CONFIG = """\
name: tiny
task: {{name: segment}}
data: {{name: s3dis, root: {root}, repeats: 2}}
model: {{name: point_transformer, widths: [8, 16], strides: [1, 2], num_neighbours: [4, 4], num_blocks: [1, 1]}}
losses: [{{name: cross_entropy}}]
metrics: [{{name: iou}}]
transforms:
  train:
    - {{name: scale, low: 0.9, high: 1.1, isotropic: true}}
    - {{name: chromatic_auto_contrast}}
    - {{name: chromatic_translation}}
    - {{name: chromatic_jitter}}
    - {{name: hue_saturation}}
    - {{name: drop_colour}}
    - {{name: voxel_sample, size_m: 4.0}}
    - {{name: crop_points, max_points: 24}}
    - {{name: elastic, granularities: [8.0], magnitudes: [0.5]}}
    - {{name: place_on_floor}}
    - {{name: shuffle_points}}
  evaluate:
    - {{name: voxel_sample, size_m: 4.0, choice: nearest, score_all: true}}
    - {{name: place_on_floor}}
optimizer: {{name: adam, lr: 1e-3}}
train: {{epochs: 2, batch_size: 4, precision: float64}}
evaluate: {{metric: miou, batch_size: 1}}
log: {{every: 1, tensorboard: false}}
distributed: {{sync_batch_norm: true}}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    source = write_s3dis(folder / "raw")
    S3dis.prepare(source=source, target=folder / "s3dis", name="s3dis", progress=no_progress)
    (folder / "tiny.yaml").write_text(SCENES_CONFIG.format(root=folder / "s3dis"))
    return folder / "tiny.yaml"


@pytest.fixture(scope="module")
def run(config: Path) -> Path:
    out = config.parent / "one"
    succeed("train", config, "--out", out, "--no-check", "--device", "cpu")
    return out


def test_every_original_point_is_scored_and_evaluation_repeats(run: Path) -> None:
    final = json.loads((run / "final.json").read_text())
    counts = {name: row["count"] for name, row in final["per_class"].items()}
    num_points = sum(4 + len(file) for files in ROOMS["Area_5"].values() for file in files)
    assert sum(counts.values()) == num_points
    assert counts["sofa"] == 4 + len("sofa_1")
    again = run.parent / "again.json"
    succeed("evaluate", run, "--json", again, "--device", "cpu")
    found = json.loads(again.read_text())
    assert found["per_class"] == final["per_class"]
    assert found["metrics"] == final["metrics"]


@pytest.mark.parametrize("width", [3, 6])
def test_the_demo_of_scenes_runs(tmp_path: Path, width: int) -> None:
    """The shipped recipe on four sparse rooms, with colours and without: the model's input follows the data."""
    config = ROOT / "configs" / "segment" / "synthetic_rooms_point_transformer.yaml"
    sizes = ["data.train_size=4", "data.test_size=2", "data.points_per_m2=4", "train.epochs=1", "train.batch_size=2"]
    small = ["model.widths=[8,8,8,8]", f"data.colours={'true' if width == 6 else 'false'}", "log.tensorboard=false"]
    if width == 3:  # nothing to recolour
        small.append("transforms.train=[{name: rotate}, {name: crop_points, max_points: 200}]")
    succeed("train", config, *sizes, *small, "--out", tmp_path / "run", "--no-check", "--device", "cpu")
    final = json.loads((tmp_path / "run" / "final.json").read_text())
    assert sum(row["count"] for row in final["per_class"].values()) > 400
    facts = json.loads((tmp_path / "run" / "facts.json").read_text())
    assert facts["in_channels"] == width


@pytest.mark.processes
def test_two_processes_have_the_numbers_of_one(run: Path, config: Path) -> None:
    words = ["train", str(config), "--out", str(config.parent / "two"), "--no-check", "--device", "cpu"]
    code, text = run_forked(words, config.parent / "two.log", num_processes=2)
    assert code == 0, text
    ours, theirs = metrics(config.parent / "two"), metrics(run)
    assert len(ours) == len(theirs) > 4
    for mine, its in zip(ours, theirs, strict=True):
        names = [name for name in its if name.startswith(("loss", "grad_norm", "miou"))]
        # rounding of 1e-16 grows through batch norms of few points and Adam, as in test_processes.py
        assert [mine[name] for name in names] == pytest.approx([its[name] for name in names], rel=1e-9)
