"""OFF files: the slips of the public collections read as they are meant; every damage is named with its line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sightline.data.files.cloud_files import has_normals, read_cloud
from sightline.data.files.cloud_formats import read_off
from sightline.errors import DataError

SQUARE = [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]
BODY = "0 0 0\n1 0 0\n1 1 0\n0 1 0\n3 0 1 2\n3 0 2 3\n"


def _file(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "shape_0001.off"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(
    "text",
    [
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
    ],
    ids=["plain", "glued", "spaced", "two", "comments", "crlf", "cut", "colours", "notation", "polygon", "degenerate"],
)
def test_the_same_square_in_many_hands(tmp_path: Path, text: str) -> None:
    mesh = read_off(_file(tmp_path, text))
    np.testing.assert_array_equal(mesh.vertices, SQUARE)
    np.testing.assert_array_equal(mesh.faces, [[0, 1, 2], [0, 2, 3]])
    assert (mesh.vertices.dtype, mesh.faces.dtype) == (np.float64, np.int64)


def test_a_polygon_fans_from_its_first_corner(tmp_path: Path) -> None:
    corners = "".join(f"{np.cos(a)} {np.sin(a)} 0\n" for a in np.arange(5) * 2 * np.pi / 5)
    mesh = read_off(_file(tmp_path, f"OFF\n5 2 0\n{corners}5 2 3 4 0 1\n3 0 1 2\n"))
    np.testing.assert_array_equal(mesh.faces, [[2, 3, 4], [2, 4, 0], [2, 0, 1], [0, 1, 2]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n\n# nothing\n", "is empty"),
        ("PLY\n4 2 0\n" + BODY, ":1: starts with 'PLY', not with 'OFF'"),
        ("COFF\n4 2 0\n" + BODY, ":1: starts with 'COFF'"),
        ("OFFSET\n4 2 0\n" + BODY, ":1: needs the numbers of vertices, faces and edges, found 'SET'"),
        ("OFF\n", ":1: ends before the numbers"),
        ("OFF\n4 two 0\n" + BODY, ":2: needs the numbers .* found '4 two 0'"),
        ("OFF\n-4 2 0\n" + BODY, ":2: needs the numbers"),
        ("OFF\n4\n" + BODY, ":2: needs the numbers"),
        ("OFF\n5 2 0\n" + BODY, r":7: 4 columns, 3 are needed; found '3 0 1 2'"),
        ("OFF\n9 2 0\n" + BODY, "announces 9 vertices, the file ends after 6"),
        ("OFF\n4 3 0\n" + BODY, r"announces 3 faces, the file ends after 2 \(line 8\)"),
        ("OFF\n4 1 0\n" + BODY, ":8: 1 lines more than the 4 vertices and 1 faces"),
        ("OFF\n4 0 0\n" + "\n".join(BODY.split("\n")[:4]), "has no faces"),
        ("OFF\n4 2 0\n" + BODY.replace("1 1 0", "1 one 0"), ":5: 'one' is not a number"),
        ("OFF\n4 2 0\n" + BODY.replace("1 1 0", "1 nan 0"), ":5: nan is not a finite number"),
        ("OFF\n4 2 0\n" + BODY.replace("1 1 0", "1 1e999 0"), ":5: 1e999 is not a finite number"),
        ("OFF\n4 2 0\n" + BODY.replace("1 1 0", "1 1"), ":5: 2 columns, 3 are needed"),
        ("OFF\n4 2 0\n" + BODY.replace("3 0 2 3", "3 0 2 4"), ":8: a face names vertex 4, there are 4"),
        ("OFF\n4 2 0\n" + BODY.replace("3 0 2 3", "3 0 2 -1"), ":8: a face names vertex -1"),
        ("OFF\n4 2 0\n" + BODY.replace("3 0 2 3", "4 0 1 2 9"), ":8: a face names vertex 9"),
        ("OFF\n4 2 0\n" + BODY.replace("3 0 2 3", f"3 0 2 {10**30}"), ":8: a face names vertex 1000"),
        ("OFF\n4 2 0\n" + BODY.replace("3 0 2 3", "3 0 2 2.5"), ":8: '2.5' is not the index of a vertex"),
        ("OFF\n4 2 0\n" + BODY.replace("3 0 2 3", "3 0 2"), ":8: a face of 3 corners names 2"),
        ("OFF\n4 2 0\n" + BODY.replace("3 0 2 3", "x 0 2 3"), ":8: 'x' is not a number of corners"),
        ("OFF\n4 2 0\n" + BODY.replace("3 0 2 3", "nan inf 2 3"), ":8: 'nan' is not a number of corners"),
        ("# a\n\nOFF4 2 0\n\n" + BODY.replace("3 0 2 3", "3 0 7 3"), ":10: a face names vertex 7"),
        (("OFF\n4 2 0\n" + BODY).encode().replace(b"1 1 0", b"1 \xff\x00 0"), ":5: .* is not a number"),
    ],
)
def test_damage_is_named_with_its_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_off(_file(tmp_path, text))
    assert str(caught.value).startswith(str(tmp_path / "shape_0001.off"))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_off(tmp_path / "none.off")


@pytest.mark.shared
def test_real_meshes_hold_what_their_headers_say(shared: Path) -> None:
    paths = sorted((shared / "data/modelnet_off_samples").rglob("*.off"))
    assert len(paths) == 6
    for path in paths:
        header = path.read_text().split("\n")[1].split()
        mesh = read_off(path)
        assert (len(mesh.vertices), len(mesh.faces)) == (int(header[0]), int(header[1])), path
        first = path.read_text().split("\n")[2].split()
        np.testing.assert_array_equal(mesh.vertices[0], [float(token) for token in first])


def test_a_file_that_announces_no_faces_is_a_cloud_where_none_are_needed(tmp_path: Path) -> None:
    path = tmp_path / "a.off"
    path.write_text("OFF\n2 0 0\n1 2 3\n4 5 6\n")
    cloud = read_cloud(path)
    assert (cloud.points.tolist(), cloud.faces) == ([[1, 2, 3], [4, 5, 6]], None)
    assert not has_normals(path)
    with pytest.raises(DataError, match="has no faces, so no surface"):
        read_off(path)
    path.write_text("OFF\n2 0 0\n1 2 3\n")
    with pytest.raises(DataError, match="announces 2 vertices, the file ends after 1"):
        read_cloud(path)
