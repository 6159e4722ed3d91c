"""Numbers of files that are finite and yet none: zeros for missing points and normals, steps of a short format."""

from __future__ import annotations

import struct
from pathlib import Path

import laspy
import numpy as np
import pytest

from sightline.areas.clouds.sets.cloud_folder import CloudFolder
from sightline.areas.scenes.sets.scene_folder import SceneFolder
from sightline.contract.errors import DataError
from sightline.contract.types import SampleKey
from sightline.store.files.cloud_files import read_cloud
from tests.cases import run_each
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


UTM, OF_TEXT = (
    np.array([448_262, 5_800_123, 117]),
    "have been rounded, by a text of few digits or by float32, to steps ",
)
"""Somewhere in Germany, and the remark on what became of it."""


def _write_ascii(path: Path, points: np.ndarray, form: str) -> Path:
    """Write ASCII PLY of `property float` with each number in a format."""
    properties = "".join(f"property float {axis}\n" for axis in "xyz")
    head = f"ply\nformat ascii 1.0\nelement vertex {len(points)}\n{properties}end_header\n"
    path.write_text(head + "".join(" ".join(form % value for value in row) + "\n" for row in points.tolist()))
    return path


def _write_lines(path: Path, points: np.ndarray, form: str, lead: str = "") -> Path:
    path.write_text("".join(lead + " ".join(form % value for value in row) + "\n" for row in points.tolist()))
    return path


ROUNDED = {
    "PLY of float32, whole": ("a.ply", lambda path, points: _write_ascii(path, points.astype("f4"), "%r"), 0.5),
    "PLY of float32, nine digits": ("a.ply", lambda path, points: _write_ascii(path, points.astype("f4"), "%.9g"), 0.5),
    "PLY of %g": ("a.ply", lambda path, points: _write_ascii(path, points, "%g"), 10),
    "text of %g": ("a.xyz", lambda path, points: _write_lines(path, points, "%g"), 10),
    "text of a metre": ("a.txt", lambda path, points: _write_lines(path, points, "%.0f"), 1),
    "OBJ of float32": ("a.obj", lambda path, points: _write_lines(path, points.astype("f4"), "%.6f", "v "), 0.5),
    "OBJ of %g": ("a.obj", lambda path, points: _write_lines(path, points, "%g", "v "), 10),
    "CSV of a decimetre": ("a.csv", lambda path, points: _write_lines(path, points, "%.1f,"), 0.1),
    "NPY of float64 that was float32": (
        "a.npy",
        lambda path, points: np.save(path, points.astype("f4").astype("f8")),
        0.5,
    ),
}


@run_each("case", ROUNDED)
def test_rounded_coordinates_are_noted_with_their_step(tmp_path: Path, case: str) -> None:
    name, write, step = ROUNDED[case]
    points = np.random.default_rng(0).uniform(0, 9, (200, 3)) + UTM
    write(tmp_path / name, points)
    cloud = read_cloud(tmp_path / name)
    assert np.abs(cloud.points - points).max() > step / 4, "the file has lost it"
    (note,) = cloud.notes
    assert note.startswith(f"coordinates {OF_TEXT}of {step:.3g}, more than a thousandth of the extent: subtract")


@run_each(
    "kind, points",
    [
        ("millimetres", (np.random.default_rng(0).uniform(0, 9, (200, 3)) + UTM).round(3)),
        ("about the origin", np.random.default_rng(0).uniform(-2, 2, (200, 3)).round(3)),
        ("voxels", np.random.default_rng(0).integers(1, 33, (200, 3)).astype(float)),
        ("voxels elsewhere", np.random.default_rng(0).integers(100, 133, (200, 3)).astype(float)),
        ("a plane", np.column_stack([np.random.default_rng(0).uniform(0, 9, (200, 2)), np.full(200, 100.0)])),
        ("few points", np.arange(9.0).reshape(3, 3) + UTM),
        ("a street", np.random.default_rng(0).uniform(0, 900, (200, 3)).round(1) + UTM),
    ],
)
def test_coordinates_that_are_fine_are_not_noted(tmp_path: Path, kind: str, points: np.ndarray) -> None:
    np.savetxt(tmp_path / "a.xyz", points, fmt="%.17g")
    assert read_cloud(tmp_path / "a.xyz").notes == ()


