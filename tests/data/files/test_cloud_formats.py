"""Files of clouds and meshes, each in its format: the numbers that were written, and every damage named."""

from __future__ import annotations

import contextlib
import re
import struct
import sys
from pathlib import Path

import laspy
import numpy as np
import pytest
from pypcd4 import Encoding, PointCloud

from sightline.contract.errors import DataError, MissingExtraError
from sightline.store.files import ply
from sightline.store.files.cloud_files import has_normals, read_cloud
from sightline.store.files.cloud_formats import read_las, read_off, read_pcd
from sightline.store.files.ply import read_ply
from sightline.store.files.ply import write_ply as write_ply_cloud
from tests.command import run_here
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


# --- Coloured clouds in PLY files: read back bit for bit, laid out as the format says, whole or absent ---


def cloud(num_points: int, dtype: type) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(num_points)
    points = (draw.standard_normal((num_points, 3)) * 1e5).astype(dtype)
    colors = draw.integers(0, 256, size=(num_points, 3), dtype=np.uint8)
    return points, colors, draw.integers(-1, 50, size=num_points)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("num_points", [1, 7, 200])
def test_what_was_written_is_read_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: type, num_points: int
) -> None:
    monkeypatch.setattr(ply, "_ROWS_AT_ONCE", 64)
    points, colors, label = cloud(num_points, dtype)
    write_ply_cloud(tmp_path / "a.ply", points=points, colors=colors, label=label)
    read = read_ply(tmp_path / "a.ply")
    assert list(read.vertex) == ["x", "y", "z", "red", "green", "blue", "label"]
    assert read.faces is None
    assert np.array_equal(np.stack([read.vertex[axis] for axis in "xyz"], axis=1), points)
    assert np.array_equal(np.stack([read.vertex[name] for name in ("red", "green", "blue")], axis=1), colors)
    assert np.array_equal(read.vertex["label"], label)


def test_every_byte_of_a_point_is_where_the_header_says(tmp_path: Path) -> None:
    points, colors = np.array([[1.5, -2.0, 0.25]], dtype=np.float32), np.array([[1, 2, 255]], dtype=np.uint8)
    write_ply_cloud(tmp_path / "bare.ply", points=points, colors=colors)
    head = (
        b"ply\nformat binary_little_endian 1.0\nelement vertex 1\nproperty float x\nproperty float y\n"
        b"property float z\nproperty uchar red\nproperty uchar green\nproperty uchar blue\n"
    )
    body = struct.pack("<3f3B", 1.5, -2.0, 0.25, 1, 2, 255)
    assert (tmp_path / "bare.ply").read_bytes() == head + b"end_header\n" + body
    write_ply_cloud(tmp_path / "double.ply", points=points.astype(np.float64), colors=colors, label=np.array([-3]))
    head = head.replace(b"float", b"double")
    body = struct.pack("<3d3Bi", 1.5, -2.0, 0.25, 1, 2, 255, -3)
    assert (tmp_path / "double.ply").read_bytes() == head + b"property int label\nend_header\n" + body


def test_arrays_of_big_endian_machines_and_strided_ones_are_taken(tmp_path: Path) -> None:
    points, colors, label = cloud(6, np.float32)
    write_ply_cloud(tmp_path / "plain.ply", points=points, colors=colors, label=label)
    write_ply_cloud(
        tmp_path / "other.ply",
        points=np.asfortranarray(points.astype(">f4")),
        colors=colors[::-1].copy()[::-1],
        label=label.astype(">i2"),
    )
    assert (tmp_path / "other.ply").read_bytes() == (tmp_path / "plain.ply").read_bytes()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"points": np.zeros((4, 2))}, r"points: found float64 \(4, 2\)"),
        ({"points": np.zeros((0, 3))}, r"points: found float64 \(0, 3\)"),
        ({"points": np.zeros((4, 3), dtype=np.int64)}, "points: found int64"),
        ({"colors": np.zeros((4, 3))}, "colors: found float64"),
        ({"colors": np.zeros((3, 3), dtype=np.uint8)}, r"colors: found uint8 \(3, 3\), expected uint8 \(4, 3\)"),
        ({"label": np.zeros(3, dtype=np.int64)}, r"label: found int64 \(3,\)"),
        ({"label": np.zeros(4)}, "label: found float64"),
        ({"label": np.full(4, 2**31)}, "label: found 2147483648 to 2147483648"),
    ],
)
def test_arrays_of_another_form_are_refused_before_a_file_is_there(
    tmp_path: Path, wrong: dict[str, np.ndarray], told: str
) -> None:
    given = {"points": np.zeros((4, 3)), "colors": np.zeros((4, 3), dtype=np.uint8), "label": np.arange(4)}
    with pytest.raises(ValueError, match=told):
        write_ply_cloud(tmp_path / "a.ply", **{**given, **wrong})
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points, colors, label = cloud(5, np.float32)
    write_ply_cloud(tmp_path / "a.ply", points=points, colors=colors, label=label)
    older = (tmp_path / "a.ply").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sightline.store.files.atomic_write.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_ply_cloud(tmp_path / "a.ply", points=points + 1, colors=colors, label=label)
    assert [path.name for path in tmp_path.iterdir()] == ["a.ply"]
    assert (tmp_path / "a.ply").read_bytes() == older


