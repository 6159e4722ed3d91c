"""LAS and LAZ files: byte by byte by the specification, as laspy writes them, and what is damaged."""

from __future__ import annotations

import contextlib
import struct
import sys
from pathlib import Path

import laspy
import numpy as np
import pytest

from sightline.data.files.cloud_files import has_normals, read_cloud
from sightline.data.files.cloud_formats import read_las
from sightline.errors import DataError, MissingExtraError
from tests.command import run_here

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


def write(path: Path, *, version: str = "1.4", point_format: int = 7) -> laspy.LasData:
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
    written = write(tmp_path / name, version=version, point_format=point_format)
    found = read_las(tmp_path / name)
    for axis in "xyz":
        np.testing.assert_array_equal(found[axis], np.asarray(getattr(written, axis)))
    for dimension in ("intensity", "classification", "red", "height"):
        np.testing.assert_array_equal(found[dimension], np.asarray(written[dimension]).astype(np.float64))
    assert not {"X", "Y", "Z"} & found.keys()


@pytest.mark.parametrize("name", ["a.las", "a.laz"])
def test_what_is_cut_or_promises_more_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write(path)
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
        write(path)
        whole = path.read_bytes()
        for place in random.integers(0, 400, size=150):
            changed = bytearray(whole)
            changed[place] ^= int(random.integers(1, 256))
            path.write_bytes(changed)
            with contextlib.suppress(DataError):
                read_cloud(path)


def test_without_the_reader_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.laz")
    monkeypatch.setattr(laspy.LazBackend, "detect_available", lambda: ())
    with pytest.raises(MissingExtraError, match=r"pip install 'laspy\[lazrs\]'"):
        read_las(tmp_path / "a.laz")
    monkeypatch.setitem(sys.modules, "laspy", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'laspy\[lazrs\]'"):
        read_las(tmp_path / "a.laz")


def test_it_is_viewed_by_its_classes(tmp_path: Path) -> None:
    write(tmp_path / "a.laz")
    done = run_here("view", tmp_path / "a.laz", "--out", tmp_path / "seen")
    assert done.code == 0, done.err
    assert any("classification" in path.name for path in (tmp_path / "seen").iterdir())
