"""One's own scans: stated columns, every kind of file, rings, another sensor, the real five-column frame, refusals."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sightline.areas.scans.sets.scan_folder import ScanFolder
from sightline.contract.errors import ConfigError, DataError
from sightline.contract.types import SampleKey
from sightline.store.files.cloud_files import PointCloud
from sightline.store.files.scan_files import check_pose
from sightline.store.files.scan_reading import read_scan, scan_ids, to_raw_scan
from sightline.store.files.scan_samples import RawScan, check_scan
from sightline.store.files.sensors import SensorBlock
from tests.cases import run_each
from tests.data.files.refusals import refused
from tests.data.preparing import list_other_notes, refuse
from tests.data.scans.lidar_writers import OWN, own_scan, quiet, write_bin, write_labels, write_own

COLUMNS = ("x", "y", "z", "intensity", "ring")


def prepare(source: Path, target: Path, **options: Any) -> dict[str, Any]:
    return ScanFolder.prepare(source=source, target=target, name="scan_folder", progress=quiet, **options)


def opened(root: Path, split: str = "train", **arguments: Any) -> ScanFolder:
    return ScanFolder(**{"split": split, "sensor": OWN, "root": str(root), **arguments})


def test_a_sensor_of_ones_own_from_files_to_samples(tmp_path: Path) -> None:
    scans = write_own(tmp_path / "own", 5)
    prepare(tmp_path / "own", tmp_path / "set", columns=COLUMNS, num_beams=16)
    names = []
    for split in ("train", "validation", "test"):
        part = opened(tmp_path / "set", split)
        for index in range(len(part)):
            sample, scan = part[SampleKey(index, 0, 0)], scans[int(part.sample_name(index)[:3])]
            names.append(part.sample_name(index))
            assert np.array_equal(sample["points"], scan.points)
            assert np.array_equal(sample["remission"][:, 0], scan.remission / np.float32(255))
            assert np.array_equal(sample["ring"], scan.ring)
            assert np.array_equal(part.label_map.ids(sample["label"].numpy()), scan.ids)
            assert set(sample) == set(part.info.fields)
    assert names == ["000.bin", "001.bin", "002.bin", "003.bin", "004.bin"]
    train = opened(tmp_path / "set")
    facts = train.info.facts
    assert (facts["fov_deg"], facts["azimuth_deg"], facts["num_beams"]) == ((12.0, -18.0), (50.0, -50.0), 16)
    assert facts["ignore_index"] == 255
    assert facts["class_names"] == tuple(f"id_{raw}" for raw in np.unique(np.concatenate([s.ids for s in scans])))
    last = max(map(int, np.concatenate([s.ids for s in scans])))
    named = opened(tmp_path / "set", label_map=(None, *(f"class_{raw}" for raw in range(1, last + 1))))
    assert named.info.facts["class_names"] == ("unlabeled", *(f"class_{raw}" for raw in range(1, last + 1)))
    samples = [train[SampleKey(index, 0, 0)] for index in range(len(train))]
    points = torch.cat([each["points"] for each in samples]).double()
    values = torch.cat([points.norm(dim=1, keepdim=True), points, torch.cat([s["remission"] for s in samples])], dim=1)
    assert values.mean(dim=0).tolist() == pytest.approx(facts["input_mean"], abs=1e-4)
    assert values.std(dim=0, correction=0).tolist() == pytest.approx(facts["input_std"], abs=1e-4)


def write_kind(path: Path, names: Sequence[str], table: np.ndarray) -> None:
    """Write a table with named columns, or without their names as `.npy`."""
    count, size = len(names), len(table)
    properties = "".join(f"property float {name}\n" for name in names)
    headers = {
        "pcd": f"VERSION 0.7\nFIELDS {' '.join(names)}\nSIZE {'4 ' * count}\nTYPE {'F ' * count}\n"
        f"COUNT {'1 ' * count}\nWIDTH {size}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {size}\nDATA binary\n",
        "ply": f"ply\nformat binary_little_endian 1.0\nelement vertex {size}\n{properties}end_header\n",
    }
    kind = path.suffix[1:]
    if kind == "npy":
        np.save(path, table)
    elif kind == "txt":
        np.savetxt(path, table, fmt="%.9g", header=" ".join(names), comments="")
    else:
        path.write_bytes(headers[kind].encode() + table.tobytes())


@pytest.mark.parametrize("kind", ["npy", "txt", "pcd", "ply"])
def test_every_kind_of_file_gives_the_same_sample(tmp_path: Path, kind: str) -> None:
    folder, names = tmp_path / "own", ("x", "y", "z", "remission", "ring", "label")
    folder.mkdir()
    for number in range(2):
        scan = own_scan(number)
        table = np.column_stack([scan.points, scan.remission, scan.ring, scan.ids]).astype(np.float32)
        write_kind(folder / f"{number}.{kind}", names, table)
    prepare(folder, tmp_path / "set", num_beams=16, **({"columns": names} if kind == "npy" else {}))
    sample, scan = opened(tmp_path / "set", validation_share=0.0)[SampleKey(0, 0, 0)], own_scan(0)
    assert np.array_equal(sample["points"], scan.points)
    assert np.array_equal(sample["ring"], scan.ring)
    assert np.array_equal(sample["remission"][:, 0], scan.remission / np.float32(255))


def test_the_real_frame_of_five_columns(shared: Path, tmp_path: Path) -> None:
    """nuScenes: 173,440 float32 fit four columns and five, and ring 0 is the lowest beam."""
    (source,) = (shared / "data/mmdet3d_demo/nuscenes").glob("*.pcd.bin")
    with pytest.raises(DataError, match=r"its 693760 bytes fit 4 and 5 columns of float32.*name them: 'columns="):
        read_scan(source, columns=None)
    table = np.fromfile(source, dtype="<f4").reshape(-1, 5)
    folder = tmp_path / "own"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.bin").symlink_to(source)
        write_labels(folder / f"{name}.label", np.zeros(len(table)), np.zeros(len(table)))
    with pytest.raises(DataError, match="contradict ring_order=top_first; set ring_order=bottom_first"):
        prepare(folder, tmp_path / "set", columns=COLUMNS, num_beams=32, ring_order="top_first")
    report = prepare(folder, tmp_path / "set", columns=COLUMNS)
    assert report["rings"] == "a column of whole numbers from 0 (the lowest beam) to 31, read as num_beams=32"
    assert report["remission_high"] == 255
    sensor: SensorBlock = {"preset": "hdl32"}
    sample = opened(tmp_path / "set", "test", sensor=sensor)[SampleKey(0, 0, 0)]
    assert np.array_equal(sample["points"], table[:, :3])
    assert np.array_equal(sample["ring"], 31 - table[:, 4].astype(int))
    assert sample["remission"].max() == 1
    elevation = torch.asin(sample["points"][:, 2] / sample["points"].norm(dim=1).clamp_min(1e-6))
    rows = [elevation[(sample["ring"] == ring) & (sample["points"].norm(dim=1) > 1)].median() for ring in (0, 31)]
    assert np.rad2deg(float(rows[0])) == pytest.approx(10.67, abs=0.3)
    assert np.rad2deg(float(rows[1])) == pytest.approx(-30.67, abs=0.6)


def test_parts_are_folders_lists_or_the_order_of_names(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("test", 1)):
        write_own(tmp_path / f"folders/{split}", count)
    report = prepare(tmp_path / "folders", tmp_path / "set", columns=COLUMNS)
    assert report["layout"] == "split_folders"
    assert report["split"] == "train and test are given by folders; data.tested overrides them"
    part = opened(tmp_path / "set", "test")
    assert [part.sample_name(index) for index in range(len(part))] == ["test/000.bin"]
    assert part.info.split_sizes == {"train": 2, "validation": 1, "test": 1}
    assert "ring" in part.info.fields
    write_own(tmp_path / "listed", 3)
    (tmp_path / "listed/train.txt").write_text("\ufeff002\n")  # as Windows' Notepad begins a file
    (tmp_path / "listed/val.txt").write_text("000\n")
    listed = prepare(tmp_path / "listed", tmp_path / "other", columns=(*COLUMNS[:4], "_"))
    assert listed["differences"] == ["1 scans in none of the lists of listed, left out"]
    assert listed["split"] == "train and test are given by lists of names; data.tested overrides them"
    (tmp_path / "folders/train.txt").write_text("000\n")
    notes = prepare(tmp_path / "folders", tmp_path / "fourth", columns=COLUMNS)["differences"]
    assert notes[0] == "train.txt not read, as folders divide the scans"
    for name, other in (("val.txt", "val.txt or test.txt"), ("train.txt", "train.txt")):
        (tmp_path / "listed" / name).rename(tmp_path / "away.txt")
        with pytest.raises(DataError, match=rf"listed/\w+\.txt: is there without {other}; list the scans of the other"):
            prepare(tmp_path / "listed", tmp_path / "fifth", columns=COLUMNS)
        (tmp_path / "away.txt").rename(tmp_path / "listed" / name)
    write_own(tmp_path / "plain", 3)
    plain = prepare(tmp_path / "plain", tmp_path / "third", columns=(*COLUMNS[:4], "_"))
    assert plain["split"] == "by data.tested, else the last data.test_share in the order of names"
    assert opened(tmp_path / "other", "test").sample_name(0) == "000.bin"


def test_a_folder_called_val_holds_the_scans_of_validation(tmp_path: Path) -> None:
    """They were in no part, without a word."""
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        write_own(tmp_path / f"own/{split}", count)
    prepare(tmp_path / "own", tmp_path / "set", columns=(*COLUMNS[:4], "_"))
    part = opened(tmp_path / "set", "validation")
    assert [part.sample_name(index) for index in range(len(part))] == ["val/000.bin", "val/001.bin"]
    assert part.info.split_sizes == {"train": 3, "validation": 2, "test": 1}


@pytest.mark.parametrize("name", ["train/more/009.bin", "more/009.npy", "009.bin", "train/009.label"])
def test_no_scan_and_no_label_is_left_out_in_silence(tmp_path: Path, name: str) -> None:
    for split in ("train", "test"):
        write_own(tmp_path / f"own/{split}", 2)
    (tmp_path / "own/notes.md").write_text("mine")
    manifest = prepare(tmp_path / "own", tmp_path / "set", columns=(*COLUMNS[:4], "_"))
    assert list_other_notes(manifest) == ["1 file of another kind passed over: notes.md"]
    (tmp_path / "own" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "own" / name).write_bytes((tmp_path / "own/train/000.bin").read_bytes())
    with pytest.raises(DataError, match=rf"{name}: would be left out; lay it out as scans in one folder, or in its"):
        prepare(tmp_path / "own", tmp_path / "set2", columns=(*COLUMNS[:4], "_"))


def test_what_is_refused(tmp_path: Path) -> None:
    write_own(tmp_path / "own", 2)
    with pytest.raises(DataError, match=r"000\.bin: its \d+ bytes .*the file does not state which; name them"):
        prepare(tmp_path / "own", tmp_path / "set")
    with pytest.raises(DataError, match=r"has \d+ bytes, which fit 5 columns of float32, not 7"):
        prepare(tmp_path / "own", tmp_path / "set", columns=("x", "y", "z", "_", "_", "_", "_"))
    with pytest.raises(ConfigError, match="lacks z"):
        prepare(tmp_path / "own", tmp_path / "set", columns=("x", "y", "intensity", "ring"))
    with pytest.raises(DataError, match=r"rings run from 0 to 15, and the sensor has 8 beams, 0 to 7; set num_beams"):
        prepare(tmp_path / "own", tmp_path / "set", columns=COLUMNS, num_beams=8)
    swapped = ("x", "y", "ring", "intensity", "z")
    with pytest.raises(DataError, match=r"the ring of point \d+ is \S+, not a whole number.*; name the columns"):
        prepare(tmp_path / "own", tmp_path / "set", columns=swapped, num_beams=16)
    with pytest.raises(DataError, match=r"000\.label: is beside a scan with a column 'label'; move it away, or name"):
        prepare(tmp_path / "own", tmp_path / "set", columns=(*COLUMNS[:4], "label"))
    prepare(tmp_path / "own", tmp_path / "set", columns=COLUMNS, num_beams=16)
    with pytest.raises(ConfigError, match=r"num_beams is 64, .* was prepared with 16"):
        opened(tmp_path / "set", sensor={"preset": "hdl64"})
    with pytest.raises(DataError, match=r"run to \d+, and sensor\.remission_max is 1; set sensor\.remission_max=255"):
        opened(tmp_path / "set", sensor={**OWN, "remission_max": 1.0})
    (tmp_path / "own/001.label").unlink()
    with pytest.raises(DataError, match=r"001\.bin: has no column 'label', it has intensity, ring, and there is no "):
        prepare(tmp_path / "own", tmp_path / "again", columns=COLUMNS)
    np.save(tmp_path / "own/000.npy", np.zeros((1, 5)))
    refuse(prepare, tmp_path / "own", "has the same name; leave one of them out", columns=COLUMNS)
    (tmp_path / "empty").mkdir()
    refuse(prepare, tmp_path / "empty", r"holds nothing, no scan \(\.bin \.npy")


@pytest.mark.parametrize("order", ["top_first", "bottom_first"])
def test_a_column_of_rings_is_recognised(tmp_path: Path, order: str) -> None:
    """Whole numbers from 0 that follow the elevation, in either order; not others, and not a column that is skipped."""
    scans = write_own(tmp_path / "own", 3)
    rings = [scan.ring if order == "top_first" else 15 - scan.ring for scan in scans]
    for number, (scan, ring) in enumerate(zip(scans, rings, strict=True)):
        write_bin(tmp_path / f"own/{number:03d}.bin", scan, ring)
    report = prepare(tmp_path / "own", tmp_path / "set", columns=COLUMNS)
    first = "highest" if order == "top_first" else "lowest"
    assert report["rings"] == f"a column of whole numbers from 0 (the {first} beam) to 15, read as num_beams=16"
    assert report["differences"] == []
    sample = opened(tmp_path / "set")[SampleKey(0, 0, 0)]
    assert np.array_equal(sample["ring"], scans[0].ring)
    skipped = prepare(tmp_path / "own", tmp_path / "plain", columns=(*COLUMNS[:4], "_"))
    assert "rings" not in skipped
    assert "ring" not in opened(tmp_path / "plain").info.fields
    for number, scan in enumerate(scans):  # one scan whose column is a time
        write_bin(
            tmp_path / f"own/{number:03d}.bin", scan, rings[number] if number else np.linspace(0, 0.1, len(scan.ids))
        )
    (note,) = prepare(tmp_path / "own", tmp_path / "mixed", columns=COLUMNS)["differences"]
    assert note.startswith("the column of rings is not read, because its values are not whole numbers from 0 that rise")
    assert "ring" not in opened(tmp_path / "mixed").info.fields


def test_the_example_of_columns_names_the_rings(tmp_path: Path) -> None:
    """Of a file whose size fits any number of columns, the fifth follows the elevation."""
    scan = own_scan(0)
    keep = 12 * (len(scan.ids) // 12)
    scan = scan._replace(points=scan.points[:keep], remission=scan.remission[:keep])
    write_bin(tmp_path / "own/000.bin", scan, own_scan(0).ring[:keep])
    advice = r"fit 3 and 4 and 5 and 6 columns of float32.*'columns=\[x, y, z, intensity, ring\]' when preparing"
    refuse(prepare, tmp_path / "own", advice)


def test_names_of_the_ids_are_given_when_preparing(tmp_path: Path) -> None:
    scans = write_own(tmp_path / "own", 3)
    for number, scan in enumerate(scans):
        write_labels(tmp_path / f"own/{number:03d}.label", np.arange(len(scan.ids)) % 3, scan.thing + 1)
    report = prepare(tmp_path / "own", tmp_path / "set", columns=COLUMNS, names=("road", None, "car"))
    assert list(report["points_per_id"]) == ["0 road", "1 not scored", "2 car"]
    part = opened(tmp_path / "set")
    assert part.info.facts["class_names"] == ("road", "car")
    label = part[SampleKey(0, 0, 0)]["label"][:6].tolist()
    assert label == [0, part.info.facts["ignore_index"], 1] * 2
    other = opened(tmp_path / "set", label_map=("a", "b", "c"))
    assert other.info.facts["class_names"] == ("a", "b", "c")
    told = r"names are stated for the label ids 0 to 1, .* also have 2 \(\d+ points\); name all"
    refuse(prepare, tmp_path / "own", told, columns=COLUMNS, names=("road", "car"))
    for names, told in ((("a", "a", "b"), "two classes are called 'a'"), ((None, None), "names: names no class")):
        with pytest.raises(DataError, match=told):
            prepare(tmp_path / "own", tmp_path / "new", columns=COLUMNS, names=names)
    with pytest.raises(DataError, match=r"was prepared with names = .*delete it to prepare it again"):
        prepare(tmp_path / "own", tmp_path / "set", columns=COLUMNS, names=("a", None, "b"))


def test_scans_in_two_units_are_reported(tmp_path: Path) -> None:
    scans = write_own(tmp_path / "own", 4)
    write_bin(tmp_path / "own/003.bin", scans[3]._replace(points=1000 * scans[3].points), scans[3].ring)
    (note,) = prepare(tmp_path / "own", tmp_path / "set", columns=COLUMNS, num_beams=16)["differences"]
    assert note.startswith("units may be mixed: 1 of 4 scans, first 003.bin, reach about")


@pytest.mark.parametrize(
    ("factor", "words"),
    [(1000, "if these are in millimetres, divide x, y and z by 1000"), (0.001, "m or less: scans are read as metres")],
)
def test_scans_in_another_unit_are_reported(tmp_path: Path, factor: float, words: str) -> None:
    for number, scan in enumerate(write_own(tmp_path / "own", 3)):
        points = (factor * scan.points).astype(np.float32)
        write_bin(tmp_path / f"own/{number:03d}.bin", scan._replace(points=points), scan.ring)
    (note,) = prepare(tmp_path / "own", tmp_path / "set", columns=COLUMNS, num_beams=16)["differences"]
    assert note.endswith(words)


def test_exchanged_axes_are_not_taken_for_another_order_of_rings(tmp_path: Path) -> None:
    write_own(tmp_path / "own", 2)
    with pytest.raises(DataError, match=r"contradict ring_order=bottom_first; set ring_order=top_first"):
        prepare(tmp_path / "own", tmp_path / "set", columns=COLUMNS, num_beams=16, ring_order="bottom_first")
    errors = []
    for axes in (("x", "z", "y"), ("z", "y", "x")):
        for order in ("top_first", "bottom_first"):
            columns = (*axes, "intensity", "ring")
            try:
                prepare(tmp_path / "own", tmp_path / "set", columns=columns, num_beams=16, ring_order=order)
                shutil.rmtree(tmp_path / "set")
            except DataError as error:
                errors.append(str(error))
    assert len(errors) >= 2
    assert all("rings follow the column that is read as" in error for error in errors), errors


def test_the_example_has_as_many_columns_as_the_file(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    for count, example in ((3, "x, y, z"), (4, "x, y, z, intensity"), (5, "x, y, z, intensity, _")):
        np.ones((7, count), dtype="<f4").tofile(tmp_path / "own/000.bin")
        for columns in (None, ("x", "y", "z", *"_" * 8)):
            refuse(prepare, tmp_path / "own", rf"'columns=\[{example}\]' when preparing, --columns", columns=columns)


@pytest.mark.parametrize("kind", ["npy", "ply", "pcd"])
@pytest.mark.parametrize("has_column", [True, False])
def test_points_without_a_return_keep_their_labels_in_every_kind_of_file(
    tmp_path: Path, kind: str, has_column: bool
) -> None:
    """An organised cloud: all is NaN without a return, the label too, or the ids of all points are in a file beside."""
    names = ("x", "y", "z", "remission", "label") if has_column else ("x", "y", "z", "remission")
    (tmp_path / "own").mkdir()
    scans = [own_scan(number) for number in range(2)]
    for number, scan in enumerate(scans):
        table = np.column_stack([scan.points, scan.remission, scan.ids]).astype(np.float32)[:, : len(names)]
        table[::3] = np.nan
        path = tmp_path / f"own/{number}.{kind}"
        write_kind(path, names, table)
        if not has_column:
            write_labels(path.with_suffix(".label"), scan.ids, np.zeros(len(scan.ids)))
    columns = {"columns": names} if kind == "npy" else {}
    if not has_column or kind != "pcd":  # the format's own rule leaves the points out, with labels in a column
        with pytest.raises(DataError, match="no_return=nan"):
            prepare(tmp_path / "own", tmp_path / "bare", **columns)
    manifest = prepare(tmp_path / "own", tmp_path / "set", no_return="nan", **columns)
    num_missing = sum(len(scan.ids[::3]) for scan in scans)
    assert manifest["differences"] == [f"{num_missing} points without a return: not counted, not drawn and not scored"]
    for split, scan in zip(("train", "test"), scans, strict=True):
        part = opened(tmp_path / "set", split, validation_share=0.0, test_share=0.5)
        sample = part[SampleKey(0, 0, 0)]
        is_return = np.arange(len(scan.ids)) % 3 != 0
        assert np.array_equal(sample["points"][is_return], scan.points[is_return])
        assert not sample["points"][~is_return].any()
        assert np.array_equal(part.label_map.ids(sample["label"].numpy()[is_return]), scan.ids[is_return])
        assert (sample["label"][~is_return] == part.label_map.ignore_index).all()
        assert part.info.scans is not None
        assert part.info.scans.no_return == "nan"


def some_scan(**channels: float) -> PointCloud:
    """Four points, one metre apart, with columns of one value."""
    points = np.arange(12.0).reshape(4, 3)
    return PointCloud(points, channels={name: np.full(4, value) for name, value in channels.items()})


def far_scan(*rows: int, distance_m: float) -> RawScan:
    """A hundred points within ten metres, of which some lie further away."""
    points = np.random.default_rng(0).uniform(-9, 9, (100, 3)).astype(np.float32)
    points[list(rows), 0] += distance_m
    return RawScan(points, np.zeros(100, np.float32), np.zeros(100, np.int64))


ORDERED = {"ids": np.zeros(4, np.int64), "ring_order": "top_first", "num_beams": 4}
REFUSED: list[tuple[Callable[[Path], object], str]] = [
    (partial(read_scan, columns=None), "is empty; leave the file out"),
    (
        lambda path: scan_ids(some_scan(label=1.5), path, "label"),
        r"label\[0\] is 1.5; labels are whole numbers",
    ),
    (lambda path: scan_ids(some_scan(a=1), path, "label"), "has no column 'label', it has a, .* column: label=NAME"),
    (lambda path: to_raw_scan(some_scan(a=1), path=path, **ORDERED), "has no column ring .*, it has a;"),
    (
        lambda path: check_scan(far_scan(*range(100), distance_m=5e6), where=str(path)),
        "99 % of its points lie up to 5e.06 m away, as in coordinates of the world; .* subtract its position",
    ),
    (
        lambda path: check_scan(far_scan(7, distance_m=2e4), where=str(path)),
        "point 7 lies 1.999e.04 m away, 99 % of the 100 points within .*; no sensor measures that",
    ),
    (lambda path: check_pose(np.eye(3, 4) + 2e9 * np.eye(3, 4, 3), where=str(path)), "is 2e.09 m away"),
]


@run_each("read, told", REFUSED)
def test_scans_with_a_fault_are_refused_in_a_line(tmp_path: Path, read: Callable[[Path], object], told: str) -> None:
    (tmp_path / "a.bin").touch()
    refused(tmp_path / "a.bin", told, read=read)


def _write_remissions(root: Path, number: int, high: float) -> None:
    """Write a scan of 80 points whose remissions are from 0 to `high`, and its labels."""
    generator = np.random.default_rng(number)
    points, remission = generator.uniform(-20, 20, (80, 3)), generator.uniform(0, high, 80)
    ids = np.arange(80) % 3
    write_bin(root / f"{number}.bin", RawScan(points, remission, ids))
    write_labels(root / f"{number}.label", ids, np.zeros(80))


@run_each("high, told", [(255, True), (100, True), (3, False)])
def test_remissions_of_two_scales_are_told(tmp_path: Path, high: int, told: bool) -> None:
    """Five scans of 0 to 1, and five of 0 to 255 (8 bits), 0 to 100 (per cent) or 0 to 3 (another surface)."""
    for number in range(10):
        _write_remissions(tmp_path / f"in{high}", number, high if number > 4 else 1)
    manifest = prepare(tmp_path / f"in{high}", tmp_path / f"set{high}", columns=("x", "y", "z", "intensity"))
    scales = "scales may be mixed: remissions of 5 of 10 scans, first 0.bin, run up to about "
    for entry in ("differences", "doubts"):
        assert any(line.startswith(scales) for line in manifest[entry]) == told


def test_scans_without_remissions_are_told(tmp_path: Path) -> None:
    for number in range(3):
        _write_remissions(tmp_path / "in", number, 0)
    manifest = prepare(tmp_path / "in", tmp_path / "set", columns=("x", "y", "z", "intensity"))
    assert "no scan has a remission other than 0: that input of a network is constant" in manifest["differences"]
