"""KITTI's object data: counts of real frames, generated trees, regions nobody labelled, lists, damage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.areas.scans.sets.kitti_object import KittiObject, read_frame
from sightline.contract.errors import DataError
from sightline.contract.types import SampleKey
from sightline.store.boxes3d.kitti_objects import TYPES, read_objects
from tests.data.preparing import refuse
from tests.data.scans.lidar_writers import TYPE_OF, quiet, write_kitti_object

WHOLE = ("000000", "000001", "000002", "000003", "002155", "007347")


def prepare(source: Path, target: Path, **options: Any) -> dict[str, Any]:
    return KittiObject.prepare(source=source, target=target, name="kitti_object", progress=quiet, **options)


def opened(root: Path, split: str = "train", **arguments: Any) -> KittiObject:
    return KittiObject(split=split, root=str(root), **arguments)


@pytest.fixture(scope="module")
def real_frames(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("real") / "set"
    prepare(shared / "data/kitti_object_mini", target)
    return target


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        ("000000", {"Pedestrian": 376}),
        ("000001", {"Truck": 70, "Car": 9, "Cyclist": 18}),
        ("000002", {"Misc": 1351, "Car": 67}),
        ("000003", {"Car": 680}),
    ],
)
def test_real_frames_have_the_specifications_counts(shared: Path, frame: str, expected: dict[str, int]) -> None:
    folder = shared / "data/kitti_object_mini"
    paths = (folder / name for name in (f"velodyne/{frame}.bin", f"label_2/{frame}.txt", f"calib/{frame}.txt"))
    scan = read_frame(*paths, size_px=(1242, 375))
    found = {TYPES[raw]: int((scan.ids == raw).sum()) for raw in range(1, 9)}
    assert {name: count for name, count in found.items() if count} == expected


def test_real_frames_without_all_parts_are_named(real_frames: Path) -> None:
    told = KittiObject.describe(real_frames)["differences"]
    assert told == [
        "4 frames left out: 000008 lacks label_2, calib; 000462 lacks velodyne, calib; "
        "001426 lacks velodyne, calib; 005541 lacks velodyne, calib"
    ]
    assert KittiObject.describe(real_frames)["scans"] == {"all": 6}


def test_real_frames_become_samples(real_frames: Path) -> None:
    whole = {part.sample_name(index): part[SampleKey(index, 0, 0)]
             for part in (opened(real_frames, split, crop="none") for split in ("train", "validation", "test"))
             for index in range(len(part))}  # fmt: skip
    assert tuple(sorted(whole)) == WHOLE
    assert [len(whole[name]["points"]) for name in WHOLE[:4]] == [115384, 120268, 126891, 19463]
    assert int((whole["000000"]["label"] == 2).sum()) == 376
    assert int((whole["000001"]["label"] == 1).sum()) == 9
    assert int((whole["000001"]["label"] == 3).sum()) == 18
    cropped = opened(real_frames, "test", tested=("000000",))
    sample = cropped[SampleKey(0, 0, 0)]
    kept = whole["000000"]["label"] != 255
    assert np.array_equal(sample["points"], whole["000000"]["points"][kept])
    azimuth = np.degrees(np.arctan2(*sample["points"].numpy().T[[1, 0]]))
    assert -45 < azimuth.min() < azimuth.max() < 45
    assert cropped.info.facts["azimuth_deg"] == (45.0, -45.0)
    assert opened(real_frames, crop="none").info.facts["azimuth_deg"] == (180.0, -180.0)
    assert cropped.info.facts["ignore_index"] == 255


def test_every_point_of_a_generated_box_is_found(tmp_path: Path) -> None:
    """Points of a car or person are in its box, those of the ground below it are not."""
    made = write_kitti_object(tmp_path / "kitti", 5)
    prepare(tmp_path / "kitti", tmp_path / "set")
    seen = 0
    for split in ("train", "validation", "test"):
        part = opened(tmp_path / "set", split, crop="none")
        for index in range(len(part)):
            street, scan = made[part.sample_name(index)]
            sample = part[SampleKey(index, 0, 0)]
            is_labelled = np.isin(scan.ids, list(TYPE_OF)) & (scan.points[:, 2] > -1.73 + 0.001)
            expected = np.where(is_labelled, np.where(scan.ids == 10, 1, 2), 0)
            ahead, aside, up = scan.points.astype(np.float64).T
            with np.errstate(divide="ignore", invalid="ignore"):
                column, row = 100 - 100 * aside / ahead, 50 - 100 * up / ahead
            is_shown = (ahead > 0) & (column >= 0) & (column < 200) & (row >= 0) & (row < 100)
            expected = np.where(is_shown | is_labelled, expected, 255)
            assert np.array_equal(sample["label"], expected)
            assert np.array_equal(sample["points"], scan.points)
            seen += int((sample["label"] == 1).sum())
            assert len(street.ids)
    assert seen > 100


def test_regions_that_nobody_labelled_are_ignored(tmp_path: Path) -> None:
    write_kitti_object(tmp_path / "kitti", 2)
    label = tmp_path / "kitti/training/label_2/000000.txt"
    prepare(tmp_path / "kitti", tmp_path / "before")
    before = opened(tmp_path / "before", "train", test_share=0.5, validation_share=0)[SampleKey(0, 0, 0)]
    label.write_text(label.read_text() + "DontCare -1 -1 -10 60 40 140 70 -1 -1 -1 -1000 -1000 -1000 -10\n")
    prepare(tmp_path / "kitti", tmp_path / "after")
    after = opened(tmp_path / "after", "train", test_share=0.5, validation_share=0)[SampleKey(0, 0, 0)]
    ahead, aside, up = before["points"].double().numpy().T
    column, row = 100 - 100 * aside / ahead, 50 - 100 * up / ahead
    is_within = (column >= 60) & (column <= 140) & (row >= 40) & (row <= 70)
    assert (before["label"][~is_within] == after["label"][~is_within]).all()
    is_object = before["label"] > 0
    assert (after["label"][is_object] == before["label"][is_object]).all()
    assert set(after["label"][is_within & (before["label"] == 0).numpy()].tolist()) == {255}


def test_the_smallest_of_overlapping_boxes_wins(tmp_path: Path) -> None:
    write_kitti_object(tmp_path / "kitti", 2)
    folder = tmp_path / "kitti/training"
    (folder / "label_2/000000.txt").write_text(
        "Truck 0 0 0 0 0 1 1 5 20 40 0 1.8 20 -1.5707963\nCyclist 0 0 0 0 0 1 1 5 2 2 0 1.8 8 -1.5707963\n"
    )
    report = prepare(tmp_path / "kitti", tmp_path / "set")
    assert report["points_per_id"]["3"] > 100
    assert report["points_per_id"]["6"] > 10


def test_lists_and_options(tmp_path: Path) -> None:
    write_kitti_object(tmp_path / "kitti", 4)
    (tmp_path / "kitti/ImageSets").mkdir()
    (tmp_path / "kitti/ImageSets/train.txt").write_text("000003\n000000\n")
    (tmp_path / "kitti/ImageSets/val.txt").write_text("000001\n")
    report = prepare(tmp_path / "kitti", tmp_path / "set")
    assert report["differences"] == ["1 scans in none of the lists of ImageSets, left out"]
    part = opened(tmp_path / "set", validation_share=0.0)
    assert [part.sample_name(0), part.sample_name(1)] == ["000000", "000003"]
    for path in (tmp_path / "kitti/training/image_2").iterdir():
        path.unlink()
    refuse(prepare, tmp_path / "kitti", r"no frame has all of .*; 000000 lacks image_2; if there are no images, give")
    prepare(tmp_path / "kitti", tmp_path / "bare", image_px=(200, 100))
    other = opened(tmp_path / "bare", validation_share=0.0)
    assert np.array_equal(other[SampleKey(0, 0, 0)]["label"], part[SampleKey(0, 0, 0)]["label"])


@pytest.mark.parametrize(
    ("part", "old", "new", "told"),
    [
        ("label_2", "Car ", "Cart ", r"000000\.txt:1: no type is 'Cart'; types are Car, Van"),
        ("label_2", "Car 0.00 ", "Car ", r"000000\.txt:1: has 14 columns, 15 are expected"),
        ("label_2", "Car 0.00 ", "Car x ", r"000000\.txt:1: contains values that are not numbers"),
        ("calib", "P2:", "P3:", r"000000\.txt: has no row 'P2', 12 numbers are expected"),
        ("calib", "R0_rect: 1 ", "R0_rect: ", r"000000\.txt:2: has 8 numbers in R0_rect, 9 numbers are expected"),
        ("calib", "P2: ", "P2 ", r"000000\.txt:1: is not `name: numbers`"),
        ("calib", "P2: 100", "P2: nan", r"000000\.txt:1: nan is not a finite number"),
        ("calib", "P2: 100", "P2: 0", r"000000\.txt:1: P2 is not a camera"),
        ("calib", "P2: 100", "P2: -100", r"000000\.txt:1: P2 is not a camera"),
        ("calib", "P2: 100", "P2: 1e300", r"000000\.txt:1: P2 is not a camera"),
        ("calib", "0 0 1 0\n", "0 0 1e-320 0\n", r"000000\.txt:1: P2 is not a camera"),
        ("calib", "R0_rect: 1 ", "R0_rect: 2 ", r"000000\.txt:\d: R0_rect: is not a rotation: R R\^T is 3 off"),
        ("calib", "R0_rect: 1 ", "R0_rect: 0 ", r"000000\.txt:\d: R0_rect: is not a rotation"),
        ("calib", "R0_rect: 1 ", "R0_rect: -1 ", r"000000\.txt:\d: R0_rect: mirrors space"),
        ("calib", "R0_rect: ", "P2: ", r"000000\.txt:\d: 'P2' is there twice, before in .*000000\.txt:1; keep one"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, part: str, old: str, new: str, told: str) -> None:
    write_kitti_object(tmp_path / "kitti", 1)
    path = tmp_path / f"kitti/training/{part}/000000.txt"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    refuse(prepare, tmp_path / "kitti", told)


OBJECT = "Car 0 0 0 0 0 50 50 1.5 1.6 4 0 1.7 9 0.5"
REGION = "DontCare -1 -1 -10 60 40 140 70 -1 -1 -1 -1000 -1000 -1000 -10"


@pytest.mark.parametrize(
    ("line", "places", "words"),
    [
        (OBJECT, range(1, 15), ("nan", "inf", "-inf", "1e999")),
        (OBJECT, (8, 9, 10), ("0", "-1", "2000")),
        (REGION, range(1, 15), ("nan", "-inf")),
        (REGION, (4,), ("140", "150")),
        (REGION, (7,), ("40", "0")),
    ],
)
def test_objects_that_hold_no_point_are_refused(
    tmp_path: Path, line: str, places: Sequence[int], words: Sequence[str]
) -> None:
    """Comparisons with NaN are false: such objects vanished, and their points became background."""
    path = tmp_path / "000007.txt"
    for place, word in ((place, word) for place in places for word in words):
        columns = line.split()
        columns[place] = word
        path.write_text(f"{OBJECT}\n\n{' '.join(columns)}\n")
        with pytest.raises(DataError, match=r"000007\.txt:3: .*can contain no point") as caught:
            read_objects(path)
        assert "\n" not in str(caught.value)
    path.write_text(f"{OBJECT}\n{REGION}\n")
    assert len(read_objects(path).types) == 2


def test_other_things_are_refused(tmp_path: Path) -> None:
    refuse(prepare, tmp_path, "velodyne, label_2, calib and image_2 are needed")
    write_kitti_object(tmp_path / "kitti", 1)
    image = tmp_path / "kitti/training/image_2/000000.png"
    image.write_bytes(b"no picture")
    refuse(prepare, tmp_path / "kitti", r"000000\.png: cannot be decoded")


def test_scores_of_a_detector_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "found.txt"
    path.write_text("Car 0 0 0 1 2 3 4 1.5 1.6 4 0 1.7 9 0.5 0.93\n\n")
    found = read_objects(path)
    assert found.boxes_camera.tolist() == [[0, 1.7, 9, 4, 1.5, 1.6, 0.5]]
    assert found.boxes_image_px.tolist() == [[1, 2, 3, 4]]
