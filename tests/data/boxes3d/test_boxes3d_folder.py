"""`boxes3d_folder`: pairing of clouds and labels, splits, samples, options, notes, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.areas.boxes3d.sets.boxes3d_folder import Boxes3dFolder
from sightline.contract.errors import ConfigError, DataError
from sightline.contract.types import SampleKey
from sightline.store.boxes3d.box_sample import BOX3D_FIELDS
from sightline.store.boxes3d.conversions import BoxReading
from tests.data.boxes3d.box_writers import format_txt, make_boxes, make_cloud, make_names, write_streets
from tests.data.boxes3d.test_label_files import SUPERVISELY, TRACKLETS, labelcloud
from tests.data.preparing import prepare_set

COLUMNS = ("x", "y", "z", "intensity")


def prepare(source: Path, **options: Any) -> dict[str, Any]:
    target = source.with_name(f"{source.name}_prepared")
    manifest: dict[str, Any] = prepare_set("boxes3d_folder", source, target, **{"columns": COLUMNS, **options})
    return manifest


def opened(source: Path, split: str = "train", **arguments: Any) -> Boxes3dFolder:
    return Boxes3dFolder(split=split, root=str(source.with_name(f"{source.name}_prepared")), **arguments)


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[np.ndarray]]:
    source = tmp_path_factory.mktemp("streets") / "own"
    return source, write_streets(source, 6, reading=BoxReading(centre="bottom", unit="deg"))


@pytest.fixture(scope="module")
def manifest(streets: tuple[Path, list[np.ndarray]]) -> dict[str, Any]:
    """That of the prepared streets."""
    return prepare(streets[0])


def test_samples_have_the_true_boxes(streets: tuple[Path, list[np.ndarray]], manifest: dict[str, Any]) -> None:
    source, truth = streets
    assert (
        "box_centre=bottom box_size=lwh yaw_unit=deg yaw_sense=ccw yaw_zero=x (by the count test)"
        in (manifest["reading"])
    )
    assert manifest["class_names"] == ["Car", "Cyclist", "Pedestrian"]
    assert manifest["differences"] == []
    assert manifest["classes"]["Car"]["boxes"] == 18
    assert manifest["classes"]["Car"]["share_without_points"] == 0
    data = opened(source, remission=True, classes=("Pedestrian", "Car"))
    assert (len(data), data.sample_name(0)) == (4, "0000")
    sample = data[SampleKey(0, 0, 0)]
    assert set(sample) == {*BOX3D_FIELDS, "remission"}
    is_chosen = np.arange(9) % 3 != 2
    expected = truth[0][is_chosen].astype(np.float32)
    assert np.abs(sample["boxes"].numpy() - expected).max() < 2e-5
    assert sample["label"].tolist() == [1, 0, 1, 0, 1, 0]
    assert min(sample["num_points"].tolist()) >= 60
    cloud = np.load(source / "points/0000.npy")
    assert sample["points"].numpy().tolist() == cloud[:, :3].tolist()
    assert sample["remission"].numpy()[:, 0].tolist() == cloud[:, 3].tolist()
    assert data.info.facts["range_m"] == tuple(manifest["range_m"])
    assert data.info.facts["class_counts"] == (12, 12)
    table = data.box_table(0)
    assert (table.frame, table.class_names, len(table)) == ("0000", ("Car", "Cyclist", "Pedestrian"), 9)


def test_the_range_and_anchors_hold_the_boxes(streets: tuple[Path, list[np.ndarray]]) -> None:
    source, truth = streets
    survey = Boxes3dFolder.survey(source, columns=COLUMNS)
    boxes = np.concatenate(truth)
    low, high = np.array(survey["range_m"][:3]), np.array(survey["range_m"][3:])
    assert (boxes[:, :3] >= low).all()
    assert (boxes[:, :3] <= high).all()
    cells = (high - low)[:2] / survey["pillar_m"] / 16
    assert np.abs(cells - cells.round()).max() < 1e-6
    cars = boxes[np.tile(np.arange(9) % 3 == 0, 6)]
    bottom = (cars[:, 2] - cars[:, 5] / 2).mean()
    assert survey["classes"]["Car"]["anchor"] == pytest.approx([*cars[:, 3:6].mean(axis=0), bottom], abs=0.006)
    assert sum(survey["classes"]["Car"]["boxes_by_yaw"]) == 18


def test_stated_options_are_kept_and_contradicted_with_both_counts(streets: tuple[Path, list[np.ndarray]]) -> None:
    source, _ = streets
    survey = Boxes3dFolder.survey(source, columns=COLUMNS, box_centre="centre")
    assert "box_centre=centre box_size=lwh yaw_unit=deg" in survey["reading"]
    (told,) = [line for line in survey["differences"] if line.startswith("T1: ")]
    assert "box_centre=bottom puts 3" in told
    turned = Boxes3dFolder.survey(source, columns=COLUMNS, yaw_zero="-x")
    assert "yaw_zero=-x" in turned["reading"]
    assert not any(line.startswith("T1") for line in turned["differences"])


def write_frame(root: Path, cloud: str, label: str, text: str, frame: int = 0) -> None:
    for path in (root / cloud, root / label):
        path.parent.mkdir(parents=True, exist_ok=True)
    np.save(root / cloud, make_cloud(make_boxes(frame), frame))
    (root / label).write_text(text)


KITTI = "Car 0 0 0 1 1 9 9 1.5 1.8 4.2 1 2 9.5 0.5\n"
LAYOUTS: dict[str, Callable[[Path], None]] = {
    "one folder": lambda root: write_frame(root, "a.npy", "a.txt", format_txt(make_boxes(0), make_names())),
    "folders": lambda root: write_frame(root, "points/a.npy", "labels/a.txt", format_txt(make_boxes(0), make_names())),
    "labelCloud": lambda root: write_frame(root, "pointclouds/a.npy", "labels/a.json", labelcloud(-0.5)),
    "Supervisely": lambda root: write_frame(
        root, "ds0/pointcloud/a.npy", "ds0/ann/a.npy.json", json.dumps(SUPERVISELY)
    ),
    "tracklets by number": lambda root: write_frame(root, "data/0001.npy", "tracklet_labels.xml", TRACKLETS),
    "KITTI": lambda root: write_frame(
        root, "velodyne/a.npy", "label_2/a.txt", "Car 0 0 0 1 1 9 9 1.5 1.8 4.2 1 2 9.5 0.5\n"
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(tmp_path: Path, name: str) -> None:
    LAYOUTS[name](tmp_path / "own")
    survey = Boxes3dFolder.survey(tmp_path / "own", columns=COLUMNS)
    assert survey["samples"] == {"all": 1}
    assert sum(each["boxes"] for each in survey["classes"].values()) == (9 if "folder" in name else 1)


def test_frames_without_boxes_are_kept_and_clouds_without_labels_told(tmp_path: Path) -> None:
    source = tmp_path / "own"
    write_streets(source, 4)
    (source / "labels/0001.txt").write_text("")
    (source / "labels/0003.txt").rename(source / "labels/9999.txt")
    told = prepare(source)["differences"]
    assert told == [
        "1 clouds have no file of labels and are left out (unlabelled=no_boxes keeps them): 0003.npy",
        "1 files of labels have no cloud and are left out: 9999.txt",
        "1 frames have no boxes and are kept: 0001",
    ]
    sample = opened(source, test_share=0.4, validation_share=0.0)[SampleKey(1, 0, 0)]
    assert (tuple(sample["boxes"].shape), len(sample["points"]) > 4000) == ((0, 7), True)
    survey = Boxes3dFolder.survey(source, columns=COLUMNS, unlabelled="no_boxes")
    assert survey["samples"] == {"all": 4}


def test_splits_by_folders_and_by_lists(tmp_path: Path) -> None:
    source = tmp_path / "own"
    write_streets(source, 5)
    (source / "ImageSets").mkdir()
    (source / "ImageSets/train.txt").write_text("0000\n0003\n0001\n")
    (source / "ImageSets/val.txt").write_text("0002\n0004\n")
    assert Boxes3dFolder.survey(source, columns=COLUMNS)["samples"] == {"train": 3, "test": 2}
    shutil.rmtree(source / "ImageSets")
    for split, names in {"train": ("0000", "0001"), "val": ("0002",), "test": ("0003", "0004")}.items():
        for name in names:
            for path in (source / f"points/{name}.npy", source / f"labels/{name}.txt"):
                new = source / split / path.relative_to(source)
                new.parent.mkdir(parents=True, exist_ok=True)
                path.rename(new)
    assert prepare(source)["splits"]["validation"]["num_boxes"] == 9
    assert [len(opened(source, split)) for split in ("train", "validation", "test")] == [2, 1, 2]


def test_directions_that_are_not_labelled_are_cut(tmp_path: Path) -> None:
    source = tmp_path / "own"
    write_streets(source, 4)
    prepare(source, azimuth_deg=(-30.0, 60.0))
    points = opened(source, test_share=0.25, validation_share=0.0)[SampleKey(0, 0, 0)]["points"].numpy()
    azimuth = np.rad2deg(np.arctan2(points[:, 1], points[:, 0]))
    whole = np.load(source / "points/0000.npy")
    of_whole = np.rad2deg(np.arctan2(whole[:, 1], whole[:, 0]))
    assert (azimuth.min() >= -30, azimuth.max() <= 60) == (True, True)
    assert len(points) == int(((of_whole >= -30) & (of_whole <= 60)).sum())


@pytest.mark.parametrize("is_bottom", [True, False])
def test_points_tell_centres_and_bottoms_of_tracklets(tmp_path: Path, is_bottom: bool) -> None:
    """KITTI's tracklets state bottoms, some exports centres; both have h, w and l as they are."""
    items = ""
    for frame in range(3):
        boxes = make_boxes(frame)
        np.save(tmp_path / f"{frame:010d}.npy", make_cloud(boxes, frame))
        rows = BoxReading(centre="bottom" if is_bottom else "centre").from_boxes(boxes)
        for name, (x, y, z, length, width, height, yaw) in zip(make_names(), rows, strict=True):
            pose = f"<tx>{x}</tx><ty>{y}</ty><tz>{z}</tz><rx>0</rx><ry>0</ry><rz>{yaw}</rz>"
            items += (
                f"<item><objectType>{name}</objectType><h>{height}</h><w>{width}</w><l>{length}</l>"
                f"<first_frame>{frame}</first_frame><poses><count>1</count><item>{pose}</item></poses></item>"
            )
    text = f'<boost_serialization signature="a" version="9"><tracklets>{items}</tracklets></boost_serialization>'
    (tmp_path / "tracklet_labels.xml").write_text(text)
    survey = Boxes3dFolder.survey(tmp_path, columns=COLUMNS)
    centre = "bottom" if is_bottom else "centre"
    expected = f"tracklets_kitti: box_centre={centre} box_size=lwh yaw_unit=rad yaw_sense=ccw yaw_zero=x (by the count"
    assert survey["reading"].startswith(expected)
    assert survey["differences"] == []


