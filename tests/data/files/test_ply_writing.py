"""Coloured clouds in PLY files: read back bit for bit, laid out as the format says, whole or absent."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from sightline.data.files import ply
from sightline.data.files.ply import read_ply, write_ply


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
    write_ply(tmp_path / "a.ply", points=points, colors=colors, label=label)
    read = read_ply(tmp_path / "a.ply")
    assert list(read.vertex) == ["x", "y", "z", "red", "green", "blue", "label"]
    assert read.faces is None
    assert np.array_equal(np.stack([read.vertex[axis] for axis in "xyz"], axis=1), points)
    assert np.array_equal(np.stack([read.vertex[name] for name in ("red", "green", "blue")], axis=1), colors)
    assert np.array_equal(read.vertex["label"], label)


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
    head = head.replace(b"float", b"double")
    body = struct.pack("<3d3Bi", 1.5, -2.0, 0.25, 1, 2, 255, -3)
    assert (tmp_path / "double.ply").read_bytes() == head + b"property int label\nend_header\n" + body


def test_arrays_of_big_endian_machines_and_strided_ones_are_taken(tmp_path: Path) -> None:
    points, colors, label = cloud(6, np.float32)
    write_ply(tmp_path / "plain.ply", points=points, colors=colors, label=label)
    write_ply(
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
        write_ply(tmp_path / "a.ply", **{**given, **wrong})
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points, colors, label = cloud(5, np.float32)
    write_ply(tmp_path / "a.ply", points=points, colors=colors, label=label)
    older = (tmp_path / "a.ply").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sightline.data.files.atomic_write.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_ply(tmp_path / "a.ply", points=points + 1, colors=colors, label=label)
    assert [path.name for path in tmp_path.iterdir()] == ["a.ply"]
    assert (tmp_path / "a.ply").read_bytes() == older
