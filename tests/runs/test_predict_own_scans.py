"""Runs on one's own LiDAR scans: points without a return, far returns, rings by order, names of label files."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sightline
from sightline.areas.scans.sets.kitti_object import KittiObject
from sightline.areas.scans.sets.scan_folder import ScanFolder
from sightline.areas.scans.sets.semantic_kitti import SemanticKitti
from sightline.contract.errors import DataError
from sightline.contract.types import SampleKey
from sightline.workbench.predict.file_samples import read_scan_sample
from tests.command import document_of, refuse, succeed
from tests.data.scans.lidar_writers import OWN, own_scan, quiet, write_kitti_object, write_labels, write_semantic_kitti

COLUMNS = ("x", "y", "z", "intensity", "ring")
CONFIG = """
task: {name: segment}
data: {name: scan_folder, root: ROOT, sensor: SENSOR}
model: {name: salsanext, width: 4, dropout: 0.0}
losses: [{name: cross_entropy}]
metrics: [{name: iou}, {name: iou_by_distance}]
transforms:
  train: [{name: translate, max_shift: 1.0}, {name: project, height: 16, width: 64, rows: ring}]
  evaluate: [{name: project, height: 16, width: 64, rows: ring}]
optimizer: {name: adamw, lr: 5e-3}
train: {epochs: 3, batch_size: 2}
evaluate: {metric: miou, batch_size: 2}
log: {tensorboard: false}
"""


def tables(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A scan as rows of five columns in which a third has no return, their ids, and which have a return."""
    scan = own_scan(seed)
    table = np.column_stack([scan.points, scan.remission, scan.ring]).astype("<f4")
    is_return = np.random.default_rng(seed).random(len(table)) > 1 / 3
    table[~is_return, :4] = np.nan
    return table, np.where(is_return, scan.ids, 0), is_return


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `nan`, of scans with NaN, and `cut`, of the same scans without those points; sets and runs of both."""
    folder = tmp_path_factory.mktemp("sensor")
    for number in range(5):
        table, ids, is_return = tables(number)
        for name, chosen in (("nan", np.ones(len(ids), dtype=bool)), ("cut", is_return)):
            place = folder / name / f"{number:06d}.bin"
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(table[chosen].tobytes())
            write_labels(place.with_suffix(".label"), ids[chosen], np.zeros(int(chosen.sum())))
    sensor = "{fov_deg: [12.0, -18.0], azimuth_deg: [50.0, -50.0], num_beams: 16, remission_max: 255}"
    for name, more in (("nan", ["no_return=nan"]), ("cut", [])):
        words = ("--from", folder / name, "--to", folder / f"{name}_set", f"columns=[{', '.join(COLUMNS)}]")
        done = succeed("data", "prepare", "scan_folder", *words, "num_beams=16", *more)
        assert ("points without a return" in done.out + done.err) == bool(more)
        config = CONFIG.replace("ROOT", str(folder / f"{name}_set")).replace("SENSOR", sensor)
        (folder / f"{name}.yaml").write_text(config)
        succeed("train", folder / f"{name}.yaml", "--no-check", "--device", "cpu", "--out", folder / f"{name}_run")
    return folder


def test_points_without_a_return_change_nothing_but_the_length_of_files(runs: Path, tmp_path: Path) -> None:
    """Training, figures and labels are those of files without the points; every label file pairs with its scan."""
    sets = {name: ScanFolder(split="test", sensor=OWN, root=str(runs / f"{name}_set")) for name in ("nan", "cut")}
    assert sets["nan"].info.facts == sets["cut"].info.facts
    _, ids, is_return = tables(4)
    sample, cut = (sets[name][SampleKey(0, 0, 0)] for name in ("nan", "cut"))
    assert not sample["points"][~is_return].any()
    described = [succeed("describe", runs / f"{name}.yaml", "--depth", 1) for name in ("nan", "cut")]
    shown = [re.findall(r"\S+ of\s+the points\s+shown", done.out + done.err) for done in described]
    assert shown[0] == shown[1] != []
    assert all(np.array_equal(sample[name][is_return], cut[name]) for name in ("points", "remission", "label", "ring"))
    assert set(sample["label"][~is_return].tolist()) == {sets["nan"].label_map.ignore_index}
    figures = {name: document_of("evaluate", runs / f"{name}_run", "--device", "cpu") for name in ("nan", "cut")}
    for key in ("metrics", "confusion", "by_distance"):
        assert figures["nan"][key] == figures["cut"][key]
    found = {}
    for name in ("nan", "cut"):
        words = (runs / name, "--device", "cpu", "--out", tmp_path / name)
        document = document_of("predict", runs / f"{name}_run", *words)
        found[name] = np.fromfile(tmp_path / name / "000004.label", dtype="<u4")
        treatment = f"{(~is_return).sum()} of {len(ids)} points without a return" if name == "nan" else "as it is"
        assert document["predictions"][4]["treatment"] == treatment
    assert len(found["nan"]) == len(ids)
    assert np.array_equal(found["nan"][is_return], found["cut"])


def test_one_name_for_the_labels_of_a_scan(runs: Path, tmp_path: Path) -> None:
    """What predict wrote is scored as it lies, and what evaluate keeps is called the same."""
    words = ("--save-predictions", "--device", "cpu", "--out", tmp_path / "kept")
    expected = document_of("evaluate", runs / "nan_run", *words)
    succeed(
        "predict", runs / "nan_run", runs / "nan", "--device", "cpu", "--out", tmp_path / "answers", "files=[label]"
    )
    assert (tmp_path / "kept/000004.label").read_bytes() == (tmp_path / "answers/000004.label").read_bytes()
    found = document_of("score", tmp_path / "answers", "--data", runs / "nan.yaml")
    assert found["metrics"] == expected["metrics"]
    (tmp_path / "none").mkdir()
    assert "none/000004.label" in refuse("score", tmp_path / "none", "--data", runs / "nan.yaml")


def test_a_few_returns_far_beyond_the_set_are_predicted(runs: Path, tmp_path: Path) -> None:
    """Quantiles decide: four far points are taken, one in fifty is not, nor is another unit; a stray point is named."""
    table = np.fromfile(runs / "cut/000004.bin", dtype="<f4").reshape(-1, 5)
    reach = 2 * max(
        np.abs(np.fromfile(file, "<f4").reshape(-1, 5)[:, :3]).max() for file in (runs / "cut").glob("*.bin")
    )
    far, many, millimetres, stray = table.copy(), table.copy(), table.copy(), table.copy()
    far[[1, 5, 9, 50], :3] *= (1.5 * reach / np.linalg.norm(far[[1, 5, 9, 50], :3], axis=1))[:, None]
    many[::50, :3] *= (1.5 * reach / np.linalg.norm(many[::50, :3], axis=1))[:, None]
    millimetres[:, :3] *= 1000
    stray[7, 0] = 1e30
    bright, empty = table.copy(), np.zeros_like(table)
    bright[11, 3] = 1e30
    files = {"far": far, "many": many, "mm": millimetres, "stray": stray, "bright": bright, "empty": empty}
    for name, values in files.items():
        values.tofile(tmp_path / f"{name}.bin")
    run = sightline.load_run(runs / "cut_run")
    document = run.predict([tmp_path / "far.bin"])
    assert not document.refused
    (found,) = document.predicted
    assert found.treatment == f"4 of {len(table)} points far beyond those of the run's set"
    (expected,) = run.predict([runs / "cut/000004.bin"]).predicted
    same = np.delete(np.arange(len(table)), [1, 5, 9, 50])
    assert (found.labels[same] == expected.labels[same]).mean() > 0.9  # of all points, not of those in view alone
    refused = {r.file.stem: r.reason for r in run.predict([tmp_path / f"{n}.bin" for n in files if n != "far"]).refused}
    count = len(table[::50])
    assert f"{count} of {len(table)} points ({100 * count / len(table):.3g} %) lie beyond" in refused["many"]
    assert f"to {np.abs(many[:, :3]).max():.4g}; up to 1 % may; take these points out" in refused["many"]
    assert "bring the file to the unit and frame of the run's set (m; sensor: x forward" in refused["mm"]
    assert "the remission of point 11 is 1e+30, the run's sensor gives at most 255" in refused["bright"]
    assert f"none of its {len(table)} points has a return" in refused["empty"]
    assert "point 7 lies 1e+30 m away, 99 % of" in refused["stray"]
    assert f"99 % of the {len(table)} points within" in refused["stray"]


@pytest.mark.filterwarnings("error")
def test_a_stray_point_is_refused_by_name_when_preparing(runs: Path, tmp_path: Path) -> None:
    """In float32 its square is infinite, in a text file it is beyond float32."""
    table = np.fromfile(runs / "cut/000001.bin", dtype="<f4").reshape(-1, 5)
    for value, told in (("1e30", "000001.txt: point 3 lies 1e+30 m away"), ("1e300", "000001.txt: point 3 is inf")):
        rows = [[f"{each:.9g}" for each in row] for row in table]
        rows[3][0] = value
        folder = tmp_path / value
        folder.mkdir()
        (folder / "000001.txt").write_text("\n".join(" ".join(row) for row in [[*COLUMNS], *rows]))
        shutil.copy(runs / "cut/000001.label", folder)
        words: dict[str, Any] = {"source": folder, "target": tmp_path / "set", "name": "scan_folder", "progress": quiet}
        with pytest.raises(DataError, match=told.replace("+", r"\+")):
            ScanFolder.prepare(**words, num_beams=16)
        with pytest.raises(DataError, match=told.replace("+", r"\+")):
            ScanFolder.survey(folder)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("made", [SemanticKitti, KittiObject])
def test_a_stray_point_of_kittis_layouts_is_named(
    tmp_path: Path, made: type[SemanticKitti] | type[KittiObject]
) -> None:
    if made is SemanticKitti:
        write_semantic_kitti(tmp_path / "tree", {"00": 2, "08": 1})
        stray = tmp_path / "tree/sequences/00/velodyne/000001.bin"
    else:
        write_kitti_object(tmp_path / "tree", 2)
        stray = tmp_path / "tree/training/velodyne/000001.bin"
    table = np.fromfile(stray, "<f4").reshape(-1, 4)
    table[5, 0] = 1e30
    table.tofile(stray)
    told = rf"{stray}: point \d+ lies 1e\+30 m away"
    with pytest.raises(DataError, match=told):
        made.prepare(source=tmp_path / "tree", target=tmp_path / "set", name=made.set_name, progress=quiet)


def test_without_the_option_nan_is_refused_and_the_option_named(runs: Path, tmp_path: Path) -> None:
    run = sightline.load_run(runs / "cut_run")
    (refusal,) = run.predict([runs / "nan/000004.bin"]).refused
    assert "is NaN at x, y and z" in refusal.reason
    assert "give no_return=nan if that marks points without a return" in refusal.reason
    (found,) = run.predict([runs / "nan/000004.bin"], no_return="nan").predicted
    (expected,) = run.predict([runs / "cut/000004.bin"]).predicted
    is_return = tables(4)[2]
    assert np.array_equal(found.labels[is_return], expected.labels)
    words = (runs / "nan/000004.bin", "--columns", ",".join(COLUMNS), "--out", tmp_path / "view")
    (stage,) = document_of("view", *words)["samples"][0]["stages"]
    assert stage["num_points"] == is_return.sum()
    assert sum(stage["classes"]["label file"].values()) == is_return.sum()


def test_files_without_rings_are_refused_in_the_words_of_predict(runs: Path, tmp_path: Path) -> None:
    table = np.fromfile(runs / "cut/000004.bin", dtype="<f4").reshape(-1, 5)[:96]
    table[:, :4].tofile(tmp_path / "four.bin")  # 1,536 bytes: no whole number of five columns
    table[:95, :4].tofile(tmp_path / "fits.bin")
    run = sightline.load_run(runs / "cut_run")
    reasons = [
        run.predict([tmp_path / "four.bin"]).refused[0].reason,
        run.predict([tmp_path / "fits.bin"]).refused[0].reason,
    ]
    reasons.append(run.predict([tmp_path / "four.bin"], columns=COLUMNS[:4]).refused[0].reason)
    assert "which fit 3 and 4 and 6 columns" in reasons[0]
    assert "it was read as x, y, z, intensity, ring: --columns names others" in reasons[1]
    assert "name the column ring in columns or --columns" in reasons[2]
    assert all("--columns" in reason for reason in reasons)


def test_a_scan_to_predict_may_lack_the_column_of_labels(tmp_path: Path) -> None:
    """At the end of its rows; a column that is read may not be missing."""
    (tmp_path / "own").mkdir()
    for number in range(2):
        scan = own_scan(number)
        table = np.column_stack([scan.points, scan.remission, scan.ring, scan.ids])
        np.save(tmp_path / f"own/{number}.npy", table)
    words = ("--from", tmp_path / "own", "--to", tmp_path / "set", "num_beams=16")
    succeed("data", "prepare", "scan_folder", *words, f"columns=[{', '.join(COLUMNS)}, label]")
    info = ScanFolder(split="test", root=tmp_path / "set", sensor=OWN).info
    fields = {name: info.fields[name] for name in ("points", "remission", "ring")}
    np.save(tmp_path / "labelled.npy", table)
    np.save(tmp_path / "plain.npy", table[:, :5])
    np.save(tmp_path / "short.npy", table[:, :4])
    read = {
        name: read_scan_sample(tmp_path / name, info, fields, columns=None) for name in ("labelled.npy", "plain.npy")
    }
    for name in fields:
        assert np.array_equal(read["plain.npy"].fields[name], read["labelled.npy"].fields[name])
    with pytest.raises(DataError, match=r"short\.npy: has 4 columns, 6 are named \(x, y, z, intensity, ring, label\)"):
        read_scan_sample(tmp_path / "short.npy", info, fields, columns=None)
