"""Files of 3D results: values by hand, read back as written, real labels, and what is refused."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path

import numpy as np
import pytest

from sightline.contract.errors import DataError
from sightline.store.boxes3d.box_table import BoxTable, ImageBoxes, make_box_table
from sightline.store.boxes3d.conversions import boxes_to_camera
from sightline.store.boxes3d.image_boxes import project_boxes
from sightline.store.boxes3d.kitti_objects import Calibration, read_calibration
from sightline.store.boxes3d.results import format_json, format_kitti, format_text, read_results
from tests.golden_parity import load_golden

CAR = "Car -1 -1 0.5 100 120 300 220 1.5 1.6 4 2 1.7 20 -1.5707963267948966 0.9\n"


def draw_table(random: np.random.Generator, count: int, *, has_image: bool = True) -> BoxTable:
    boxes = np.column_stack(
        [
            random.uniform(-50, 50, (count, 3)),
            random.uniform(0.5, 5, (count, 3)),
            random.uniform(-math.pi, math.pi, count),
        ]
    )
    image = ImageBoxes(
        random.uniform(0, 1000, (count, 4)), np.full(count, np.nan), np.full(count, -1), random.uniform(-3, 3, count)
    )
    label, score = random.integers(0, 2, count), random.random(count)
    return make_box_table(boxes, label, ("Car", "Person_sitting"), score=score, image=image if has_image else None)


def assert_same(found: BoxTable, expected: BoxTable, tolerance: float = 0.0) -> None:
    np.testing.assert_allclose(found.boxes, expected.boxes, rtol=0, atol=tolerance)
    np.testing.assert_allclose(found.score, expected.score, rtol=0, atol=tolerance)
    assert [found.class_names[i] for i in found.label] == [expected.class_names[i] for i in expected.label]
    if expected.image is not None:
        assert found.image is not None
        np.testing.assert_allclose(found.image.corners_px, expected.image.corners_px, rtol=0, atol=tolerance)
        np.testing.assert_allclose(found.image.alpha, expected.image.alpha, rtol=0, atol=tolerance)


def test_a_row_of_kitti_by_hand(tmp_path: Path) -> None:
    """x = z, y = -x and z = -y + h / 2 of a camera in the scanner that looks ahead; at ry = -pi / 2 the yaw is 0."""
    (tmp_path / "000007.txt").write_text(CAR)
    (tmp_path / "000008.txt").write_text("")
    tables = read_results(tmp_path, {})
    assert [len(tables[name]) for name in ("000007", "000008")] == [1, 0]
    table = tables["000007"]
    np.testing.assert_allclose(table.boxes, [[20, -2, -1.7 + 0.75, 4, 1.6, 1.5, 0]], atol=1e-12)
    assert table.image is not None
    assert (table.score[0], table.class_names, table.frame) == (0.9, ("Car",), "000007")
    assert (table.image.corners_px.tolist(), table.image.alpha[0]) == ([[100, 120, 300, 220]], 0.5)
    assert (math.isnan(table.image.truncated[0]), table.image.occluded[0]) == (True, -1)


def test_results_are_read_as_they_were_written(tmp_path: Path, shared: Path) -> None:
    """KITTI's rows to 1e-6 through a real camera, our own forms bit for bit; frames without boxes stay."""
    random = np.random.default_rng(0)
    camera = read_calibration(shared / "data/kitti_object_mini/calib/000001.txt").camera_of_velodyne
    tables = {name: draw_table(random, count) for name, count in (("000001", 7), ("b-2", 0), ("c", 1))}
    folder = tmp_path / "kitti"
    folder.mkdir()
    for name, table in tables.items():
        (folder / f"{name}.txt").write_text(format_kitti(table, camera))
        assert all(len(line.split()) == 16 for line in format_kitti(table, camera).splitlines())
    (tmp_path / "own.json").write_text(format_json(tables))
    (tmp_path / "own.txt").write_text(format_text(tables))
    plain = {name: make_box_table(t.boxes, t.label, t.class_names, score=t.score) for name, t in tables.items()}
    for path, expected, tolerance in (
        (folder, tables, 1e-6),
        (tmp_path / "own.json", tables, 0),
        (tmp_path / "own.txt", plain, 0),
    ):
        read = read_results(path, dict.fromkeys(tables, camera))
        assert [*read] == [*tables]
        for name, table in expected.items():
            assert_same(read[name], table, tolerance)


