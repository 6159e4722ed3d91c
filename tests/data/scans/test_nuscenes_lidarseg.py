"""nuScenes lidarseg: scans and labels paired by the tables, names of scenes and categories, refusals."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.areas.scans.sets.scan_folder import ScanFolder
from sightline.contract.types import SampleKey
from sightline.store.files.sensors import SensorBlock
from tests.cases import run_each
from tests.data.preparing import refuse
from tests.data.scans.lidar_writers import quiet

SENSOR: SensorBlock = {"preset": "hdl32"}
NUM_POINTS = (40, 30, 20)


def write_nuscenes(root: Path) -> None:
    """Two scenes, the later one first in the tables; a scan of each number of points, and a sweep without labels."""
    generator = np.random.default_rng(0)
    tables: dict[str, list[dict[str, Any]]] = {
        "scene": [{"token": f"scene{i}", "name": f"scene-{9 - i:04d}"} for i in range(2)],
        "sample": [{"token": f"sample{i}", "scene_token": f"scene{i % 2}"} for i in range(3)],
        "category": [{"token": f"c{i}", "name": name, "index": i} for i, name in enumerate(("noise", "car", "tree"))],
        "sample_data": [],
        "lidarseg": [],
    }
    for number, count in enumerate(NUM_POINTS):
        scan, label = f"samples/LIDAR_TOP/n{number}__LIDAR_TOP__7.pcd.bin", f"lidarseg/v1.0-mini/s{number}_lidarseg.bin"
        rows = generator.uniform(1, 9, (count, 5)).astype("<f4")
        rows[:, 2], rows[:, 4] = np.arange(count) % 32, np.arange(count) % 32
        for name, content in ((scan, rows), (label, np.arange(count, dtype="u1") % 3)):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content.tobytes())
        data = {"token": f"s{number}", "sample_token": f"sample{number}", "filename": scan, "is_key_frame": True}
        tables["sample_data"].append(data)
        tables["lidarseg"].append({"token": f"s{number}", "sample_data_token": f"s{number}", "filename": label})
    for name in ("sweeps/LIDAR_TOP/n9.pcd.bin", "samples/CAM_FRONT/n9.jpg", "samples/RADAR_FRONT/n9.pcd"):
        is_key = not name.startswith("sweeps")
        data = {"token": name, "sample_token": "sample0", "filename": name, "is_key_frame": is_key}
        tables["sample_data"].append(data)
    (root / "v1.0-mini").mkdir()
    for name, table in tables.items():
        (root / f"v1.0-mini/{name}.json").write_text(json.dumps(table))


def prepare(source: Path, target: Path, **options: Any) -> dict[str, Any]:
    return ScanFolder.prepare(source=source, target=target, name="scan_folder", progress=quiet, **options)


@run_each("folder", [".", "v1.0-mini"])
def test_the_tables_pair_scans_and_labels(tmp_path_factory: pytest.TempPathFactory, folder: str) -> None:
    tmp_path = tmp_path_factory.mktemp("nuscenes")
    root = tmp_path / "in"
    write_nuscenes(root)
    report = prepare(root / folder, tmp_path / "set")
    assert report["layout"] == "nuscenes_lidarseg"
    assert report["points_per_id"] == {"0": 31, "1": 30, "2": 29}
    sweeps, how, rings = report["differences"]
    assert sweeps == "1 sweeps between key frames have no labels, and are left out"
    assert how == f"scans and labels are paired by {root}/v1.0-mini, and columns read as x, y, z, intensity, ring"
    assert rings.startswith(
        "the column of rings is not read, because its values are not whole numbers from 0 that rise"
    )
    options: dict[str, Any] = {"root": str(tmp_path / "set"), "sensor": {**SENSOR, "remission_max": 255}}
    options |= {"tested": ("scene-0008",), "validation_share": 0.0}
    train, test = (ScanFolder(split=split, **options) for split in ("train", "test"))
    assert [train.sample_name(i) for i in range(2)] == [f"scene-0009/n{n}__LIDAR_TOP__7" for n in (0, 2)]
    assert train.info.facts["class_names"] == ("noise", "car", "tree")
    assert train.info.facts["ignore_index"] == 0
    sample = test[SampleKey(0, 0, 0)]
    rows = np.fromfile(root / "samples/LIDAR_TOP/n1__LIDAR_TOP__7.pcd.bin", dtype="<f4").reshape(-1, 5)
    assert np.array_equal(sample["points"], rows[:, :3])
    assert np.array_equal(sample["label"], np.arange(30) % 3)


def test_a_real_frame_with_rings(shared: Path, tmp_path: Path) -> None:
    (frame,) = (shared / "data/mmdet3d_demo/nuscenes").glob("*.pcd.bin")
    write_nuscenes(tmp_path / "in")
    for number in range(3):
        shutil.copy(frame, tmp_path / f"in/samples/LIDAR_TOP/n{number}__LIDAR_TOP__7.pcd.bin")
        labels = np.full(frame.stat().st_size // 20, number, dtype="u1")
        (tmp_path / f"in/lidarseg/v1.0-mini/s{number}_lidarseg.bin").write_bytes(labels.tobytes())
    prepare(tmp_path / "in", tmp_path / "set", num_beams=32, ring_order="bottom_first")
    scans = ScanFolder(split="test", sensor=SENSOR, root=str(tmp_path / "set"))
    sample = scans[SampleKey(0, 0, 0)]
    assert scans.sample_name(0) == "scene-0009/n2__LIDAR_TOP__7"
    assert set(sample["label"].tolist()) == {2}
    assert int(sample["ring"].max()) == 31


def test_a_survey_names_the_categories(tmp_path: Path) -> None:
    write_nuscenes(tmp_path)
    found = ScanFolder.survey(tmp_path, ring_order="bottom_first")
    assert found["points_per_id"] == {"0 noise": 31, "1 car": 30, "2 tree": 29}


def edit(table: str, change: Callable[[list[Any]], Any]) -> Callable[[Path], None]:
    """Make a fault: what `change` makes of the rows of a table."""

    def plant(root: Path) -> None:
        path = root / f"v1.0-mini/{table}.json"
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return plant


FAULTS: list[tuple[Callable[[Path], Any], str]] = [
    (edit("lidarseg", lambda rows: rows[:-1]), "lidarseg.json: has no labels of 1 key frames, first samples/LIDAR"),
    (edit("lidarseg", lambda rows: []), "lidarseg.json: has no labels of 3 key frames"),
    (edit("lidarseg", lambda rows: [*rows, rows[0]]), "lidarseg.json: row 3 repeats the sample_data_token s0"),
    (edit("lidarseg", lambda rows: [rows[0], {"sample_data_token": "s1"}]), "json: row 1 has no text 'filename'"),
    (edit("lidarseg", lambda rows: [{**rows[0], "filename": "../../a"}]), "'../../a' lies outside"),
    (edit("sample_data", lambda rows: rows[1:]), "sample_data.json: has no row 's0', which another table names"),
    (edit("sample", lambda rows: []), "sample.json: has no row 'sample0'"),
    (edit("scene", lambda rows: {}), "scene.json: is no list of rows"),
    (lambda root: (root / "v1.0-mini/scene.json").write_text("[{"), "scene.json: does not read as JSON"),
    (lambda root: (root / "v1.0-mini/sample.json").unlink(), "sample.json: cannot be read"),
    (lambda root: (root / "lidarseg/v1.0-mini/s1_lidarseg.bin").unlink(), "s1_lidarseg.bin: there is no such file"),
    (
        lambda root: (root / "lidarseg/v1.0-mini/s1_lidarseg.bin").write_bytes(b"1" * 29),
        "s1_lidarseg.bin: has 29 bytes, 30 are expected: one uint8 for each of the 30 points",
    ),
    (lambda root: shutil.copytree(root / "v1.0-mini", root / "v1.0-trainval"), "has 2 sets of tables; give one: "),
]


@run_each("plant, message", FAULTS)
def test_faulty_tables_are_refused(
    tmp_path_factory: pytest.TempPathFactory, plant: Callable[[Path], Any], message: str
) -> None:
    root = tmp_path_factory.mktemp("nuscenes")
    write_nuscenes(root)
    plant(root)
    refuse(prepare, root, re.escape(message))
