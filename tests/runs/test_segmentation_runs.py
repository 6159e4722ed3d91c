"""Whole runs on scenes: from files to figures, every point scored, the same on two processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sightline.areas.scenes.sets.s3dis import S3dis
from tests.command import document_of, succeed
from tests.data.scenes.scene_writers import ROOMS, no_progress, write_s3dis
from tests.runs.broken_off import metrics, run_forked
from tests.runs.segments import PLUGIN, SCENES

# --- whole small runs on scenes: the recipe's transforms, every point scored, one process or two ----------------------


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
    found = document_of("evaluate", run, "--device", "cpu")
    assert found["per_class"] == final["per_class"]
    assert found["metrics"] == final["metrics"]


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


@pytest.mark.parametrize("label", [255, 1])
def test_a_set_of_ignored_points_has_no_figures_and_one_of_a_class_has(label: int, tmp_path: Path) -> None:
    """All ignored, or of one class: losses are finite, and no figure is 0 or 1 where nothing was counted."""
    (tmp_path / "plugin.py").write_text(PLUGIN.replace("label[::10] = 255", f"label[:] = {label}"))
    (tmp_path / "scenes.yaml").write_text(SCENES)
    words = ("--plugin", tmp_path / "plugin.py", "--no-check", "--device", "cpu", "--out", tmp_path / "run")
    done = succeed("train", tmp_path / "scenes.yaml", "train.epochs=8", *words)
    losses = [line["loss/total"] for line in metrics(tmp_path / "run") if line["split"] == "train"]
    figures = json.loads((tmp_path / "run/final.json").read_text())["metrics"]
    if label == 255:
        assert set(losses) == {0.0}
        assert set(figures.values()) == {None}
        assert "no figure (miou, overall_accuracy, mean_class_accuracy, loss" in done.err
    else:
        assert losses[-1] < losses[0]
        assert figures == {"miou": 1.0, "overall_accuracy": 1.0, "mean_class_accuracy": 1.0}
