"""Numbers of files that are finite and yet none: zeros for missing points and normals, steps of a short format."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from sightline.areas.clouds.sets.cloud_folder import CloudFolder
from sightline.areas.scenes.sets.scene_folder import SceneFolder
from sightline.contract.errors import DataError
from sightline.contract.types import SampleKey
from sightline.store.files.cloud_files import read_cloud
from tests.data.clouds.cloud_writers import columns_of, prepare_folder, solid, write_folder, write_ply
from tests.data.preparing import prepare_set


def test_points_without_a_return_are_noted_and_dropped(tmp_path: Path) -> None:
    """Half of the points at the sensor: mean and scale are those of the other half, of the same cloud."""
    for name, zeros in (("in", 150), ("healthy", 0)):
        write_folder(
            tmp_path / name, make=lambda kind, n, zeros=zeros: np.vstack([solid(kind, n, 150), np.zeros((zeros, 3))])
        )
    said = "\n".join(prepare_folder(tmp_path / "in", tmp_path / "kept", num_points=150)["differences"])
    zeros = "4500 of 9000 points (50.0%) are exactly at (0, 0, 0), where sensors put those without a return: zeros=drop"
    assert zeros in said
    healthy = prepare_folder(tmp_path / "healthy", tmp_path / "whole", num_points=150)
    dropped = prepare_folder(tmp_path / "in", tmp_path / "set", num_points=150, zeros="drop")
    assert healthy["differences"] == []
    assert dropped["files"]["train.points.npy"] == healthy["files"]["train.points.npy"]


def test_scenes_drop_points_with_their_labels(tmp_path: Path) -> None:
    for number in range(6):
        rows = np.random.default_rng(number).uniform(1, 5, (40, 4)).round(3)
        rows[:, 3] = np.arange(40) % 3
        rows[5:30, :3] = 0
        (tmp_path / "in").mkdir(exist_ok=True)
        np.savetxt(tmp_path / "in" / f"{number}.txt", rows, header="x y z label")
    options = {"up_axis": "z", "unit": "m", "zeros": "drop"}
    prepare_set("scene_folder", tmp_path / "in", tmp_path / "set", lambda *_: None, **options)
    sample = SceneFolder(split="train", root=str(tmp_path / "set"))[SampleKey(0, 0, 0)]
    assert sample["label"].tolist() == [n % 3 for n in (*range(5), *range(30, 40))]


def test_one_point_at_the_origin_is_none_of_these(tmp_path: Path) -> None:
    path = write_ply(
        tmp_path / "a.ply", dict(zip("xyz", np.vstack([solid("ball", 0), np.zeros((2, 3))]).T, strict=True))
    )
    assert read_cloud(path).notes == ()


@pytest.mark.parametrize(("offset", "is_noted"), [((500_000, 5_800_000, 100), True), ((0, 0, 100), False)])
def test_steps_of_float32_are_noted(tmp_path: Path, offset: tuple[float, ...], is_noted: bool) -> None:
    points = 1.5 * solid("ball", 0) + offset
    notes = read_cloud(write_ply(tmp_path / "a.ply", dict(zip("xyz", points.T, strict=True)))).notes
    assert any("float32 and so far from 0 that they have steps of 0.5" in note for note in notes) == is_noted
    assert read_cloud(write_ply(tmp_path / "b.ply", dict(zip("xyz", points.T, strict=True)), dtype="<f8")).notes == ()


def test_normals_that_are_all_zero_are_noted_and_not_trained_on(tmp_path: Path) -> None:
    for kind in ("ball", "rod"):
        (tmp_path / "in" / kind).mkdir(parents=True)
        for number in range(5):
            cloud = solid(kind, number)
            write_ply(tmp_path / "in" / kind / f"{number}.ply", columns_of(cloud, np.zeros_like(cloud)))
    (note,) = prepare_folder(tmp_path / "in", tmp_path / "set")["differences"]
    assert note.startswith("normals are all 0: leave them out by columns=[x, y, z], or set data.normals=estimated")
    with pytest.raises(DataError, match=r"normals are all 0; set data\.normals=estimated, or none"):
        CloudFolder(split="train", root=str(tmp_path / "set"), normals="file")
    assert len(CloudFolder(split="train", root=str(tmp_path / "set"), normals="estimated"))


def test_a_line_of_an_obj_file_may_go_on_in_the_next(tmp_path: Path) -> None:
    (tmp_path / "a.obj").write_text("v 0 0 0\nv 1 0 \\\n0\nv 1 1 0\nv 0 1 0\nf 1 2 \\\n3 4\n")
    cloud = read_cloud(tmp_path / "a.obj")
    assert cloud.points.tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]
    assert cloud.faces is not None
    assert len(cloud.faces) == 2
    (tmp_path / "a.obj").write_text("v 0 0 0\nv 1 0 0\nv 1 1 0\nf 1 \\\n2 x\n")
    with pytest.raises(DataError, match=r"a\.obj:4: 'x' is not a corner"):
        read_cloud(tmp_path / "a.obj")


def test_scans_of_a_pts_file_are_one_cloud(tmp_path: Path) -> None:
    path = tmp_path / "a.pts"
    path.write_text("2\n0 0 1\n0 0 2\n3\n0 0 3\n0 0 4\n0 0 5\n")
    cloud = read_cloud(path)
    assert cloud.points[:, 2].tolist() == [1, 2, 3, 4, 5]
    assert cloud.notes == ("its 2 scans are read as one cloud",)
    path.write_text("2\n0 0 1\n0 0 2\n3\n0 0 3\n0 0 4\n")
    with pytest.raises(DataError, match="announces 2 points, 5 rows follow"):
        read_cloud(path)


def test_las_points_that_the_header_does_not_count_are_noted(tmp_path: Path) -> None:
    laspy = pytest.importorskip("laspy")
    las = laspy.create(point_format=0, file_version="1.2")
    las.x, las.y, las.z = np.random.default_rng(0).uniform(0, 10, (3, 50)).round(2)
    las.write(tmp_path / "a.las")
    assert read_cloud(tmp_path / "a.las").notes == ()
    content = bytearray((tmp_path / "a.las").read_bytes())
    content[107:111] = struct.pack("<I", 30)
    (tmp_path / "a.las").write_bytes(content)
    cloud = read_cloud(tmp_path / "a.las")
    assert len(cloud.points) == 30
    assert cloud.notes == ("400 bytes behind the points that its header counts are not read",)
