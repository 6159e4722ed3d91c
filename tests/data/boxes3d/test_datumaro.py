"""Labels that CVAT's exporter, Datumaro 1.13.12, wrote of six known boxes: its bytes lie in `datumaro/`."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from sightline.areas.boxes3d.sets.boxes3d_folder import read_folder
from sightline.store.boxes3d.box_table import wrap_yaw
from tests.data.boxes3d.box_writers import make_boxes, make_cloud, make_names

BYTES = Path(__file__).with_name("datumaro")
NAME = "0000000000"
ROUNDING = 0.00501
"""Of numbers with two decimals, in metres and radians."""


@pytest.mark.parametrize(
    ("file", "place", "clouds", "reading"),
    [
        ("tracklet_labels.xml", "tracklet_labels.xml", "velodyne_points/data", "tracklets_cvat"),
        (f"{NAME}.pcd.json", f"ds0/ann/{NAME}.pcd.json", "ds0/pointcloud", "by the format"),
    ],
)
def test_labels_of_the_tool_itself_are_the_boxes(
    tmp_path: Path, file: str, place: str, clouds: str, reading: str
) -> None:
    """`Dataset.export(..., 'kitti_raw')` and `'sly_pointcloud'`; the class of each box, too, and all of them."""
    boxes = make_boxes(0, 6)
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(BYTES / file, tmp_path / place)
    (tmp_path / clouds).mkdir(parents=True)
    cloud = make_cloud(boxes, 0)[:, :3]
    header = "FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\n"
    counts = f"WIDTH {len(cloud)}\nHEIGHT 1\nPOINTS {len(cloud)}\nDATA binary\n"
    (tmp_path / clouds / f"{NAME}.pcd").write_bytes(f"VERSION 0.7\n{header}{counts}".encode() + cloud.tobytes())
    planned = read_folder(tmp_path).planned
    assert reading in planned.choice.describe()
    [table] = planned.tables.values()
    difference = table.boxes - boxes
    difference[:, 6] = wrap_yaw(difference[:, 6])
    assert np.abs(difference).max() <= ROUNDING
    assert [planned.class_names[label] for label in table.label] == make_names(6)
