"""Runs on LiDAR scans: files get the labels that evaluation scored, label files are read back and scored by anyone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sightline
from sightline.areas.scans.sets.semantic_kitti import LABEL_MAPS
from sightline.store.label_maps import read_label_map
from tests.command import document_of, refuse, run_here, succeed
from tests.data.clouds.cloud_writers import write_ply
from tests.data.scans.lidar_writers import write_semantic_kitti
from tests.golden_parity import load_golden

MAP = read_label_map("single", LABEL_MAPS)
IDS = [MAP.ids_of_classes[label] for label in range(20)]
HIDDEN = np.array([[0, 0, 0, 0.5], [3, 0, 30, 0.5], [0, 0, -9, 0.1]], dtype="<f4")
"""No return, and points far above and below the field of view."""
CONFIG = """
task: {name: segment}
data: {name: semantic_kitti, root: ROOT}
model: {name: salsanext, width: 4, dropout: 0.0}
losses: [{name: cross_entropy}]
metrics: [{name: iou, absent: zero}, {name: iou_by_distance, absent: zero}, {name: pixel_iou, absent: zero}]
transforms:
  train: [{name: project, height: 16, width: 64}]
  evaluate: [{name: project, height: 16, width: 64}]
optimizer: {name: adamw, lr: 5e-3}
train: {epochs: 12, batch_size: 2}
evaluate: {metric: miou, batch_size: 2}
log: {tensorboard: false}
"""


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tree `kitti`, of which sequence 11 has no labels, the prepared `set`, and a `run` on it."""
    folder = tmp_path_factory.mktemp("street")
    tree = folder / "kitti"
    write_semantic_kitti(tree, {"00": 4, "08": 3, "11": 2})
    shutil.rmtree(tree / "sequences/11/labels")
    scan = tree / "sequences/08/velodyne/000001.bin"
    scan.write_bytes(HIDDEN.tobytes() + scan.read_bytes())
    labels = tree / "sequences/08/labels/000001.label"
    labels.write_bytes(np.array([40, 50, 48], dtype="<u4").tobytes() + labels.read_bytes())
    succeed("data", "prepare", "semantic_kitti", "--from", tree, "--to", folder / "set")
    (folder / "run.yaml").write_text(CONFIG.replace("ROOT", str(folder / "set")))
    succeed("train", folder / "run.yaml", "--no-check", "--device", "cpu", "--out", folder / "run")
    return folder


def by_rings(data: str, *, height: int) -> str:
    """The same run on another set, for one epoch, with a row for each ring."""
    config = CONFIG.replace("semantic_kitti, root: ROOT", data).replace("epochs: 12", "epochs: 1")
    return config.replace("height: 16, width: 64", f"height: {height}, width: 64, rows: ring")


def predict(street: Path, *words: object, expect: int = 0) -> tuple[dict[str, Any], str]:
    out = street / "predicted.json"
    done = run_here("predict", street / "run", *words, "--device", "cpu", "--json", out)
    assert done.code == expect, done.err
    return json.loads(out.read_text()), done.err


def evaluate(street: Path, *words: object) -> dict[str, Any]:
    document: dict[str, Any] = document_of("evaluate", street / "run", *words, "--device", "cpu", "--save-predictions")
    return document


def bin_of(street: Path, name: str) -> Path:
    sequence, frame = name.split("/")
    return street / "kitti/sequences" / sequence / "velodyne" / f"{frame}.bin"


