"""Meshes in OFF, OBJ and STL files: the slips of the public collections read as they are meant, clouds in them."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from sightline.store.files.cloud_files import read_cloud
from tests.cases import run_each

OBJ = """\
# made by hand
mtllib a.mtl
o pyramid
v 0 0 0
v 2 0 0 # corner
v 2 2 0
v 0 2 0
v 1 1 1
vt 0 0
vn 0 0 1
usemtl red
s off
f 1/1/1 4/1/1 3/1/1 2/1/1
f 1//1 2//1 5//1
f -4 -3 -1
f 3 4 5
"""
STL = """\
solid made by hand
facet normal 0 0 1
outer loop
vertex 0 0 0
vertex 1 0 0
vertex 0 1 0
endloop
endfacet
facet normal 1 0 0
outer loop
vertex 0 0 0
vertex 0 1 0
vertex 0 0 1
endloop
endfacet
endsolid made by hand
"""
BODY = "0 0 0\n1 0 0\n1 1 0\n0 1 0\n3 0 1 2\n3 0 2 3\n"
SQUARES = [
    "OFF\n4 2 0\n" + BODY,
    "OFF4 2 0\n" + BODY,
    "OFF 4 2 0\n" + BODY,
    "OFF\n4 2\n" + BODY,
    "# made by hand\nOFF # magic\n\n4 2 5\n# corners\n" + BODY.replace("1 1 0\n", "\n1 1 0 # far\n\n") + "\n\n",
    "OFF\r\n4 2 0\r\n" + BODY.replace("\n", " \r\n"),
    "OFF\n4 2 0\n" + BODY.rstrip("\n"),
    "OFF\n4 2 0\n" + BODY.replace("3 0 1 2", "3 0 1 2 255 0 0").replace("3 0 2 3", "3 0 2 3 0.5 0.5 0.5 1"),
    "OFF\n4 2 0\n" + BODY.replace("1 1 0", "1.0e0 \t+1 -0.0"),
    "OFF\n4 1 0\n" + BODY.replace("3 0 1 2\n3 0 2 3", "4 0 1 2 3"),
    "OFF\n4 3 0\n" + BODY.replace("3 0 1 2\n3 0 2 3", "2 0 1\n4 0 1 2 3\n1 3"),
]


@run_each("text", SQUARES)
def test_the_same_square_in_many_hands(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.off").write_text(text, newline="")
    mesh = read_cloud(tmp_path / "a.off")
    np.testing.assert_array_equal(mesh.points, [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    np.testing.assert_array_equal(mesh.faces, [[0, 1, 2], [0, 2, 3]])
    assert mesh.faces is not None
    assert (mesh.points.dtype, mesh.faces.dtype) == (np.float64, np.int64)


def test_a_polygon_fans_from_its_first_corner(tmp_path: Path) -> None:
    corners = "".join(f"{np.cos(a)} {np.sin(a)} 0\n" for a in np.arange(5) * 2 * np.pi / 5)
    (tmp_path / "a.off").write_text(f"OFF\n5 2 0\n{corners}5 2 3 4 0 1\n3 0 1 2\n")
    np.testing.assert_array_equal(read_cloud(tmp_path / "a.off").faces, [[2, 3, 4], [2, 4, 0], [2, 0, 1], [0, 1, 2]])


@pytest.mark.shared
def test_real_meshes_hold_what_their_headers_say(shared: Path) -> None:
    paths = sorted((shared / "data/modelnet_off_samples").rglob("*.off"))
    assert len(paths) == 6
    for path in paths:
        _, header, first, *_ = path.read_text().split("\n")
        mesh = read_cloud(path)
        assert mesh.faces is not None
        assert [len(mesh.points), len(mesh.faces)] == [int(count) for count in header.split()[:2]], path
        np.testing.assert_array_equal(mesh.points[0], [float(token) for token in first.split()])


@run_each(
    "name, text, points, blue",
    [
        ("a.off", "OFF\n2 0 0\n1 2 3\n4 5 6\n", [[1, 2, 3], [4, 5, 6]], None),
        ("a.obj", "v 0 0 0 1 0 0.5\nv 1 2 3 0 0 0\n", [[0, 0, 0], [1, 2, 3]], [0.5, 0]),
    ],
)
def test_a_mesh_file_without_faces_is_a_cloud(
    tmp_path: Path, name: str, text: str, points: list[list[float]], blue: list[float] | None
) -> None:
    (tmp_path / name).write_text(text)
    cloud = read_cloud(tmp_path / name)
    assert (cloud.points.tolist(), cloud.faces) == (points, None)
    assert (cloud.channels["blue"].tolist() if cloud.channels else None) == blue


@run_each("newline", ["\n", "\r\n", "\r"])
def test_an_obj_file_by_hand(tmp_path: Path, newline: str) -> None:
    (tmp_path / "a.obj").write_text(OBJ, newline=newline)
    cloud = read_cloud(tmp_path / "a.obj")
    assert cloud.points.tolist() == [[0, 0, 0], [2, 0, 0], [2, 2, 0], [0, 2, 0], [1, 1, 1]]
    assert cloud.faces is not None
    assert cloud.faces.tolist() == [[0, 3, 2], [0, 2, 1], [0, 1, 4], [1, 2, 4], [2, 3, 4]]


def binary_stl(text: str = STL) -> bytes:
    corners = [list(map(float, line.split()[1:])) for line in text.splitlines() if line.startswith("vertex")]
    rows = [
        struct.pack("<3f9fH", 0, 0, 1, *np.ravel(corners[first : first + 3]), 7) for first in range(0, len(corners), 3)
    ]
    return b"solid in a binary file".ljust(80) + struct.pack("<I", len(rows)) + b"".join(rows)


@run_each("content", [STL.encode(), STL.replace("\n", "\r\n").encode(), binary_stl()])
def test_an_stl_file_by_hand(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.stl").write_bytes(content)
    cloud = read_cloud(tmp_path / "a.stl")
    assert cloud.faces is not None
    assert cloud.points.tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]]
    assert cloud.points[cloud.faces].tolist() == [[[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 0, 0], [0, 1, 0], [0, 0, 1]]]