# --- PCD files: text and binary byte by byte, compressed as the library writes it, returns that are none, damage ---


HEADER = (
    "# .PCD v0.7 - Point Cloud Data file format\nVERSION 0.7\nFIELDS x y z Intensity ring\nSIZE 4 4 4 4 2\n"
    "TYPE F F F F U\nCOUNT 1 1 1 1 1\nWIDTH {n}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {n}\nDATA {kind}\n"
)
ROWS = [(1.5, -2.0, 0.25, 17.0, 3), (0.5, 8.0, -1.0, 255.0, 15)]


def write_pcd(path: Path, kind: str, rows: list[tuple[float, ...]]) -> Path:
    if kind == "ascii":
        body = "".join(" ".join(map(str, row)) + "\n" for row in rows).encode()
    else:
        body = b"".join(np.array(row[:4], "<f4").tobytes() + np.array(row[4], "<u2").tobytes() for row in rows)
    path.write_bytes(HEADER.format(n=len(rows), kind=kind).encode() + body)
    return path


@pytest.mark.parametrize("kind", ["ascii", "binary"])
def test_files_written_by_hand(tmp_path: Path, kind: str) -> None:
    found = read_pcd(write_pcd(tmp_path / "a.pcd", kind, ROWS)).named
    assert {name: values.tolist() for name, values in found.items()} == {
        name: [row[place] for row in ROWS] for place, name in enumerate(("x", "y", "z", "intensity", "ring"))
    }
    cloud = read_cloud(tmp_path / "a.pcd")
    assert cloud.points.tolist() == [list(row[:3]) for row in ROWS]
    assert sorted(cloud.channels) == ["intensity", "ring"]


def test_compressed_files(tmp_path: Path) -> None:
    points = np.random.default_rng(0).normal(size=(500, 4)).astype(np.float32)
    PointCloud.from_xyzi_points(points).save(tmp_path / "a.pcd", encoding=Encoding.BINARY_COMPRESSED)
    found = read_pcd(tmp_path / "a.pcd").named
    assert np.array_equal(np.stack([found[name] for name in ("x", "y", "z", "intensity")], axis=1), points)


def test_points_without_a_return_are_left_out(tmp_path: Path) -> None:
    nan = float("nan")
    found = read_cloud(write_pcd(tmp_path / "a.pcd", "binary", [ROWS[0], (nan, nan, nan, 0.0, 7), ROWS[1]]))
    assert found.channels["ring"].tolist() == [3, 15]
    with pytest.raises(DataError, match=r"points\[0, 1\] is nan"):
        read_cloud(write_pcd(tmp_path / "b.pcd", "binary", [(1.0, nan, 1.0, 0.0, 7)]))


@pytest.mark.parametrize("kind", ["ascii", "binary", "binary_compressed"])
@pytest.mark.parametrize("cut", [1, 30, 200])
def test_files_that_are_cut_short_are_refused(tmp_path: Path, kind: str, cut: int) -> None:
    path = tmp_path / "a.pcd"
    points = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    encoding = {"ascii": Encoding.ASCII, "binary": Encoding.BINARY, "binary_compressed": Encoding.BINARY_COMPRESSED}
    PointCloud.from_xyzi_points(points).save(path, encoding=encoding[kind])
    path.write_bytes(path.read_bytes()[:-cut])
    if kind == "ascii" and cut == 1:
        assert len(read_pcd(path).named["x"]) == 60
        return
    with pytest.raises(DataError, match=r"a\.pcd: (promises 60 points|does not read as PCD|.*60 points)"):
        read_pcd(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\4 a pickle",
        HEADER.format(n=10**12, kind="binary").encode(),
        HEADER.format(n=10**9, kind="binary_compressed").encode() + b"\0" * 64,
        HEADER.format(n=-1, kind="ascii").encode(),
        HEADER.format(n=1, kind="ascii").replace("SIZE 4", "SIZE -4").encode() + b"1 2 3 4 5\n",
        HEADER.format(n=1, kind="ascii").encode() + b"a b c d e\n",
        HEADER.format(n=1, kind="strange").encode() + b"1 2 3 4 5\n",
        HEADER.format(n=1, kind="ascii").replace("FIELDS x", "FIELDS").encode() + b"1 2 3 4 5\n",
    ],
)
def test_what_is_no_pcd_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pcd").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.pcd: ") as caught:
        read_pcd(tmp_path / "a.pcd")
    assert "\n" not in str(caught.value)


# --- LAS and LAZ files: byte by byte by the specification, as laspy writes them, and what is damaged ---


NUM_POINTS = 300