@run_each(
    "scale, count, extent, told",
    [(0.5, 200, 9, True), (1e-3, 200, 9, False), (0.5, 5000, 40, True), (0.01, 500, 90, False)],
)
def test_the_scale_of_las_is_noted_where_it_is_coarse(
    tmp_path: Path, scale: float, count: int, extent: float, told: bool
) -> None:
    cloud = laspy.LasData(laspy.LasHeader(version="1.2", point_format=0))
    cloud.header.scales, cloud.header.offsets = np.full(3, scale), UTM.astype(float)
    cloud.x, cloud.y, cloud.z = (np.random.default_rng(0).uniform(0, extent, (count, 3)) + UTM).T
    cloud.write(tmp_path / "a.las")
    expected = (
        f"coordinates are stored in steps of {scale:g}, coarse for this cloud: write the file with a finer scale",
    )
    assert read_cloud(tmp_path / "a.las").notes == (expected if told else ())


def test_a_scene_tells_the_coarsest_step_in_metres(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(6):
        rows = np.random.default_rng(number).uniform(0, 9, (60, 4)) + np.append(UTM, 0)
        rows[:, 3] = np.arange(60) % 3
        form = ["%g"] * 3 if number == 3 else ["%.1f"] * 3
        np.savetxt(tmp_path / "in" / f"{number}.txt", rows, header="x y z label", fmt=[*form, "%d"])
    options = {"up_axis": "z", "unit": "ft"}
    found = prepare_set("scene_folder", tmp_path / "in", tmp_path / "set", lambda *_: None, **options)
    assert any(f"{OF_TEXT}of 3.05 m, more" in note and "(6 files" in note for note in found["differences"])


@run_each(
    "colours, told", [((0, 0, 0), "colours are all 0, as in"), ((255, 255, 255), "colours are all (255, 255, 255):")]
)
def test_colours_of_nothing_are_noted_and_training_on_them_is_doubted(
    tmp_path: Path, colours: tuple[int, ...], told: str
) -> None:
    root = tmp_path / f"in{colours[0]}"
    root.mkdir()
    for number in range(6):
        cloud = laspy.LasData(laspy.LasHeader(version="1.4", point_format=7))
        cloud.header.scales = np.full(3, 1e-4)
        cloud.x, cloud.y, cloud.z = np.random.default_rng(number).uniform(0, 4, (3, 60))
        cloud.red, cloud.green, cloud.blue = np.tile(np.array(colours)[:, None], 60)
        cloud.classification = np.arange(60) % 3
        cloud.write(root / f"{number}.las")
    target = tmp_path / f"set{colours[0]}"
    found = prepare_set("scene_folder", root, target, lambda *_: None, up_axis="z", unit="m", label="classification")
    assert sum(note.startswith(told) and "(6 files" in note for note in found["differences"]) == 1
    scenes = [SceneFolder(split="train", root=str(target), colours=is_read) for is_read in (True, False)]
    assert [any("three constant inputs" in doubt for doubt in each.doubts) for each in scenes] == [True, False]


def test_channels_that_are_constant_or_of_two_scales_are_told(tmp_path: Path) -> None:
    for kind in ("ball", "rod"):
        (tmp_path / "in" / kind).mkdir(parents=True)
        for number in range(6):
            points = solid(kind, number)
            intensity = np.random.default_rng(number).uniform(0, 255 if number < 3 else 1, len(points))
            columns = dict(zip("xyz", points.T, strict=True)) | {
                "intensity": intensity,
                "time": np.full(len(points), 7.0),
            }
            write_ply(tmp_path / "in" / kind / f"{number}.ply", columns)
    columns = ("x", "y", "z", "intensity", "time")
    differences = prepare_folder(tmp_path / "in", tmp_path / "set", columns=columns)["differences"]
    assert any(note.startswith("scales may be mixed: intensity of 6 of 12 clouds, first ") for note in differences)
    assert any(note.startswith("time is 7 at every point of all clouds") for note in differences)
    root = str(tmp_path / "set")
    doubts = [CloudFolder(split="train", root=root, channels=(name,)).doubts for name in ("time", "intensity")]
    assert ["a constant input" in " ".join(each) for each in doubts] == [True, False]
    assert all("scales may be mixed" in " ".join(each) for each in doubts)


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
