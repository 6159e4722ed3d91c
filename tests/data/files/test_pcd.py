"""PCD files: text and binary byte by byte, compressed as the library writes it, returns that are none, damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pypcd4 import Encoding, PointCloud

from sightline.data.files.cloud_files import read_cloud
from sightline.data.files.cloud_formats import read_pcd
from sightline.errors import DataError

HEADER = (
    "# .PCD v0.7 - Point Cloud Data file format\nVERSION 0.7\nFIELDS x y z Intensity ring\nSIZE 4 4 4 4 2\n"
    "TYPE F F F F U\nCOUNT 1 1 1 1 1\nWIDTH {n}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {n}\nDATA {kind}\n"
)
ROWS = [(1.5, -2.0, 0.25, 17.0, 3), (0.5, 8.0, -1.0, 255.0, 15)]


def write(path: Path, kind: str, rows: list[tuple[float, ...]]) -> Path:
    if kind == "ascii":
        body = "".join(" ".join(map(str, row)) + "\n" for row in rows).encode()
    else:
        body = b"".join(np.array(row[:4], "<f4").tobytes() + np.array(row[4], "<u2").tobytes() for row in rows)
    path.write_bytes(HEADER.format(n=len(rows), kind=kind).encode() + body)
    return path


@pytest.mark.parametrize("kind", ["ascii", "binary"])
def test_files_written_by_hand(tmp_path: Path, kind: str) -> None:
    found = read_pcd(write(tmp_path / "a.pcd", kind, ROWS))
    assert {name: values.tolist() for name, values in found.items()} == {
        name: [row[place] for row in ROWS] for place, name in enumerate(("x", "y", "z", "intensity", "ring"))
    }
    cloud = read_cloud(tmp_path / "a.pcd")
    assert cloud.points.tolist() == [list(row[:3]) for row in ROWS]
    assert sorted(cloud.channels) == ["intensity", "ring"]


def test_compressed_files(tmp_path: Path) -> None:
    points = np.random.default_rng(0).normal(size=(500, 4)).astype(np.float32)
    PointCloud.from_xyzi_points(points).save(tmp_path / "a.pcd", encoding=Encoding.BINARY_COMPRESSED)
    found = read_pcd(tmp_path / "a.pcd")
    assert np.array_equal(np.stack([found[name] for name in ("x", "y", "z", "intensity")], axis=1), points)


def test_points_without_a_return_are_left_out(tmp_path: Path) -> None:
    nan = float("nan")
    found = read_pcd(write(tmp_path / "a.pcd", "binary", [ROWS[0], (nan, nan, nan, 0.0, 7), ROWS[1]]))
    assert found["ring"].tolist() == [3, 15]
    with pytest.raises(DataError, match=r"points\[0, 1\] is nan"):
        read_cloud(write(tmp_path / "b.pcd", "binary", [(1.0, nan, 1.0, 0.0, 7)]))


@pytest.mark.parametrize("kind", ["ascii", "binary", "binary_compressed"])
@pytest.mark.parametrize("cut", [1, 30, 200])
def test_files_that_are_cut_short_are_refused(tmp_path: Path, kind: str, cut: int) -> None:
    path = tmp_path / "a.pcd"
    points = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    encoding = {"ascii": Encoding.ASCII, "binary": Encoding.BINARY, "binary_compressed": Encoding.BINARY_COMPRESSED}
    PointCloud.from_xyzi_points(points).save(path, encoding=encoding[kind])
    path.write_bytes(path.read_bytes()[:-cut])
    if kind == "ascii" and cut == 1:
        assert len(read_pcd(path)["x"]) == 60
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