@pytest.mark.parametrize("lift", ["nearest", "knn"])
def test_files_get_the_labels_that_evaluation_scored(street: Path, tmp_path: Path, lift: str) -> None:
    kept = tmp_path / "kept"
    scored = evaluate(street, f"task.lift={lift}", "--out", kept)
    document, _ = predict(street, street / "kitti", f"lift={lift}", "--out", tmp_path / "out")
    assert [row["file"] for row in document["predictions"]] == [
        str(bin_of(street, name)) for name in (*(f"00/{n:06d}" for n in range(4)), "08/000000", "08/000001",
                                               "08/000002", "11/000000", "11/000001")
    ]  # fmt: skip
    confusion = np.zeros((20, 20), dtype=np.int64)
    for number in range(3):
        name = f"sequences/08/predictions/{number:06d}.label"
        labels = np.load(tmp_path / f"out/08/velodyne/{number:06d}.labels.npy") if number < 2 else None
        ids = np.fromfile(tmp_path / "out" / name, dtype="<u4")
        mine = MAP.classes(ids.astype(np.int64), where="the file")
        assert set(ids.tolist()) <= set(IDS)
        assert labels is None or np.array_equal(labels, mine)
        assert (tmp_path / "out" / name).read_bytes() == (kept / name).read_bytes()
        assert np.array_equal(np.load(kept / f"08_{number:06d}.npy"), mine)
        truth = np.fromfile(street / f"kitti/sequences/08/labels/{number:06d}.label", dtype="<u4") & 0xFFFF
        target = MAP.classes(truth.astype(np.int64), where="the file")
        assert len(ids) == len(truth)
        np.add.at(confusion, (target[target > 0], mine[target > 0]), 1)
    assert confusion.tolist() == scored["confusion"]["counts"]
    assert (confusion.sum(axis=0) > 0).sum() >= 3  # the run tells some classes apart
    assert (tmp_path / "out/sequences/11/predictions/000001.label").stat().st_size == bin_of(
        street, "11/000001"
    ).stat().st_size // 4
    found = [path for path in (tmp_path / "out/sequences").rglob("*") if path.is_file()]
    assert {path.suffix for path in found} == {".label"}  # the evaluator takes every name with .label in it


def test_points_that_no_pixel_shows_get_their_pixels_class(street: Path) -> None:
    found = sightline.load_run(street / "run").predict([bin_of(street, "08/000001")]).predicted[0]
    assert found.num_points == bin_of(street, "08/000001").stat().st_size // 16
    assert np.array_equal(found.points[:3], HIDDEN[:, :3])
    assert found.treatment == "as it is"


def test_every_kind_of_file_gets_the_same_labels(street: Path, tmp_path: Path) -> None:
    table = np.fromfile(bin_of(street, "08/000000"), dtype="<f4").reshape(-1, 4)
    x, y, z, remission = table.T
    np.save(tmp_path / "scan.npy", table)
    write_ply(tmp_path / "scan.ply", dict(zip(("x", "y", "z", "intensity"), table.T, strict=True)))
    header = f"""VERSION 0.7\nFIELDS x y z intensity\nSIZE 4 4 4 4\nTYPE F F F F\nCOUNT 1 1 1 1\nWIDTH {len(table)}
HEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {len(table)}\nDATA binary\n"""
    (tmp_path / "scan.pcd").write_bytes(header.encode() + table.tobytes())
    np.stack([x, y, remission, x, z], axis=1).astype("<f4").tofile(tmp_path / "odd.bin")
    run = sightline.load_run(street / "run")
    expected = run.predict([bin_of(street, "08/000000")]).predicted[0]
    for name in ("scan.npy", "scan.ply", "scan.pcd"):
        found = run.predict([tmp_path / name])
        assert not found.refused, found.refused
        assert np.array_equal(found.predicted[0].labels, expected.labels)
    found = run.predict([tmp_path / "odd.bin"], columns=("x", "y", "remission", "_", "z"))
    assert np.array_equal(found.predicted[0].labels, expected.labels)


def test_files_that_do_not_fit_are_named_with_what_would(street: Path, tmp_path: Path) -> None:
    sound = np.fromfile(bin_of(street, "08/000000"), dtype="<f4").reshape(-1, 4)[:900]
    (tmp_path / "cut.bin").write_bytes(sound.tobytes()[:-4])
    (sound * np.float32([1e3, 1e3, 1e3, 1])).tofile(tmp_path / "mm.bin")
    (sound * np.float32([1, 1, 1, 255])).tofile(tmp_path / "bytes.bin")
    np.random.default_rng(0).uniform(-5, 40, (120, 5)).astype("<f4").tofile(tmp_path / "five.bin")
    np.save(tmp_path / "bare.npy", sound[:, :3])
    write_ply(tmp_path / "bare.ply", dict(zip("xyz", sound[:, :3].T, strict=True)))
    document, told = predict(street, tmp_path, expect=2)
    reasons = {Path(each["file"]).name: each["reason"] for each in document["refused"]}
    whole = "has 14396 bytes, which fit no number of columns from 3 to 6 of float32, not 4 (x, y, z, remission)"
    assert whole in reasons["cut.bin"]
    assert "900 of 900 points (100 %) lie beyond" in reasons["mm.bin"]
    assert "the remission of point 0 is 49.3418" in reasons["bytes.bin"]
    assert "remissions not negative" in reasons["five.bin"]
    assert "it was read as x, y, z, remission: --columns names others" in reasons["five.bin"]
    assert "3 columns, 4 are named" in reasons["bare.npy"]
    assert "has no remission, which the run was trained with; it has x, y, z" in reasons["bare.ply"]
    assert "0 of 6 files" in told or not document["predictions"]


