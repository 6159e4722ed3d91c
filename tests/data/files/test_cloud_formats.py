"""Clouds in PCD, LAS and LAZ files: byte by byte as the formats say, and as their libraries write them."""

from __future__ import annotations

import base64
import struct
import sys
import zlib
from pathlib import Path

import laspy
import numpy as np
import pytest
from pypcd4 import Encoding, PointCloud

from sightline.contract.errors import MissingExtraError
from sightline.store.files.cloud_files import read_cloud
from sightline.store.files.las_files import read_las
from tests.cases import run_each
from tests.command import succeed
from tests.data.files.refusals import refused

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


@run_each("kind", ["ascii", "binary"])
def test_files_written_by_hand(tmp_path: Path, kind: str) -> None:
    cloud = read_cloud(write_pcd(tmp_path / "a.pcd", kind, ROWS))
    assert cloud.points.tolist() == [list(row[:3]) for row in ROWS]
    found = {name: values.tolist() for name, values in cloud.channels.items()}
    assert found == {"intensity": [17, 255], "ring": [3, 15]}


def test_compressed_files(tmp_path: Path) -> None:
    points = np.random.default_rng(0).normal(size=(500, 4)).astype(np.float32)
    PointCloud.from_xyzi_points(points).save(tmp_path / "a.pcd", encoding=Encoding.BINARY_COMPRESSED)
    cloud = read_cloud(tmp_path / "a.pcd")
    assert np.array_equal(np.column_stack([cloud.points, cloud.channels["intensity"]]), points)


def test_points_without_a_return_are_left_out(tmp_path: Path) -> None:
    nan = float("nan")
    found = read_cloud(write_pcd(tmp_path / "a.pcd", "binary", [ROWS[0], (nan, nan, nan, 0.0, 7), ROWS[1]]))
    assert found.channels["ring"].tolist() == [3, 15]
    refused(write_pcd(tmp_path / "b.pcd", "binary", [(1.0, nan, 1.0, 0.0, 7)]), r"points\[0, 1\] is nan")


# --- LAS and LAZ ------------------------------------------------------------------------------------------------------


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


def test_a_las_file_written_by_hand(tmp_path: Path) -> None:
    (tmp_path / "a.las").write_bytes(by_hand([(100, -200, 300), (1, 2, 3)], scale=0.5, offset=(10, 20, 30)))
    found = read_cloud(tmp_path / "a.las")
    assert found.points.tolist() == [[60, -80, 180], [10.5, 21, 31.5]]
    assert found.channels["intensity"].tolist() == [100, 101]
    assert found.channels["classification"].tolist() == [2, 3]
    assert found.channels["return_number"].tolist() == [1, 1]
    assert found.channels["number_of_returns"].tolist() == [2, 2]
    assert found.channels["point_source_id"].tolist() == [7, 7]


@run_each("name", ["a.las", "a.laz", "A.LAZ"])
@run_each("version, point_format", [("1.4", 7), ("1.2", 3)])
def test_every_dimension_is_read_compressed_or_not(tmp_path: Path, name: str, version: str, point_format: int) -> None:
    written = write_las(tmp_path / name, version=version, point_format=point_format)
    found = read_las(tmp_path / name).columns
    for axis in "xyz":
        np.testing.assert_array_equal(found[axis], np.asarray(getattr(written, axis)))
    for dimension in ("intensity", "classification", "red", "height"):
        np.testing.assert_array_equal(found[dimension], np.asarray(written[dimension]).astype(np.float64))
    assert not {"X", "Y", "Z"} & found.keys()


@run_each("name", ["a.las", "a.laz"])
def test_what_is_cut_or_promises_more_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_las(path)
    whole = path.read_bytes()
    for end in (0, 3, 100, 300, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        if name == "a.laz" and end == len(whole) - 1:
            continue  # the last byte is of a table of chunks that reading from the front does not need
        refused(path)
    path.write_bytes(whole[:247] + struct.pack("<Q", 10**15) + whole[255:])
    refused(path, "promises 1000000000000000 points|would become 40000000000000000 in memory")
    path.write_bytes(b"LASX" + whole[4:])
    refused(path, "does not begin with the header of a LAS file")


def test_without_the_reader_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_las(tmp_path / "a.laz")
    monkeypatch.setattr(laspy.LazBackend, "detect_available", lambda: ())
    with pytest.raises(MissingExtraError, match=r"pip install 'sightline\[las\]'"):
        read_las(tmp_path / "a.laz")
    monkeypatch.setitem(sys.modules, "laspy", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'sightline\[las\]'"):
        read_las(tmp_path / "a.laz")


def test_a_laz_file_is_viewed_by_its_classes(tmp_path: Path) -> None:
    write_las(tmp_path / "a.laz")
    succeed("view", tmp_path / "a.laz", "--out", tmp_path / "seen")
    assert "classification" in (tmp_path / "seen" / "view.html").read_text()


POINTWISE = (
    "eNrzcQx2Y8ACGJn8Qzxcgxhwg5zE4oJKBSM9cz0DrPJejK/YHzM4MgLNAvIaRBi4cBhULbLO/WFViz06jcviWTNBgNUBxk9PAwE2B4j4TntjMGCH8k/"
    "ag51alVmgkJqXnJ+SmsLAsCdMgyGjpKTASl8fIqWXX5SOHgBAzMSE4P9HA4wMbAwiDBAFIJ+JIGveHrKeUWjBt3sLahRS7GRyHHk0mDfe3GF6zIaZ97"
    "pLdbKJcC2SLabFQAIAkuBQXA=="
)
"""A LAZ file of LASzip 1, compressed point by point without a table of chunks, at which laz-rs 0.12 panics."""


def test_a_laz_file_without_chunks_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.laz").write_bytes(zlib.decompress(base64.b64decode(POINTWISE)))
    refused(tmp_path / "p.laz", "is compressed point by point, .*LAStools or PDAL$")
    assert capfd.readouterr() == ("", "")


@run_each("at, value", [(12, 1), (12, 0), (12, 2**31), (None, 2**30), (None, 0)])
def test_laz_chunks_that_do_not_hold_the_points_are_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], at: int | None, value: int
) -> None:
    """Points of a chunk, in the record of LASzip, or the number of chunks: at one point a chunk laz-rs 0.12 panics."""
    path = tmp_path / "a.laz"
    write_las(path, version="1.2", point_format=3)
    content = bytearray(path.read_bytes())
    (start,) = struct.unpack_from("<I", content, 96)
    (table,) = struct.unpack_from("<q", content, start)
    struct.pack_into("<I", content, table + 4 if at is None else content.index(b"laszip encoded") + 52 + at, value)
    path.write_bytes(content)
    refused(path, "copy or download it again|another format")
    assert capfd.readouterr() == ("", "")
