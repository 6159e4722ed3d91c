"""`kitti_boxes3d`: real frames, neighbours of classes, the field of view, and calibrations by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.areas.boxes3d.sets.kitti_boxes3d import KittiBoxes3d
from sightline.contract.types import SampleKey
from sightline.store.boxes3d.conversions import boxes_to_camera
from sightline.store.boxes3d.kitti_objects import DONT_CARE, read_objects
from tests.data.preparing import list_other_notes, prepare_set
from tests.data.scans.lidar_writers import write_kitti_object


@pytest.fixture(scope="module")
def real(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    target = tmp_path_factory.mktemp("real") / "set"
    return target, prepare_set("kitti_boxes3d", shared / "data/kitti_object_mini", target)


def opened(root: Path, **arguments: Any) -> KittiBoxes3d:
    return KittiBoxes3d(
        **{"split": "train", "root": str(root), "test_share": 0.2, "validation_share": 0.0, **arguments}
    )


def test_real_frames_raise_no_alarm(real: tuple[Path, dict[str, Any]]) -> None:
    _, manifest = real
    assert manifest["doubts"] == []
    assert len(manifest["differences"]) == 1
    assert manifest["differences"][0].startswith("4 frames left out: 000008 lacks label_2")
    assert manifest["splits"]["all"]["num_boxes"] == 25
    assert manifest["remission_max"] == 1.0
    assert manifest["frame"].startswith("labels: a camera's, by the calibrations; stored: x to the front")


def test_real_frames_have_their_boxes_and_points(real: tuple[Path, dict[str, Any]], shared: Path) -> None:
    data = opened(real[0], crop="none", classes=("Car", "Pedestrian", "Cyclist", "Truck"))
    names = [data.sample_name(index) for index in range(len(data))]
    assert names == ["000000", "000001", "000002", "000003", "002155"]
    found = {name: data[SampleKey(index, 0, 0)] for index, name in enumerate(names)}
    assert found["000000"]["num_points"].tolist() == [377]
    assert np.abs(found["000000"]["boxes"].numpy()[0] - [8.731, -1.856, -0.655, 1.20, 0.48, 1.89, -1.581]).max() < 1e-3
    assert len(found["000000"]["points"]) == 115_384
    assert found["000001"]["num_points"].tolist() == [71, 9, 18]
    assert found["000001"]["label"].tolist() == [3, 0, 2]
    assert found["000003"]["num_points"].tolist() == [674]
    for index, name in enumerate(names):
        table, objects = data.box_table(index), read_objects(shared / f"data/kitti_object_mini/label_2/{name}.txt")
        is_box = objects.types != DONT_CARE
        assert (table.label == np.where(is_box, objects.types - 1, -1)).all()
        assert (table.is_ignored == ~is_box).all()
        camera = boxes_to_camera(table.boxes[is_box], data.calibration(index).camera_of_velodyne)
        assert np.abs(camera[:, :6] - objects.boxes_camera[is_box, :6]).max() < 1e-9
        assert table.image is not None
        assert table.image.corners_px.tolist() == objects.boxes_image_px.tolist()
        assert table.image.occluded.tolist() == objects.views[:, 1].tolist()


def test_the_crop_keeps_what_the_image_sees(real: tuple[Path, dict[str, Any]]) -> None:
    whole, cropped = (opened(real[0], crop=crop)[SampleKey(0, 0, 0)]["points"].numpy() for crop in ("none", "camera"))
    azimuth = np.rad2deg(np.arctan2(cropped[:, 1], cropped[:, 0]))
    assert 0.1 < len(cropped) / len(whole) < 0.25
    assert np.abs(azimuth).max() < 45


def test_neighbours_of_a_class_are_ignored(tmp_path: Path) -> None:
    write_kitti_object(tmp_path / "kitti", 3)
    label = tmp_path / "kitti/training/label_2/000000.txt"
    rest = "0.00 0 0.1 10 10 90 90 1.5 1.7 4.0 {} 1.7 12 0.3"
    rows = {"Van": -3, "Person_sitting": 0, "Tram": 3, "Car": 6}
    text = "".join(f"{name} {rest.format(place)}\n" for name, place in rows.items())
    label.write_text(text + "DontCare -1 -1 -10 1 1 50 50 -1 -1 -1 -1000 -1000 -1000 -10\n")
    manifest = prepare_set("kitti_boxes3d", tmp_path / "kitti", tmp_path / "set")
    assert [note for note in list_other_notes(manifest) if not note.startswith("T")] == []
    sample = opened(tmp_path / "set", test_share=0.34)[SampleKey(0, 0, 0)]
    assert sample["label"].tolist() == [0, 1, 0]
    assert sample["is_ignored"].tolist() == [True, True, False]
    both = opened(tmp_path / "set", test_share=0.34, classes=("Van", "Car"))[SampleKey(0, 0, 0)]
    assert (both["label"].tolist(), both["is_ignored"].tolist()) == ([0, 1], [False, False])


def test_matrices_are_taken_by_their_names(tmp_path: Path) -> None:
    write_kitti_object(tmp_path / "kitti", 2)
    calib = tmp_path / "kitti/training/calib/000000.txt"
    prepare_set("kitti_boxes3d", tmp_path / "kitti", tmp_path / "set")
    expected = opened(tmp_path / "set", test_share=0.5).box_table(0).boxes
    lines = [line for line in calib.read_text().splitlines() if line.strip()]
    calib.write_text("\n".join(["P0: 1 2 3 4 5 6 7 8 9 10 11 12", *reversed(lines)]) + "\n")
    prepare_set("kitti_boxes3d", tmp_path / "kitti", tmp_path / "again")
    assert opened(tmp_path / "again", test_share=0.5).box_table(0).boxes.tolist() == expected.tolist()
