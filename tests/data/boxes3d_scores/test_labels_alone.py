"""`labels3d`: labels without clouds, of KITTI and of another tool, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.areas.boxes3d.sets.labels3d import Labels3d
from sightline.contract.errors import ConfigError, DataError
from sightline.contract.types import SampleKey
from tests.data.boxes3d_scores.streets import draw_streets, write_rows

SUSTECH = {
    "psr": {
        "position": {"x": 10, "y": 2, "z": -0.5},
        "scale": {"x": 4, "y": 2, "z": 1.5},
        "rotation": {"x": 0, "y": 0, "z": 0.25},
    },
    "obj_type": "Car",
    "obj_id": "1",
}


def test_labels_of_kitti_have_the_chosen_classes_and_frames(tmp_path: Path) -> None:
    frames = draw_streets(3)
    van = ("Van", [*frames["000010"][0][1]])
    frames["000010"] = [van, *frames["000010"]]
    labels = write_rows(tmp_path / "labels", frames)
    (tmp_path / "list.txt").write_text("000016\n000010\n")
    dataset = Labels3d(split="test", labels=str(labels), frames=str(tmp_path / "list.txt"))
    assert dataset.info.facts["class_names"] == ("Car", "Cyclist", "Pedestrian")  # a Van is near Car
    assert [dataset.sample_name(number) for number in range(len(dataset))] == ["000010", "000016"]
    sample = dataset[SampleKey(0, 0, 0)]
    assert sample.keys() == dataset.info.fields.keys()
    assert sample["label"].tolist() == 3 * [0, 2, 1]
    assert len(dataset.box_table(0)) == 10  # the Van is there, which KITTI's rules ignore
    chosen = Labels3d(split="test", labels=str(labels), classes=("Van", "Car"))
    assert (len(chosen), chosen[SampleKey(0, 0, 0)]["label"].tolist()) == (3, [0, 1, 1, 1])


def test_labels_of_another_tool_are_read(tmp_path: Path) -> None:
    for name, content in (("a", [SUSTECH]), ("b", [])):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "a.json").write_text(json.dumps([SUSTECH]))
    dataset = Labels3d(split="test", labels=str(tmp_path))
    np.testing.assert_allclose(dataset.box_table(0).boxes, [[10, 2, -0.5, 4, 2, 1.5, 0.25]])
    assert dataset.info.facts["class_names"] == ("Car",)
    assert dataset.reading == "box_centre=centre box_size=lwh yaw_unit=rad yaw_sense=ccw yaw_zero=x"
    stated = Labels3d(split="test", labels=str(tmp_path), box_centre="bottom", yaw_sense="cw")
    np.testing.assert_allclose(stated.box_table(0).boxes, [[10, 2, 0.25, 4, 2, 1.5, -0.25]])
    assert "box_centre=bottom" in stated.reading


def test_what_rows_of_kitti_state_is_not_stated_again(tmp_path: Path) -> None:
    labels = write_rows(tmp_path / "labels", draw_streets(1))
    assert Labels3d(split="test", labels=str(labels)).reading == ""
    with pytest.raises(ConfigError, match=r"box_centre: .* has rows of KITTI"):
        Labels3d(split="test", labels=str(labels), box_centre="bottom")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "train"}, "there is no split 'train'; labels without clouds are only scored by: test"),
        ({"classes": ("car",)}, "data.classes: no label is called 'car', but Car, Pedestrian, Cyclist"),
        ({"frames": "list.txt"}, "has no labels of 000011; correct the list"),
        ({"frames": "twice.txt"}, "has the frame '000010' twice"),
        ({"calibrations": "none"}, "KITTI's calibrations are needed, FRAME.txt for each"),
        ({"labels": "empty"}, "found 0 JSON files and no text file of a frame"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    write_rows(tmp_path / "labels", draw_streets(2))
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_text("000010\n000011\n")
    (tmp_path / "twice.txt").write_text("000010\n000010\n")
    paths = {
        name: str(tmp_path / value) for name, value in arguments.items() if isinstance(value, str) and name != "split"
    }
    with pytest.raises((ConfigError, DataError), match=message):
        Labels3d(**{"split": "test", "labels": str(tmp_path / "labels"), **arguments, **paths})