def test_labels_of_others_are_not_overwritten(street: Path, tmp_path: Path) -> None:
    shutil.copy(bin_of(street, "08/000000"), tmp_path / "own.bin")
    (tmp_path / "own.label").write_bytes(b"precious")
    told = refuse("predict", street / "run", tmp_path / "own.bin", "--device", "cpu", "--out", tmp_path)
    assert "own.label contains the labels of a file to predict and would be overwritten" in told
    predict(street, tmp_path / "own.bin", "--out", tmp_path / "out", "files=[label]")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["own.label"]
    shutil.copytree(street / "kitti/sequences/08", tmp_path / "again/08")
    words = (street / "kitti/sequences/08", tmp_path / "again", "--device", "cpu", "--out", tmp_path / "both")
    told = refuse("predict", street / "run", *words)
    assert "both go to sequences/08/predictions/000000.label; predict them one by one" in told


@pytest.fixture(scope="module")
def saved_scores(street: Path) -> tuple[Path, dict[str, Any]]:
    """What `--save-predictions` wrote, and the figures of that evaluation."""
    document = evaluate(street, "--out", street / "kept")
    return street / "kept", document


def score(street: Path, predictions: Path, config: Path | None = None, *words: object) -> dict[str, Any]:
    document: dict[str, Any] = document_of("score", predictions, "--data", config or street / "run.yaml", *words)
    return document


