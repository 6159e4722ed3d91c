"""PLY files: every form, type and list is read; what is written is read back bit for bit, whole or absent."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from sightline.store.files.ply import read_ply, write_ply
from tests.cases import run_each
from tests.data.clouds.cloud_writers import PLY_TYPES, solid
from tests.data.clouds.cloud_writers import write_ply as write_by_hand

FORMS = ("ascii", "binary_little_endian", "binary_big_endian")
POINTS = solid("rod", 1, 9)
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


@run_each("dtype", PLY_TYPES)
@run_each("form", FORMS)
def test_every_form_and_type(tmp_path: Path, form: str, dtype: str) -> None:
    table = np.rint(100 * np.abs(POINTS)).astype(dtype) if dtype[1] != "f" else POINTS.astype(dtype)
    columns = dict(zip(("X", "y", "z"), table.T, strict=True)) | {"red": table[:, 0]}
    found = read_ply(write_by_hand(tmp_path / "a.ply", columns, form=form, dtype=dtype))
    assert list(found.vertex) == ["x", "y", "z", "red"]
    assert found.faces is None
    for name, values in columns.items():
        np.testing.assert_array_equal(found.vertex[name.lower()], values.astype(np.float64))


@run_each(
    "faces, triangles",
    [
        ([(0, 1, 2), (2, 3, 4)], [[0, 1, 2], [2, 3, 4]]),
        ([(0, 1, 2, 3), (4, 5, 6)], [[0, 1, 2], [0, 2, 3], [4, 5, 6]]),
        ([(0, 1, 2, 3), (4, 5, 6, 7)], [[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]]),
        ([(0, 1), (4, 5, 6)], [[4, 5, 6]]),
    ],
)
@run_each("form", FORMS)
def test_faces_become_triangles(
    tmp_path: Path, form: str, faces: list[tuple[int, ...]], triangles: list[list[int]]
) -> None:
    columns = dict(zip("xyz", POINTS.T, strict=True))
    found = read_ply(write_by_hand(tmp_path / "a.ply", columns, form=form, faces=faces))
    assert found.faces is not None
    assert found.faces.tolist() == triangles


@run_each("newline", ["\n", "\r\n", "\r"])
def test_other_elements_and_lists_are_left_out(tmp_path: Path, newline: str) -> None:
    (tmp_path / "a.ply").write_bytes(HAND.replace("\n", newline).encode())
    found = read_ply(tmp_path / "a.ply")
    assert found.vertex["quality"].tolist() == [7, 8, 9]
    assert found.vertex["y"].tolist() == [0, 0, 1]
    assert found.faces is not None
    assert found.faces.tolist() == [[0, 1, 2]]


@run_each("newline", [b"\n", b"\r"])
def test_lists_of_vertices_in_binary(tmp_path: Path, newline: bytes) -> None:
    """Lists of different lengths among scalars: bytes laid out by hand."""
    head = HAND[: HAND.index("element camera")] + HAND[HAND.index("element vertex") : HAND.index("element face")]
    head = head.replace("ascii", "binary_big_endian") + "end_header\n"
    body = b""
    for row, near in enumerate([(1, 2), (), (0,)]):
        body += np.array([row, 0, 0], ">f4").tobytes() + bytes([len(near)]) + np.array(near, ">i4").tobytes()
        body += bytes([row + 7])
    (tmp_path / "a.ply").write_bytes(head.encode().replace(b"\n", newline) + body)
    found = read_ply(tmp_path / "a.ply")
    assert found.vertex["x"].tolist() == [0, 1, 2]
    assert found.vertex["quality"].tolist() == [7, 8, 9]


def cloud(num_points: int, dtype: type) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(num_points)
    points = (draw.standard_normal((num_points, 3)) * 1e5).astype(dtype)
    colors = draw.integers(0, 256, size=(num_points, 3), dtype=np.uint8)
    return {"points": points, "colors": colors, "label": draw.integers(-1, 50, size=num_points)}


@run_each("dtype", [np.float32, np.float64])
@run_each("num_points", [1, 200])
def test_what_was_written_is_read_bit_for_bit(tmp_path: Path, dtype: type, num_points: int) -> None:
    written = cloud(num_points, dtype)
    write_ply(tmp_path / "a.ply", **written)
    read = read_ply(tmp_path / "a.ply")
    assert list(read.vertex) == ["x", "y", "z", "red", "green", "blue", "label"]
    assert read.faces is None
    assert np.array_equal(np.stack([read.vertex[axis] for axis in "xyz"], axis=1), written["points"])
    assert np.array_equal(np.stack([read.vertex[name] for name in ("red", "green", "blue")], axis=1), written["colors"])
    assert np.array_equal(read.vertex["label"], written["label"])


def test_every_byte_of_a_point_is_where_the_header_says(tmp_path: Path) -> None:
    points, colors = np.array([[1.5, -2.0, 0.25]], dtype=np.float32), np.array([[1, 2, 255]], dtype=np.uint8)
    write_ply(tmp_path / "bare.ply", points=points, colors=colors)
    head = (
        b"ply\nformat binary_little_endian 1.0\nelement vertex 1\nproperty float x\nproperty float y\n"
        b"property float z\nproperty uchar red\nproperty uchar green\nproperty uchar blue\n"
    )
    body = struct.pack("<3f3B", 1.5, -2.0, 0.25, 1, 2, 255)
    assert (tmp_path / "bare.ply").read_bytes() == head + b"end_header\n" + body
    write_ply(tmp_path / "double.ply", points=points.astype(np.float64), colors=colors, label=np.array([-3]))
    body = struct.pack("<3d3Bi", 1.5, -2.0, 0.25, 1, 2, 255, -3)
    expected = head.replace(b"float", b"double") + b"property int label\nend_header\n" + body
    assert (tmp_path / "double.ply").read_bytes() == expected


def test_arrays_of_big_endian_machines_and_strided_ones_are_taken(tmp_path: Path) -> None:
    plain = cloud(6, np.float32)
    write_ply(tmp_path / "plain.ply", **plain)
    points, colors = np.asfortranarray(plain["points"].astype(">f4")), plain["colors"][::-1].copy()[::-1]
    write_ply(tmp_path / "other.ply", points=points, colors=colors, label=plain["label"].astype(">i2"))
    assert (tmp_path / "other.ply").read_bytes() == (tmp_path / "plain.ply").read_bytes()


def test_a_disk_that_fills_up_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_ply(tmp_path / "a.ply", **cloud(5, np.float32))
    older = (tmp_path / "a.ply").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sightline.store.files.atomic_write.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_ply(tmp_path / "a.ply", **cloud(6, np.float32))
    assert [path.name for path in tmp_path.iterdir()] == ["a.ply"]
    assert (tmp_path / "a.ply").read_bytes() == older
