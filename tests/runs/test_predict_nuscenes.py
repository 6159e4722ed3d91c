"""A run on nuScenes lidarseg: files of its benchmark, byte for byte, from evaluation and of scans, and their score."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.command import document_of, refuse, run_here, succeed
from tests.data.scans import nuscenes_writers as writers

CONFIG = """
task: {name: segment}
data: {name: nuscenes_lidarseg, root: ROOT}
model: {name: salsanext, width: 4, dropout: 0.0}
losses: [{name: cross_entropy}]
metrics: [{name: iou}]
transforms:
  train: [{name: project, height: 32, width: 64, rows: ring}]
  evaluate: [{name: project, height: 32, width: 64, rows: ring}]
optimizer: {name: adamw, lr: 1e-2}
train: {epochs: 3, batch_size: 3}
evaluate: {metric: miou, batch_size: 2, select: test}
log: {tensorboard: false}
"""
SUBMISSION = (
    b'{"meta": {"use_camera": false, "use_lidar": true, "use_radar": false, "use_map": false, "use_external": false}}'
)
CLASS_OF = np.array([*writers.BENCHMARK.values()])
VALIDATION, TESTED = (3, 4), 5
"""Numbers of the frames of scene-0003, and of one that the tables of the test part name, too."""


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tree `nuscenes`, of which one frame is in the test part, the prepared `set`, and a `run`."""
    folder = tmp_path_factory.mktemp("street")
    tree = folder / "nuscenes"
    writers.write_nuscenes(tree)
    writers.write_splits(tree / "splits.py")
    succeed("data", "prepare", "nuscenes_lidarseg", "--from", tree, "--to", folder / "set")
    scan = f"samples/LIDAR_TOP/{writers.frame_names()[TESTED][2]}.pcd.bin"
    table = {"sample_data": [{"token": "t" * 32, "filename": scan}]}
    writers.write_tables(tree / "v1.0-test", table)
    (folder / "run.yaml").write_text(CONFIG.replace("ROOT", str(folder / "set")))
    succeed("train", folder / "run.yaml", "--no-check", "--device", "cpu", "--out", folder / "run")
    return folder


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_files_of_the_benchmark_and_their_score(street: Path, tmp_path: Path) -> None:
    kept, out, told = tmp_path / "kept", tmp_path / "out", tmp_path / "told.json"
    scored = document_of("evaluate", street / "run", "--device", "cpu", "--save-predictions", "--out", kept)
    words = (street / "nuscenes", "files=[label]", "--device", "cpu", "--out", out, "--json", told)
    done = run_here("predict", street / "run", *words)
    assert done.code == 0, done.err
    labels = {number: f"lidarseg/val/{writers.token_of('data', number)}_lidarseg.bin" for number in range(6)}
    labels[TESTED] = f"lidarseg/test/{'t' * 32}_lidarseg.bin"
    assert files_below(out) == {*labels.values(), "val/submission.json", "test/submission.json"}
    found = [Path(row["file"]).name for row in json.loads(told.read_text())["predictions"]]
    assert found == [f"{name}.pcd.bin" for _, _, name in writers.frame_names()]
    confusion = np.zeros((17, 17), dtype=np.int64)
    for number in VALIDATION:
        content = (out / labels[number]).read_bytes()
        assert content == (kept / labels[number]).read_bytes()
        answers = np.frombuffer(content, "u1")
        assert len(answers) == writers.NUM_POINTS
        assert answers.min() >= 1
        assert answers.max() <= 16
        np.add.at(confusion, (CLASS_OF[(np.arange(writers.NUM_POINTS) + number) % 32], answers), 1)
    assert {(folder / "val/submission.json").read_bytes() for folder in (out, kept)} == {SUBMISSION}
    assert (out / "test/submission.json").read_bytes() == SUBMISSION
    confusion[0] = 0
    assert confusion[1:, 1:].tolist() == scored["confusion"]["counts"]
    common, union = confusion.diagonal(), confusion.sum(axis=0) + confusion.sum(axis=1) - confusion.diagonal()
    expected = (common[union > 0] / union[union > 0]).mean()
    assert 0 < expected < 1
    assert scored["metrics"]["miou"] == pytest.approx(expected, abs=1e-12)
    for folder in (out, kept / "lidarseg/val"):  # of other programs, in one folder without a manifest
        document = document_of("score", folder, "--data", street / "run.yaml")
        assert document["metrics"]["miou"] == scored["metrics"]["miou"]


def test_predictions_beyond_the_classes_are_refused(street: Path, tmp_path: Path) -> None:
    for number in VALIDATION:
        answers = np.ones(writers.NUM_POINTS, dtype="u1")
        answers[:2] = 0, 17
        (tmp_path / f"{writers.token_of('data', number)}_lidarseg.bin").write_bytes(answers.tobytes())
    said = refuse("score", tmp_path, "--data", street / "run.yaml")
    assert "the label ids 0 (1 points), 17 (1 points) not in the map of nuScenes lidarseg's predictions; " in said
    assert "predictions are 1 to 16, the class's index and 1" in said


def test_a_scan_elsewhere_is_called_by_its_file(street: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.pcd.bin").write_bytes(writers.make_scan(0).tobytes())
    words = (tmp_path / "mine.pcd.bin", "files=[label]", "--device", "cpu", "--out", tmp_path / "out")
    succeed("predict", street / "run", *words)
    assert files_below(tmp_path / "out") == {"mine.pcd_lidarseg.bin"}
