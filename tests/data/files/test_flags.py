"""Points that LAS files flag: those withheld are left out, counted and asked for; others are counted. As laspy says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import laspy
import numpy as np
import pytest

from sightline.areas.scans.sets.scan_folder import ScanFolder
from sightline.areas.scenes.sets.scene_folder import SceneFolder
from sightline.contract.errors import DataError
from sightline.contract.types import SampleKey
from sightline.store.files.cloud_files import read_cloud
from sightline.view.cloud_file import view_file
from sightline.workbench.predict.file_samples import read_sample, read_scan_sample
from tests.cases import run_each
from tests.data.clouds.cloud_writers import prepare_folder
from tests.data.files.refusals import refused
from tests.data.preparing import prepare_set
from tests.data.scans.lidar_writers import OWN

NUM_POINTS, NUM_WITHHELD = 500, 100
LEFT_OUT = "are flagged withheld, which means deleted, and are left out: withheld=keep takes them"
USED = "are flagged withheld, which means deleted, and are used: withheld=drop leaves them out"


def write_flagged(
    path: Path, *, point_format: int = 6, seed: int = 0, flags: Mapping[str, int] | None = None
) -> laspy.LasData:
    """Write 500 points within 2 m, of which the first 100 are withheld and 500 m above; `flags` count further ones."""
    generator = np.random.default_rng(seed)
    cloud = laspy.LasData(laspy.LasHeader(version="1.4" if point_format > 5 else "1.2", point_format=point_format))
    cloud.header.scales = np.full(3, 1e-4)
    points = generator.uniform(0.5, 2.5, (NUM_POINTS, 3))
    points[:NUM_WITHHELD, 2] += 500
    cloud.x, cloud.y, cloud.z = points.T
    cloud.classification = np.arange(NUM_POINTS) % 3 + 1
    cloud.intensity = generator.integers(0, 256, NUM_POINTS)
    for name, count in {"withheld": NUM_WITHHELD, **(flags or {})}.items():
        cloud[name] = np.arange(NUM_POINTS) < count
    path.parent.mkdir(parents=True, exist_ok=True)
    cloud.write(path)
    return laspy.read(path)


@run_each("suffix", [".las", ".laz"])
@run_each("point_format", [0, 3, 6, 7])
def test_withheld_points_are_left_out_and_counted(tmp_path: Path, suffix: str, point_format: int) -> None:
    path = tmp_path / f"a{suffix}"
    written = write_flagged(path, point_format=point_format)
    is_withheld = np.asarray(written.withheld).astype(bool)
    assert is_withheld.sum() == NUM_WITHHELD
    dropped, kept, marked = (read_cloud(path, used=("intensity",), withheld=each) for each in ("drop", "keep", "mark"))
    assert np.array_equal(dropped.points, written.xyz[~is_withheld])
    assert np.array_equal(dropped.channels["intensity"], np.asarray(written.intensity)[~is_withheld])
    assert np.array_equal(kept.points, written.xyz)
    assert marked.is_withheld is not None
    assert np.array_equal(marked.is_withheld, is_withheld)
    assert dropped.notes == marked.notes == (f"100 of 500 points (20.0%) {LEFT_OUT}",)
    assert kept.notes == (f"100 of 500 points (20.0%) {USED}",)


@run_each(
    "point_format, flags, told",
    [
        (6, {"overlap": 50}, "50 of 500 points (10.0%) are flagged as overlap of two flight lines; they are used"),
        (6, {"synthetic": 5}, "5 of 500 points (1.0%) are flagged synthetic: computed, not measured; they are used"),
        (0, {"key_point": 1}, "1 of 500 points (0.2%) are flagged as key points; all points are used"),
        (1, {"classification": 12}, ""),
    ],
)
def test_other_flags_are_counted(tmp_path: Path, point_format: int, flags: Mapping[str, int], told: str) -> None:
    write_flagged(tmp_path / "a.las", point_format=point_format, flags={"withheld": 0, **flags})
    assert read_cloud(tmp_path / "a.las", used=()).notes == ((told,) if told else ())


def test_overlap_is_class_12_of_old_formats(tmp_path: Path) -> None:
    cloud = write_flagged(tmp_path / "a.las", point_format=1, flags={"withheld": 0})
    cloud.classification = np.where(np.arange(NUM_POINTS) < 20, 12, 2)
    cloud.write(tmp_path / "a.las")
    (note,) = read_cloud(tmp_path / "a.las", used=()).notes
    assert note.startswith("20 of 500 points (4.0%) are flagged as overlap")


def test_a_column_of_a_text_is_a_flag_too(tmp_path: Path) -> None:
    """PDAL writes the flags of LAS as columns."""
    rows = np.column_stack([np.random.default_rng(0).uniform(0, 1, (40, 3)), np.arange(40) < 10])
    np.savetxt(tmp_path / "a.csv", rows, header="X,Y,Z,Withheld", comments="", delimiter=",")
    cloud = read_cloud(tmp_path / "a.csv")
    assert np.allclose(cloud.points, rows[10:, :3])
    assert cloud.notes == (f"10 of 40 points (25.0%) {LEFT_OUT}",)


def test_a_file_of_withheld_points_alone_is_refused(tmp_path: Path) -> None:
    write_flagged(tmp_path / "a.las", flags={"withheld": NUM_POINTS})
    refused(tmp_path / "a.las", "all 500 points are flagged withheld, .* or take them by withheld=keep")


def test_a_prepared_folder_counts_them_once(tmp_path: Path) -> None:
    for number in range(12):
        name = "ab"[number % 2]
        write_flagged(tmp_path / "in" / name / f"{number}.las", seed=number)
    told = [
        (f"1200 of 6000 points (20.0%) {LEFT_OUT} (12 files, first: ", {}, 10),
        (f"1200 of 6000 points (20.0%) {USED} (12 files, first: ", {"withheld": "keep"}, 1000),
    ]
    for number, (text, options, reach) in enumerate(told):
        found = prepare_folder(
            tmp_path / "in", tmp_path / f"set{number}", num_points=400, normalisation="none", unit="m", **options
        )
        assert sum(line.startswith(text) for line in found["differences"]) == 1
        assert reach / 10 < found["ranges"]["points"][1] < reach


@run_each("beside", [False, True])
def test_labels_of_a_scene_stay_with_their_points(tmp_path: Path, beside: bool) -> None:
    root = tmp_path / f"in{beside}"
    for number in range(6):
        cloud = write_flagged(root / f"{number}.las", seed=number)
        if beside:
            labels = np.asarray(cloud.classification)
            (root / f"{number}.labels").write_text("".join(f"{label}\n" for label in labels.tolist()))
    options = {"up_axis": "z", "unit": "m", **({} if beside else {"label": "classification"})}
    target = tmp_path / f"set{beside}"
    prepare_set("scene_folder", root, target, lambda *_: None, **options)
    part = SceneFolder(split="train", root=str(target))
    sample = part[SampleKey(0, 0, 0)]
    number = int(part.sample_name(0)[0])
    cloud = laspy.read(root / f"{number}.las")
    is_used = ~np.asarray(cloud.withheld).astype(bool)
    expected = cloud.xyz[is_used] - cloud.xyz[is_used].min(axis=0)
    assert np.allclose(sample["points"], expected, atol=1e-6)
    assert sample["label"].tolist() == (np.asarray(cloud.classification)[is_used] - 1).tolist()
    found = read_sample(root / "0.las", part.info)
    assert found.origin is not None
    assert found.origin.rows is not None
    assert len(found.origin.points) == NUM_POINTS, "every point of a file gets a label"
    assert found.origin.rows.tolist() == [*range(NUM_WITHHELD, NUM_POINTS)]
    assert found.treatment.startswith(f"100 of 500 points (20.0%) {LEFT_OUT}")


def test_scans_keep_the_places_of_withheld_points(tmp_path: Path) -> None:
    for number in range(5):
        write_flagged(tmp_path / "in" / f"{number}.las", seed=number)
    prepare_set("scan_folder", tmp_path / "in", tmp_path / "set", lambda *_: None, label="classification")
    part = ScanFolder(split="train", root=str(tmp_path / "set"), sensor={**OWN, "remission_max": 255})
    sample = part[SampleKey(0, 0, 0)]
    assert len(sample["points"]) == NUM_POINTS
    assert not sample["points"][:NUM_WITHHELD].any()
    assert (sample["label"][:NUM_WITHHELD] == part.label_map.ignore_index).all()
    assert ScanFolder.open_folder(tmp_path / "set").array("all", "num_points").tolist() == [400] * 5
    fields = {name: part.info.fields[name] for name in ("points", "remission")}
    found = read_scan_sample(tmp_path / "in" / "0.las", part.info, fields, columns=None)
    assert "100 of 500 points without a return" in found.treatment


def test_a_scan_of_another_scale_of_remissions_is_refused(tmp_path: Path) -> None:
    for number in range(5):
        write_flagged(tmp_path / "in" / f"{number}.las", seed=number)
    prepare_set("scan_folder", tmp_path / "in", tmp_path / "set", lambda *_: None, label="classification")
    part = ScanFolder(split="train", root=str(tmp_path / "set"), sensor={**OWN, "remission_max": 255})
    fields = {name: part.info.fields[name] for name in ("points", "remission")}
    rows = np.random.default_rng(0).uniform(0.1, 1, (60, 4)).astype("<f4")
    rows.tofile(tmp_path / "a.bin")
    with pytest.raises(DataError, match=re.escape("and the run was trained on 0 to 255; multiply the column by 255")):
        read_scan_sample(tmp_path / "a.bin", part.info, fields, columns=("x", "y", "z", "intensity"))


def test_a_view_leaves_them_out(tmp_path: Path) -> None:
    written = write_flagged(tmp_path / "a.las")
    (stage,) = view_file(tmp_path / "a.las", name="a").stages
    assert np.array_equal(stage.points, written.xyz[NUM_WITHHELD:])
    assert LEFT_OUT in stage.description