def by_hand(points: list[tuple[int, int, int]], *, scale: float, offset: tuple[float, float, float]) -> bytes:
    """A LAS 1.2 file of point format 0, by the tables of the specification."""
    rows = b"".join(
        struct.pack("<iiiHBBbBH", *point, 100 + place, 0b00010001, 2 + place, 0, 0, 7)
        for place, point in enumerate(points)
    )
    header = struct.pack("<4sHHIHH8sBB32s32sHHH", b"LASF", 0, 0, 0, 0, 0, b"", 1, 2, b"", b"by hand", 1, 2026, 227)
    header += struct.pack("<IIBHI5I", 227, 0, 0, 20, len(points), len(points), 0, 0, 0, 0)
    header += struct.pack("<12d", *[scale] * 3, *offset, *[0.0] * 6)
    assert (len(header), len(rows)) == (227, 20 * len(points))
    return header + rows


def write_las(path: Path, *, version: str = "1.4", point_format: int = 7) -> laspy.LasData:
    random = np.random.default_rng(0)
    cloud = laspy.LasData(laspy.LasHeader(version=version, point_format=point_format))
    cloud.header.scales, cloud.header.offsets = np.full(3, 1e-3), np.array([4e5, 5e6, 0.0])
    cloud.add_extra_dim(laspy.ExtraBytesParams("height", "f4"))
    cloud.x, cloud.y, cloud.z = (random.uniform(low, low + 40, NUM_POINTS) for low in (4e5, 5e6, 10))
    cloud.intensity = random.integers(0, 65536, NUM_POINTS)
    cloud.classification = random.integers(0, 18, NUM_POINTS)
    cloud.red = random.integers(0, 65536, NUM_POINTS)
    cloud.height = random.normal(size=NUM_POINTS)
    cloud.write(path)
    return cloud


def test_a_file_written_by_hand(tmp_path: Path) -> None:
    (tmp_path / "a.las").write_bytes(by_hand([(100, -200, 300), (1, 2, 3)], scale=0.5, offset=(10, 20, 30)))
    found = read_cloud(tmp_path / "a.las")
    assert found.points.tolist() == [[60, -80, 180], [10.5, 21, 31.5]]
    assert found.channels["intensity"].tolist() == [100, 101]
    assert found.channels["classification"].tolist() == [2, 3]
    assert found.channels["return_number"].tolist() == [1, 1]
    assert found.channels["number_of_returns"].tolist() == [2, 2]
    assert found.channels["point_source_id"].tolist() == [7, 7]
    assert not has_normals(tmp_path / "a.las")


@pytest.mark.parametrize("name", ["a.las", "a.laz", "A.LAZ"])
@pytest.mark.parametrize(("version", "point_format"), [("1.4", 7), ("1.2", 3)])
def test_every_dimension_is_read_compressed_or_not(tmp_path: Path, name: str, version: str, point_format: int) -> None:
    written = write_las(tmp_path / name, version=version, point_format=point_format)
    found = read_las(tmp_path / name)
    for axis in "xyz":
        np.testing.assert_array_equal(found[axis], np.asarray(getattr(written, axis)))
    for dimension in ("intensity", "classification", "red", "height"):
        np.testing.assert_array_equal(found[dimension], np.asarray(written[dimension]).astype(np.float64))
    assert not {"X", "Y", "Z"} & found.keys()


@pytest.mark.parametrize("name", ["a.las", "a.laz"])
def test_what_is_cut_or_promises_more_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_las(path)
    whole = path.read_bytes()
    for end in (0, 3, 100, 300, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        if name == "a.laz" and end == len(whole) - 1:
            continue  # the last byte is of a table of chunks that reading from the front does not need
        with pytest.raises(DataError, match=r"a\.la[sz]: "):
            read_cloud(path)
    path.write_bytes(whole[:247] + struct.pack("<Q", 10**15) + whole[255:])
    with pytest.raises(DataError, match=r"promises 1000000000000000 points|would become 40000000000000000 in memory"):
        read_cloud(path)
    path.write_bytes(b"LASX" + whole[4:])
    with pytest.raises(DataError, match="does not begin with the header of a LAS file"):
        read_cloud(path)


def test_no_changed_byte_ends_in_anything_but_a_cloud_or_an_error(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name in ("a.las", "a.laz"):
        path = tmp_path / name
        write_las(path)
        whole = path.read_bytes()
        for place in random.integers(0, 400, size=150):
            changed = bytearray(whole)
            changed[place] ^= int(random.integers(1, 256))
            path.write_bytes(changed)
            with contextlib.suppress(DataError):
                read_cloud(path)


def test_without_the_reader_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_las(tmp_path / "a.laz")
    monkeypatch.setattr(laspy.LazBackend, "detect_available", lambda: ())
    with pytest.raises(MissingExtraError, match=r"pip install 'sightline\[las\]'"):
        read_las(tmp_path / "a.laz")
    monkeypatch.setitem(sys.modules, "laspy", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'sightline\[las\]'"):
        read_las(tmp_path / "a.laz")


def test_it_is_viewed_by_its_classes(tmp_path: Path) -> None:
    write_las(tmp_path / "a.laz")
    done = run_here("view", tmp_path / "a.laz", "--out", tmp_path / "seen")
    assert done.code == 0, done.err
    assert any("classification" in path.name for path in (tmp_path / "seen").iterdir())


# --- OFF files: the slips of the public collections read as they are meant; every damage is named with its line ---


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