def test_rows_with_named_columns_are_results(tmp_path: Path) -> None:
    """What `data convert` writes with scores; without them a row is a label, and no result."""
    (tmp_path / "a.txt").write_text("x,y,z,dx,dy,dz,yaw,class,score\n1,2,3,4,2,1.5,0.25,traffic cone,0.75\n")
    (tmp_path / "b.txt").write_text("")
    read = read_results(tmp_path, {})
    assert (read["a"].boxes.tolist(), read["a"].score.tolist()) == ([[1, 2, 3, 4, 2, 1.5, 0.25]], [0.75])
    assert (read["a"].class_names, len(read["b"])) == (("traffic cone",), 0)
    (tmp_path / "b.txt").write_text("1 2 3 4 2 1.5 0.25 car\n")
    with pytest.raises(DataError, match="has no score; name the columns in a first line"):
        read_results(tmp_path, {})
    assert len(read_results(tmp_path, {}, are_labels=True)["b"]) == 1


def test_real_labels_go_through_a_table_and_back(shared: Path, tmp_path: Path) -> None:
    root = shared / "data/kitti_object_mini"
    names = ("000000", "000001", "000002", "000003")
    cameras = {name: read_calibration(root / f"calib/{name}.txt").camera_of_velodyne for name in names}
    tables = read_results(root / "label_2", cameras, are_labels=True)
    assert np.allclose(tables["000000"].boxes[0], [8.731, -1.856, -0.655, 1.20, 0.48, 1.89, -1.581], atol=6e-4)
    regions = tables["000001"]
    assert [regions.class_names[i] if i >= 0 else "-" for i in regions.label] == ["Truck", "Car", "Cyclist", *"----"]
    assert regions.is_ignored.tolist() == [False] * 3 + [True] * 4
    for name in names:
        lines = (root / f"label_2/{name}.txt").read_text().splitlines()
        table = tables[name].select(tables[name].label >= 0)
        scored = make_box_table(
            table.boxes, table.label, table.class_names, score=np.ones(len(table)), image=table.image
        )
        written = [line.split() for line in format_kitti(scored, cameras[name]).splitlines()]
        stated = [line.split() for line in lines if not line.startswith("DontCare")]
        assert [row[0] for row in written] == [row[0] for row in stated]
        ours, theirs = (np.array([row[1:15] for row in rows], dtype=float) for rows in (written, stated))
        turned = (ours[:, -1] - theirs[:, -1] + math.pi) % (2 * math.pi) - math.pi
        np.testing.assert_allclose(ours[:, :-1], theirs[:, :-1], atol=1e-6)
        np.testing.assert_allclose(turned, 0, atol=1e-6)


@pytest.mark.parametrize("case", ["case00", "case01"])
def test_image_boxes_are_those_of_the_authors(shared: Path, case: str) -> None:
    arrays = load_golden(shared, "kitti_boxes", area="boxes3d").arrays
    calibration = Calibration.from_matrices(
        velo_to_cam=arrays[f"{case}/in_Tr_velo_to_cam"],
        rectification=arrays[f"{case}/in_R0"],
        projection=arrays[f"{case}/in_P2"],
    )
    boxes, turns = arrays[f"{case}/boxes_lidar"], arrays[f"{case}/alpha_from_camera"]
    whole, angles = project_boxes(boxes, calibration)
    cut, _ = project_boxes(boxes, calibration._replace(image_px=(1242, 375)))
    is_ahead = (arrays[f"{case}/corners_camera"][..., 2] > 0.1).all(axis=1)
    assert is_ahead.sum() > 10
    np.testing.assert_allclose(whole[is_ahead], arrays[f"{case}/image_boxes"][is_ahead], rtol=1e-9)
    np.testing.assert_allclose(cut[is_ahead], arrays[f"{case}/image_boxes_clipped"][is_ahead], rtol=1e-9)
    np.testing.assert_allclose(np.exp(1j * angles), np.exp(1j * turns), atol=1e-9)