def damage(source: Path, name: str, text: str) -> None:
    (source / name).write_text(text)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "two files of labels": (lambda s: damage(s, "0000.csv", "1,2,3,4,5,6,0,Car\n"), "has the name of another file"),
    "other forms": (
        lambda s: damage(s, "labels/0000.txt", KITTI),
        "another form",
    ),
    "damaged labels": (lambda s: damage(s, "labels/0001.txt", "1 2 3\n"), "0001.txt:1: has 3 columns"),
    "no labels": (lambda s: shutil.rmtree(s / "labels"), "none of 3 clouds has labels of its name"),
    "KITTI's folders": (
        lambda s: [
            (s / "labels").rename(s / "label_2"),
            (s / "points").rename(s / "velodyne"),
            damage(s, "label_2/0001.txt", "1 2"),
        ],
        "laid out as KITTI's objects: kitti_boxes3d --from",
    ),
    "no clouds": (lambda s: shutil.rmtree(s / "points"), "no cloud"),
    "a damaged cloud": (lambda s: damage(s, "points/0001.npy", "x"), "0001.npy"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_folders(tmp_path: Path, name: str) -> None:
    source = tmp_path / "own"
    write_streets(source, 3)
    change, message = REFUSED[name]
    change(source)
    with pytest.raises(DataError, match=message):
        prepare(source)
    assert not source.with_name("own_prepared").exists()


def test_units_that_disagree_in_one_folder(tmp_path: Path) -> None:
    source = tmp_path / "own"
    write_frame(source, "a.npy", "a.json", labelcloud(344.0))
    write_frame(source, "b.npy", "b.json", labelcloud(0.5), 1)
    survey = Boxes3dFolder.survey(source, columns=COLUMNS)
    assert "yaw_unit=deg" in survey["reading"]
    write_frame(source, "b.npy", "b.json", labelcloud(-0.5), 1)
    with pytest.raises(DataError, match=r"b.json: is of another form .*labelcloud_absolute and labelcloud_relative"):
        Boxes3dFolder.survey(source, columns=COLUMNS)


@pytest.mark.usefixtures("manifest")
def test_options_that_fit_nothing(streets: tuple[Path, list[np.ndarray]]) -> None:
    source, _ = streets
    for options, message in (
        ({"range_m": (0.0, 0.0, 0.0, 1.0, -1.0, 1.0)}, "has no extent"),
        ({"azimuth_deg": (10.0, 10.0)}, "are no directions"),
    ):
        with pytest.raises(ConfigError, match=message):
            Boxes3dFolder.survey(source, columns=COLUMNS, **options)
    with pytest.raises(DataError, match="may be txt, not kitti"):
        Boxes3dFolder.survey(source, columns=COLUMNS, form="kitti")
    with pytest.raises(ConfigError, match="classes: 'Bus' is not stored"):
        opened(source, classes=("Bus",))
