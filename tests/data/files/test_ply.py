"""PLY files: the numbers and faces that were written in each form, and every lie of a header refused."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from sightline.data.files.ply import read_ply
from sightline.errors import DataError
from tests.data.clouds.cloud_writers import PLY_TYPES, solid, write_ply

FORMS = ("ascii", "binary_little_endian", "binary_big_endian")
POINTS = solid("rod", 1, 9)
XYZ = dict(zip("xyz", POINTS.T, strict=True))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", PLY_TYPES)
def test_every_form_and_type(tmp_path: Path, form: str, dtype: str) -> None:
    table = np.rint(100 * np.abs(POINTS)).astype(dtype) if dtype[1] != "f" else POINTS.astype(dtype)
    columns = dict(zip(("X", "y", "z"), table.T, strict=True)) | {"red": table[:, 0]}
    ply = read_ply(write_ply(tmp_path / "a.ply", columns, form=form, dtype=dtype))
    assert list(ply.vertex) == ["x", "y", "z", "red"]
    for name, values in columns.items():
        np.testing.assert_array_equal(ply.vertex[name.lower()], values.astype(np.float64))
    assert ply.faces is None


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("faces", "triangles"),
    [
        ([(0, 1, 2), (2, 3, 4)], [[0, 1, 2], [2, 3, 4]]),
        ([(0, 1, 2, 3), (4, 5, 6)], [[0, 1, 2], [0, 2, 3], [4, 5, 6]]),
        ([(0, 1, 2, 3), (4, 5, 6, 7)], [[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]]),
        ([(0, 1), (4, 5, 6)], [[4, 5, 6]]),
    ],
)
def test_faces_become_triangles(
    tmp_path: Path, form: str, faces: list[tuple[int, ...]], triangles: list[list[int]]
) -> None:
    ply = read_ply(write_ply(tmp_path / "a.ply", XYZ, form=form, faces=faces))
    assert ply.faces is not None
    assert ply.faces.tolist() == triangles


HAND = """\
ply
format ascii 1.0
comment made by hand
obj_info a scanner
element camera 1
property float fov
element vertex 3
property float32 x
property float32 y
property float32 z
property list uchar int neighbours
property uint8 quality
element face 1
property uchar flag
property list uchar uint vertex_index
element edge 0
property int vertex1
end_header
45
0 0 0 2 1 2 7
1 0 0 0 8
0 1 0 1 0 9
1 3 0 1 2
"""


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_other_elements_and_lists_are_left_out(tmp_path: Path, newline: str) -> None:
    path = tmp_path / "a.ply"
    path.write_bytes(HAND.replace("\n", newline).encode())
    ply = read_ply(path)
    assert ply.vertex["quality"].tolist() == [7, 8, 9]
    assert ply.vertex["y"].tolist() == [0, 0, 1]
    assert ply.faces is not None
    assert ply.faces.tolist() == [[0, 1, 2]]


def test_lists_of_vertices_in_binary(tmp_path: Path) -> None:
    """Lists of different lengths among scalars: bytes laid out by hand."""
    head = HAND[: HAND.index("element camera")] + HAND[HAND.index("element vertex") : HAND.index("element face")]
    head = head.replace("ascii", "binary_big_endian") + "end_header\n"
    body = b""
    for row, near in enumerate([(1, 2), (), (0,)]):
        body += np.array([row, 0, 0], ">f4").tobytes() + bytes([len(near)]) + np.array(near, ">i4").tobytes()
        body += bytes([row + 7])
    (tmp_path / "a.ply").write_bytes(head.encode() + body)
    ply = read_ply(tmp_path / "a.ply")
    assert ply.vertex["x"].tolist() == [0, 1, 2]
    assert ply.vertex["quality"].tolist() == [7, 8, 9]


# --- what is refused --------------------------------------------------------------------------------------------------

CASES = {
    "another magic word": ("^ply", "plx", ":1: "),
    "another format": ("ascii 1.0", "ascii 2.0", ":2: .*not a known format"),
    "an unknown format": ("ascii", "binary", ":2: .*not a known format"),
    "an unknown line": ("comment made by hand", "remark", ":3: 'remark' is not a line"),
    "an unknown type": ("float32 y", "half y", ":9: "),
    "a property of nothing": ("element camera 1\n", "", ":5: "),
    "a size that is none": ("vertex 3", "vertex -3", ":7: "),
    "a size beyond sense": ("vertex 3", "vertex " + "9" * 30, ":7: "),
    "an element twice": ("element edge 0", "element face 0", ":16: "),
    "a property twice": ("float32 y", "float32 x", "names 'x' twice"),
    "a list counted in fractions": ("list uchar int", "list float int", "fractions"),
    "an element without properties": ("property int vertex1\n", "", "'edge' no properties"),
    "no vertices": ("vertex 3", "vertex 0", "no vertices"),
    "no end of the header": ("end_header", "end", "is not a line|no end_header"),
    "more vertices than rows": ("vertex 3", "vertex 4", "5 lines follow"),
    "1e12 vertices": ("vertex 3", "vertex 1000000000000", "1000000000000 x vertex.*5 lines follow"),
    "fewer vertices than rows": ("vertex 3", "vertex 2", "5 lines follow"),
    "a word for a number": ("1 0 0 0 8", "1 0 zero 0 8", "a.ply:21: .*is not a row of x, y, z, list neighbours"),
    "a row too short": ("1 0 0 0 8", "1 0 0 0", "a.ply:21: "),
    "a row too long": ("1 0 0 0 8", "1 0 0 0 8 9", "a.ply:21: "),
    "a list that is cut": ("2 1 2 7", "9 1 2 7", "a.ply:20: "),
    "a negative list": ("2 1 2 7", "-2 1 2 7", "a.ply:20: "),
    "a face of no vertex": ("1 3 0 1 2", "1 3 0 1 3", r"vertex 3, there are 3 \(0 to 2\)"),
    "a face of no corners": ("1 3 0 1 2", "1 0", "face 0 has no corners"),
    "a face of half a vertex": ("1 3 0 1 2", "1 3 0 1 0.5", "vertex 0.5"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_a_file_may_not_say(tmp_path: Path, case: str) -> None:
    old, new, words = CASES[case]
    text = re.sub(old, new, HAND, count=1, flags=re.MULTILINE)
    assert text != HAND
    (tmp_path / "a.ply").write_text(text)
    with pytest.raises(DataError, match=words) as caught:
        read_ply(tmp_path / "a.ply")
    assert str(caught.value).startswith(str(tmp_path / "a.ply"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("vertex 9", "vertex 1000000000000", "byte 202: 1000000000000 x vertex need 12000000000000 bytes"),
        ("vertex 9", "vertex 10", "face 0 has no corners"),
        ("vertex 9", "vertex 8", "byte "),
        ("face 2", "face 3", "byte "),
        ("face 2", "face 1", "byte .*: 13 bytes more than the header announces"),
    ],
)
def test_binary_headers_that_lie(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = write_ply(tmp_path / "a.ply", XYZ, faces=[(0, 1, 2), (3, 4, 5)])
    path.write_bytes(path.read_bytes().replace(old.encode(), new.encode()))
    with pytest.raises(DataError, match=words):
        read_ply(path)


def test_a_list_longer_than_the_file(tmp_path: Path) -> None:
    path = write_ply(tmp_path / "a.ply", XYZ, faces=[(0, 1, 2), (3, 4, 5)])
    content = path.read_bytes()
    path.write_bytes(content[:-13] + bytes([255]) + content[-12:])
    with pytest.raises(DataError, match=r"byte \d+: face 1 needs 1020 bytes more, 12 are left"):
        read_ply(path)