def test_an_image_box_holds_what_lies_in_front_of_the_camera(shared: Path) -> None:
    """Of boxes that reach behind the camera, or out of the image, points along the edges are projected one by one.

    These are 0.2 mm apart, which is up to 5 pixels at a depth of 0.1 m. A box behind the camera has no image box; one
    beside the image has no width, and one above it no height.
    """
    calibration = read_calibration(shared / "data/kitti_object_mini/calib/000002.txt")._replace(image_px=(1242, 375))
    random, count = np.random.default_rng(0), 40
    places = [random.uniform(low, high, count) for low, high in ((-1, 4), (-4, 4), (-2, 0))]
    boxes = np.column_stack([*places, np.tile([4.0, 1.8, 1.5], (count, 1)), random.uniform(-3, 3, count)])
    num_cut = 0
    for box, found in zip(boxes, project_boxes(boxes, calibration)[0], strict=True):
        camera = edge_points(boxes_to_camera(box[None], calibration.camera_of_velodyne)[0], 20_000)
        ahead = camera[camera[:, 2] >= 0.1]
        num_cut += 0 < len(ahead) < len(camera)
        if not len(ahead):
            assert np.isnan(found).all()
            continue
        flat = (ahead @ calibration.projection[:2, :3].T + calibration.projection[:2, 3]) / ahead[:, 2:]
        flat = np.clip(flat, 0, [1241, 374])
        expected = np.concatenate([flat.min(axis=0), flat.max(axis=0)])
        np.testing.assert_allclose(found, expected, atol=5 if len(ahead) < len(camera) else 1e-6)
        assert (found[:2] <= expected[:2] + 1e-6).all()
        assert (found[2:] >= expected[2:] - 1e-6).all()
    assert num_cut > 10
    beside = np.array([[9, 40, -1, 4, 1.8, 1.5, 0.3], [9, 0, 30, 4, 1.8, 1.5, 0.3], [-9, 0, -1, 4, 1.8, 1.5, 0.3]])
    left, above, behind = project_boxes(beside, calibration)[0]
    assert (left[0], left[2], above[1], above[3]) == (0, 0, 0, 0)
    assert np.isnan(behind).all()


def edge_points(box: np.ndarray, count: int) -> np.ndarray:
    """Points (N, 3) along the twelve edges of a box of the camera, as KITTI states it; the corners are among them."""
    along = np.linspace(-0.5, 0.5, count)
    edges = []
    for axis in range(3):
        for a, b in ((-0.5, -0.5), (-0.5, 0.5), (0.5, -0.5), (0.5, 0.5)):
            shares = [np.full(count, a), np.full(count, b)]
            shares.insert(axis, along)
            edges.append(np.column_stack(shares))
    x, y, z, length, height, width, turn = box.tolist()
    u, v, w = (np.concatenate(edges) * [length, width, height]).T
    cos, sin = math.cos(turn), math.sin(turn)
    return np.column_stack([x + cos * u + sin * v, y - height / 2 + w, z - sin * u + cos * v])


