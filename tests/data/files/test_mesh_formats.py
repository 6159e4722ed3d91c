"""Meshes in OBJ and STL files: byte by byte as the formats say, clouds in them, and every damage named."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from sightline.contract.errors import DataError
from sightline.store.files.cloud_files import has_normals, read_cloud
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


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_an_obj_file_by_hand(tmp_path: Path, newline: str) -> None:
    path = tmp_path / "a.obj"
    path.write_text(OBJ, newline=newline)
    cloud = read_cloud(path)
    assert cloud.points.tolist() == [[0, 0, 0], [2, 0, 0], [2, 2, 0], [0, 2, 0], [1, 1, 1]]
    assert cloud.faces is not None
    assert cloud.faces.tolist() == [[0, 3, 2], [0, 2, 1], [0, 1, 4], [1, 2, 4], [2, 3, 4]]
    assert has_normals(path)
    assert not has_normals(path, by_faces=False)


def test_a_cloud_in_an_obj_file(tmp_path: Path) -> None:
    (tmp_path / "a.obj").write_text("v 0 0 0 1 0 0.5\nv 1 2 3 0 0 0\n")
    cloud = read_cloud(tmp_path / "a.obj")
    assert cloud.faces is None
    assert cloud.channels["blue"].tolist() == [0.5, 0]
    assert not has_normals(tmp_path / "a.obj")


def binary_stl(text: str = STL) -> bytes:
    corners = [list(map(float, line.split()[1:])) for line in text.splitlines() if line.startswith("vertex")]
    rows = [
        struct.pack("<3f9fH", 0, 0, 1, *np.ravel(corners[first : first + 3]), 7) for first in range(0, len(corners), 3)
    ]
    return b"solid in a binary file".ljust(80) + struct.pack("<I", len(rows)) + b"".join(rows)


@pytest.mark.parametrize("content", [STL.encode(), STL.replace("\n", "\r\n").encode(), binary_stl()])
def test_an_stl_file_by_hand(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.stl").write_bytes(content)
    cloud = read_cloud(tmp_path / "a.stl")
    assert cloud.faces is not None
    assert cloud.points.tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]]
    assert cloud.points[cloud.faces].tolist() == [
        [[0, 0, 0], [1, 0, 0], [0, 1, 0]],
        [[0, 0, 0], [0, 1, 0], [0, 0, 1]],
    ]
    assert has_normals(tmp_path / "a.stl")


REFUSED = {
    "obj of another vertex": ("a.obj", OBJ.replace("f 3 4 5", "f 3 4 6"), "names point 5, there are 5"),
    "obj of vertex 0": ("a.obj", OBJ.replace("f 3 4 5", "f 0 4 5"), ":16: '0' is not a corner"),
    "obj before the first": ("a.obj", OBJ.replace("f -4", "f -9"), "names point -4"),
    "obj of words": ("a.obj", OBJ.replace("v 1 1 1", "v 1 one 1"), ":8: 'one' is not a number"),
    "obj of a short vertex": ("a.obj", OBJ.replace("v 1 1 1", "v 1 1"), ":8: 2 columns, 3 are needed"),
    "obj of surfaces": ("a.obj", OBJ + "surf 0 1 0 1 1 2\n", ":17: 'surf 0 1 0 1 1 2' is not a line"),
    "obj without vertices": ("a.obj", "o nothing\n", "its vertices have 0 numbers"),
    "stl cut short": ("a.stl", STL[:-30], "does not end with endsolid"),
    "stl of other lines": ("a.stl", STL.replace("outer", "inner", 1), "a.stl:3: "),
    "stl of a word": ("a.stl", STL.replace("vertex 1", "vertex one"), ":5: 'one' is not a number"),
    "stl of nothing": ("a.stl", "solid a\nendsolid a\n", "no points|no rows|0 rows"),
    "binary stl cut short": (
        "a.stl",
        binary_stl()[:-1].replace(b"solid", b"stone"),
        "has 183 bytes, an STL file of 2 triangles has 184",
    ),
}


@run_each("case", REFUSED)
def test_what_is_refused(tmp_path: Path, case: str) -> None:
    name, content, words = REFUSED[case]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=words) as caught:
        read_cloud(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert "\n" not in str(caught.value)