def test_kept_predictions_score_as_the_run_did(
    street: Path, saved_scores: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """By the kept labels, by the label files alone, and by a config of two sections."""
    folder, expected = saved_scores
    shutil.copytree(folder / "sequences", tmp_path / "only/sequences")
    (tmp_path / "two.yaml").write_text("".join(CONFIG.splitlines(keepends=True)[i] for i in (2, 5)).replace(
        "ROOT", str(street / "set")))  # fmt: skip
    for found in (
        score(street, folder),
        score(street, tmp_path / "only"),
        score(street, tmp_path / "only", tmp_path / "two.yaml"),
    ):
        points = {name: value for name, value in expected["metrics"].items() if not name.startswith("pixel_")}
        assert found["metrics"] == points
        assert found["by_distance"] == expected["by_distance"]
        assert found["confusion"] == expected["confusion"]
    assert expected["metrics"]["pixel_miou"] > 0
    assert {"iou", "pixel_iou"} <= expected["per_class"]["road"].keys()


def test_label_files_that_do_not_fit_are_named(
    street: Path, saved_scores: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder = tmp_path / "own"
    shutil.copytree(saved_scores[0] / "sequences", folder / "sequences")
    first, second = (folder / f"sequences/08/predictions/{n:06d}.label" for n in (0, 1))
    whole = first.read_bytes()

    def refused() -> str:
        return refuse("score", folder, "--data", street / "run.yaml")

    first.write_bytes(whole[:-8])
    assert f"{first}: has {len(whole) - 8} bytes, {len(whole)} are expected" in refused()
    foreign = np.frombuffer(whole, dtype="<u4").copy()
    foreign[:7] = 77
    first.write_bytes(foreign.tobytes())
    assert f"{first}: the label id 77 (7 points) not in the map single" in refused()
    first.write_bytes(whole)
    shutil.copy(first, folder / "sequences/08/predictions/000009.label")
    done = succeed("score", folder, "--data", street / "run.yaml", "--against", "published")
    assert "not scored: 1 files of samples outside the test part" in done.err
    assert "--against published: these data differ from the 'semantic_kitti' of the published results" in done.err
    second.unlink()
    assert "1 of 3 test samples have no predictions" in refused()
    assert "000001.label; of other samples there are 1" in refused()
    assert "Missing option '--data'" in refuse("score", folder)


@pytest.mark.shared
def test_scores_are_those_of_the_published_evaluator(shared: Path, tmp_path: Path) -> None:
    """Its three scans and predictions as files. Its distances leave out points at their edges: unlabelled in 09."""
    golden = load_golden(shared, "semantic_kitti_scripts", area="lidar")
    for number in range(3):
        points, truth, found = (golden.arrays[f"scan{number}/{name}"] for name in ("points", "label", "prediction"))
        points = np.abs(points) * [1, 1, 1, 1] * np.where(np.arange(4) == 3, 1, np.sign(points))  # remissions of theirs
        is_edge = np.isin(np.linalg.norm(points[:, :3].astype(np.float32), axis=1), [0, 10, 20])
        for sequence, labels in (("00", truth), ("08", truth), ("09", np.where(is_edge, 0, truth))):
            for place, values in {
                f"kitti/sequences/{sequence}/velodyne/{number:06d}.bin": points.astype("<f4"),
                f"kitti/sequences/{sequence}/labels/{number:06d}.label": labels.astype("<u4"),
                f"theirs/sequences/{sequence}/predictions/{number:06d}.label": found,
            }.items():
                (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / place).write_bytes(values.tobytes())
    succeed("data", "prepare", "semantic_kitti", "--from", tmp_path / "kitti", "--to", tmp_path / "set")
    config = "".join(line for line in CONFIG.splitlines(keepends=True) if line.startswith(("data", "metrics")))
    (tmp_path / "two.yaml").write_text(config.replace("ROOT", str(tmp_path / "set")))
    words = (tmp_path / "theirs", tmp_path / "two.yaml")
    whole, parts = score(tmp_path, *words), score(tmp_path, *words, "data.test_sequences=[9]")
    expected = golden.info["evaluate_semantics"]
    assert whole["metrics"]["miou"] == pytest.approx(expected["iou_mean"], abs=1e-12)
    assert whole["metrics"]["overall_accuracy"] == pytest.approx(expected["accuracy_mean"], abs=1e-12)
    for name in MAP.class_names[1:]:
        assert whole["per_class"][name]["iou"] == pytest.approx(expected[f"iou_{name}"], abs=1e-12)
    assert parts["by_distance"]["stretches"][:5] == ["0_10m", "10_20m", "20_30m", "30_40m", "40_50m"]
    for place, far in enumerate((10, 20, 30, 40, 50)):
        expected = {
            key.removeprefix(f"{far:.1f}m_iou_"): value
            for key, value in golden.info["evaluate_semantics_by_distance"].items()
        }
        stretch = parts["by_distance"]["stretches"][place]
        assert parts["metrics"][f"miou_{stretch}"] == pytest.approx(expected["mean"], abs=1e-12)
        for name in MAP.class_names[1:]:
            assert (parts["by_distance"]["iou"][name][place] or 0) == pytest.approx(expected[name], abs=1e-12)


@pytest.mark.shared
def test_range_images_get_the_labels_that_evaluation_scored(shared: Path, tmp_path: Path) -> None:
    source = shared / "data/squeezeseg_samples/data/samples"
    succeed("data", "prepare", "squeezeseg_npy", "--from", source, "--to", tmp_path / "set")
    config = by_rings(f"squeezeseg_npy, root: {tmp_path}/set, test_share: 0.5", height=64)
    (tmp_path / "run.yaml").write_text(config)
    succeed("train", tmp_path / "run.yaml", "--no-check", "--device", "cpu", "--out", tmp_path / "run")
    succeed("evaluate", tmp_path / "run", "--device", "cpu", "--save-predictions", "--out", tmp_path / "kept")
    succeed("predict", tmp_path / "run", source, "--device", "cpu", "--out", tmp_path / "out")
    kept = sorted((tmp_path / "kept").glob("*.npy"))
    assert len(kept) == 2
    for file in kept:
        labels = np.load(tmp_path / "out" / f"{file.stem}.labels.npy")
        assert len(labels) == (np.load(source / file.name)[..., 4] > 0).sum()
        assert np.array_equal(np.load(file), labels)
