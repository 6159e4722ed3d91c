"""Files of a few bytes that promise far more, each refused in a line before the memory is asked for."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.data.files.array_files import read_mat
from sightline.data.files.cloud_files import read_cloud
from sightline.data.files.depth_files import read_depth, read_windowed_depth
from sightline.data.files.image_files import read_image, read_view
from sightline.errors import DataError

PCD = "VERSION .7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH 2\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\n"


def window(path: Path) -> object:
    path.write_bytes(struct.pack("<6i", 16_384, 16_384, 0, 0, 0, 0))
    return read_windowed_depth(path)


def png(path: Path, width: int, height: int, bits: int, colour: int) -> Path:
    """A PNG file of one colour, its pixels a thousandth of what they become."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    pixels = zlib.compress(b"", 9)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(map(chunk, (b"IHDR", b"IDAT", b"IEND"), (header, pixels, b""))))
    return path


def pcd_beyond_ten_lines(path: Path) -> object:
    path = path.with_suffix(".pcd")
    path.write_bytes((PCD + "POINTS 2\nCOUNT 1 1 1\nDATA binary\n").encode() + bytes(24))
    return read_cloud(path)


def pcd_compressed(path: Path) -> object:
    path = path.with_suffix(".pcd")
    packed = struct.pack("<II", 4, 2**30) + bytes(4)
    path.write_bytes((PCD + "POINTS 2\nDATA binary_compressed\n").encode() + packed)
    return read_cloud(path)


def pcd_of_an_unknown_kind(path: Path) -> object:
    path = path.with_suffix(".pcd")
    path.write_bytes((PCD + "POINTS 2\nDATA !inary\n").encode() + struct.pack("<II", 2**30, 2**30) + bytes(24))
    return read_cloud(path)


def mat(path: Path, place: int, word: int, *, compressed: bool = False) -> object:
    """Sound but for one word, in the variable that a sound file has at byte 128."""
    from scipy.io import savemat

    savemat(path, {"points": np.ones((4, 3))})
    content = bytearray(path.read_bytes())
    content[place : place + 4] = word.to_bytes(4, "little")
    if compressed:
        packed = zlib.compress(bytes(content[128:]))
        content[128:] = struct.pack("<II", 15, len(packed)) + packed
    path.write_bytes(content)
    return read_mat(path, "points")


@pytest.mark.parametrize(
    "read",
    [
        window,
        lambda path: read_depth(png(path.with_suffix(".png"), 11_000, 11_000, 16, 0)),
        lambda path: read_image(png(path.with_suffix(".png"), 12_000, 12_000, 8, 2)),
        pcd_beyond_ten_lines,
        pcd_compressed,
        pcd_of_an_unknown_kind,
        lambda path: mat(path, 132, 2**31 - 1),
        lambda path: mat(path, 160, 2**30),
        lambda path: mat(path, 144, 1),
        lambda path: mat(path, 188, 2**30),
        lambda path: mat(path, 160, 2**30, compressed=True),
    ],
)
def test_refused_before_memory_is_asked_for(read: Callable[[Path], object], tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(DataError) as caught:
            read(tmp_path / "small")
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()
    assert str(tmp_path / "small") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_more_is_asked_for_than_a_file_has(tmp_path: Path) -> None:
    """Pillow reads what a chunk of pixels states beyond those that it needs."""
    path = tmp_path / "small.png"
    Image.new("RGB", (9, 9)).save(path)
    content = path.read_bytes()
    place = content.index(b"IDAT") - 4
    path.write_bytes(content[:place] + (2**31 - 1).to_bytes(4, "big") + content[place + 4 :])
    tracemalloc.start()
    try:
        assert read_image(path).shape == (9, 9, 3)
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()


def test_numbers_of_no_type_do_not_end_the_process(tmp_path: Path) -> None:
    """SciPy takes the type of no numbers at all for a place in a table."""
    from scipy.io import savemat

    savemat(tmp_path / "small", {"points": np.ones((0, 3))}, appendmat=False)
    content = bytearray((tmp_path / "small").read_bytes())
    content[-8:-4] = bytes(4)
    (tmp_path / "small").write_bytes(content)
    with pytest.raises(DataError, match="0 numbers of type 0 in 0 bytes"):
        read_mat(tmp_path / "small", "points")


@pytest.mark.parametrize("length", range(0, 33, 4))
def test_a_view_cut_in_its_header_is_one_line(tmp_path: Path, length: int) -> None:
    path = tmp_path / "view.png"
    Image.new("RGBA", (8, 8)).save(path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DataError, match=r"view\.png \(is "):
        read_view(path, size_px=8, background="white")


@pytest.mark.parametrize("is_compressed", [False, True])
def test_a_sound_file_of_matlab_is_read(tmp_path: Path, is_compressed: bool) -> None:
    from scipy.io import savemat

    cells = np.empty((1, 2), dtype=object)
    cells[0, 0], cells[0, 1] = {"name": "a", "box": np.eye(2)}, np.arange(3) + 1j
    savemat(tmp_path / "a.mat", {"x": cells, "y": np.arange(6.0).reshape(2, 3)}, do_compression=is_compressed)
    assert read_mat(tmp_path / "a.mat", "y").tolist() == [[0, 1, 2], [3, 4, 5]]
    assert read_mat(tmp_path / "a.mat", "x", kinds="O")[0, 0]["name"][0, 0][0] == "a"