OWN = {"form": "sightline 3D boxes", "version": 1}
ENTRY = {"frame": "a", "boxes": [[1, 2, 3, 4, 2, 1.5, 0]], "score": [0.5], "class": ["Car"]}
TEXT = "a 1 2 3 4 2 1.5 0 0.5 Car\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", CAR.rpartition(" ")[0], "a.txt:1: has 15 words, KITTI's rows have 16, the last is the score"),
        ("a.txt", "\n" + CAR.replace("1.6 4", "1.6 inf"), "a.txt:2: 'inf' is no finite number"),
        ("a.txt", CAR.replace("1.6 4", "1.6 0"), r"a.txt:1: its sizes are 0, 1.5, 1.6 m|a.txt:1: its sizes are 0, 1.6"),
        ("own.txt", "a 1 2 3\n", "own.txt:1: has 4 words; a line is frame x y z dx dy dz yaw score class"),
        ("own.txt", TEXT.replace("1.5", "-1.5"), "own.txt:1: its sizes are 4, 2, -1.5 m"),
        ("own.txt", TEXT.replace("0.5", "nan"), "own.txt:1: 'nan' is no finite number"),
        ("own.json", json.dumps([ENTRY]), "own.json: is no file of our results"),
        ("own.json", json.dumps({**OWN, "version": 2}), "own.json: is of version 2, this program reads 1"),
        (
            "own.json",
            json.dumps({**OWN, "frames": [{**ENTRY, "frame": 3}]}),
            r"frames\[0\]: states no id of its 'frame'",
        ),
        (
            "own.json",
            json.dumps({**OWN, "frames": [ENTRY, ENTRY]}),
            r"frames\[1\]: is the frame 'a' for the second time",
        ),
        ("own.json", json.dumps({**OWN, "frames": [{**ENTRY, "score": []}]}), "must be lists of one length"),
        ("own.json", json.dumps({**OWN, "frames": [{**ENTRY, "score": [None]}]}), "box 0: needs 7 finite numbers"),
        ("own.json", json.dumps({**OWN, "frames": [{**ENTRY, "class": [2]}]}), r"class\[0\] is 2, the name of a class"),
    ],
)
def test_what_is_no_box_is_refused_in_one_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        read_results(tmp_path if name == "a.txt" else tmp_path / name, {})
    assert "\n" not in str(caught.value)


def test_nothing_is_written_that_would_be_read_otherwise() -> None:
    table = make_box_table(np.ones((1, 7)), np.zeros(1, dtype=np.int64), ("traffic cone",), score=np.ones(1))
    with pytest.raises(DataError, match="'traffic cone': KITTI's rows hold no class name with white space"):
        format_kitti(table)
    with pytest.raises(DataError, match="'a b': lines of text hold no frame id with white space"):
        format_text({"a b": table})
    assert "traffic cone" in format_text({"a": table})


@pytest.mark.parametrize("part", [*range(2), *(pytest.param(part, marks=pytest.mark.long) for part in range(2, 20))])
def test_damaged_files_are_read_soundly_or_refused(tmp_path: Path, part: int) -> None:
    """Twenty damages of each form: bytes changed, doubled, or cut. What comes out has place, size and score."""
    random = np.random.default_rng(part)
    tables = {"a": draw_table(random, 3), "b": draw_table(random, 0)}
    files = {"rows/a.txt": format_kitti(tables["a"]), "own.txt": format_text(tables), "own.json": format_json(tables)}
    (tmp_path / "rows").mkdir()
    for name, text in files.items():
        for _ in range(20):
            content = bytearray(text.encode())
            for _ in range(random.integers(1, 4)):
                place, kind = int(random.integers(len(content))), random.integers(3)
                if kind == 0:
                    content[place] = random.choice(list(b'0-.e,nNaI\n\t {}[]"x\xff\x00'))
                elif kind == 1:
                    content[place:place] = content[place : place + int(random.integers(1, 40))]
                else:
                    del content[place : place + int(random.integers(1, 40))]
            (tmp_path / name).write_bytes(bytes(content))
            read = {}
            with contextlib.suppress(DataError):
                read = read_results(tmp_path / "rows" if name == "rows/a.txt" else tmp_path / name, {})
            for table in read.values():
                assert np.isfinite(table.boxes).all()
                assert np.isfinite(table.score).all()
                assert (table.boxes[:, 3:6] > 0).all()
                assert (table.label >= 0).all()
