"""Photographs and depth images: the pixels that were written, and at which byte a file is refused."""

from __future__ import annotations

import struct
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from sightline.areas.pose.depth_files import read_colour_png, read_depth, read_windowed_depth
from sightline.areas.pose.sets.packed_depth import pack_depth, unpack_depth
from sightline.ops.views.pinhole import unproject_pixels
from sightline.store.files.image_files import check_image, read_header, read_image
from tests.cases import run_each
from tests.data.depth.depth_trees import msra_bytes, png16, png_colour
from tests.data.files.refusals import refused
from tests.golden_parity import load_golden

STORED = [[1, 2, 3], [4, 5, 6]]
UPRIGHT = {
    1: [[1, 2, 3], [4, 5, 6]],
    2: [[3, 2, 1], [6, 5, 4]],
    3: [[6, 5, 4], [3, 2, 1]],
    4: [[4, 5, 6], [1, 2, 3]],
    5: [[1, 4], [2, 5], [3, 6]],
    6: [[4, 1], [5, 2], [6, 3]],
    7: [[6, 3], [5, 2], [4, 1]],
    8: [[3, 6], [2, 5], [1, 4]],
}
"""By Exif's words: in 6 the first row stored is the right side, and the first column the top."""


@run_each("orientation", UPRIGHT)
def test_orientations_are_those_of_exif(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(np.array(STORED, dtype=np.uint8)).save(tmp_path / "a.png", exif=exif)
    header = read_header(tmp_path / "a.png")
    assert header == (2, 3, "L", orientation)
    found = read_image(tmp_path / "a.png", orientation=orientation)
    assert found[..., 0].tolist() == UPRIGHT[orientation]
    assert found.shape[:2] == header.size_px(upright=True)
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(found[..., 0], np.asarray(ImageOps.exif_transpose(image)))
    assert read_image(tmp_path / "a.png")[..., 0].tolist() == STORED


@run_each("suffix", ["jpg", "png", "bmp", "tif", "webp"])
@run_each("mode", ["RGB", "L", "RGBA", "P"])
def test_pixels_are_those_of_pillow(tmp_path: Path, suffix: str, mode: str) -> None:
    """Of every kind and orientation, in rows of more bytes than are packed at a time, too."""
    if (suffix, mode) in (("jpg", "RGBA"), ("jpg", "P")):
        return
    path, draw = tmp_path / f"a.{suffix}", np.random.default_rng(0)
    for height, width in ((37, 53), (3, 1), (4, 2**18 // 3) if suffix in ("png", "bmp") else (5, 6)):
        pixels = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(path)
        with Image.open(path) as image:
            for orientation in UPRIGHT:
                image.getexif()[274] = orientation
                expected = np.asarray(ImageOps.exif_transpose(image).convert("RGBA").convert("RGB"))
                found = read_image(path, orientation=orientation)
                assert np.array_equal(found, expected)
                assert found.flags.c_contiguous
                assert found.flags.writeable


@run_each("suffix", ["jpg", "png", "tif", "webp"])
def test_a_photo_exists_once_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    """Pillow takes no image of its size for itself, so that 4 bytes a pixel are the most that it needs."""
    pixels = np.random.default_rng(0).integers(0, 256, (96, 160, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}", **({} if suffix == "tif" else {"quality": 90}))
    sizes, make = list[tuple[int, int]](), Image.core.new
    monkeypatch.setattr(Image.core, "new", lambda mode, size: (sizes.append(size), make(mode, size))[1])
    found = read_image(tmp_path / f"a.{suffix}")
    assert (160, 96) not in sizes
    assert found.base is not None
    assert found.base.nbytes == 3 * 160 * 96


@run_each("suffix", ["jpg", "png", "bmp", "tif", "webp"])
def test_files_that_are_cut_short_are_found_and_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    check_image(path)
    content = path.read_bytes()
    for share in (0.0, 0.01, 0.5, 0.9):
        path.write_bytes(content[: int(share * len(content))])
        for read in (check_image, read_image):
            refused(path, "cannot be decoded", read=read)


def test_what_has_no_colours_to_show_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((2, 3), dtype=np.float32)).save(tmp_path / "a.tif")
    Image.fromarray(np.full((2, 3), 2**20, dtype=np.int32)).save(tmp_path / "b.tif")
    refused(tmp_path / "a.tif", "pixels of the kind F", read=read_image)
    refused(tmp_path / "b.tif", "its values run from 1048576 to 1048576, beyond 16 bits", read=read_image)
    Image.fromarray(np.full((2, 3), 255, dtype=np.uint16)).save(tmp_path / "c.png")
    black = r"its values run to 255 of 65535, and their upper 8 bits, which are used, are 0; save it with 8 bits"
    refused(tmp_path / "c.png", black, read=read_image)
    for name in ("a.tif", "b.tif", "c.png"):
        refused(tmp_path / name, ";", read=check_image)


def make_png(
    width: int, height: int, rows: bytes, *, depth: int = 8, kind: int = 2, is_interlaced: bool = False
) -> bytes:
    """Make a PNG in two pieces of these rows, of a form that Pillow may not write."""
    stream = zlib.compress(rows)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, is_interlaced)),
        *((b"IDAT", piece) for piece in (stream[:5], stream[5:])),
        (b"IEND", b""),
    ]
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in chunks:
        content += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return content


SIDES = 9, 13
PASSES = [
    range(0, 13, 8),
    range(0, 13, 8),
    range(4, 13, 8),
    range(0, 13, 4),
    range(2, 13, 4),
    range(0, 13, 2),
    range(1, 13, 2),
]
"""Rows of each pass of an interlaced image of 13 rows: of Adam7, as the standard draws it."""
COLUMNS = [range(0, 9, 8), range(4, 9, 8), range(0, 9, 4), range(2, 9, 4), range(0, 9, 2), range(1, 9, 2), range(9)]
FORMS = {
    "RGB": (8, 2, 24),
    "RGBA": (8, 6, 32),
    "16 bits": (16, 0, 16),
    "two colours": (1, 0, 1),
    "grey, alpha": (8, 4, 16),
}


@run_each("form", FORMS)
@run_each("is_interlaced", [False, True])
def test_rows_that_a_whole_stream_lacks_are_found(tmp_path: Path, form: str, is_interlaced: bool) -> None:
    """Pillow makes them black; a picture whose last rows are black, or transparent, is whole."""
    depth, kind, bits = FORMS[form]
    parts = zip(PASSES, COLUMNS, strict=True) if is_interlaced else [(range(13), range(9))]
    rows = [b"\0" + bytes(-(-len(columns) * bits // 8)) for part, columns in parts for _ in part]
    path, words = tmp_path / "a.png", {"depth": depth, "kind": kind, "is_interlaced": is_interlaced}
    for count in range(len(rows) // 2, len(rows) + 1):
        written(path, make_png(*SIDES, b"".join(rows[:count]), **words))
        for read in (check_image, read_image, *([read_depth] if form == "16 bits" else [])):
            if count == len(rows):
                read(path)
            else:
                refused(path, r"a\.png: its pixels end after \d+ of \d+ bytes; the file is damaged", read=read)


def test_a_check_returns_the_highest_value_of_16_bits(tmp_path: Path) -> None:
    rgb = make_png(3, 2, 2 * (b"\0" + 9 * b"\x0f\xff"), depth=16)
    assert check_image(written(tmp_path / "a.png", rgb)).deep_max == 15
    assert check_image(written(tmp_path / "b.png", png16(DEPTH))).deep_max == 255
    assert check_image(written(tmp_path / "c.png", png16(0 * DEPTH))).deep_max == 0
    assert check_image(written(tmp_path / "d.png", png_colour(DEPTH))).deep_max is None


# --- depth images -----------------------------------------------------------------------------------------------------


DEPTH = np.array([[0, 300, 301], [65535, 0, 256]])


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_one_image_in_every_form(tmp_path: Path) -> None:
    files = [
        written(tmp_path / "a.png", png16(DEPTH)),
        written(tmp_path / "c.bin", msra_bytes(DEPTH, 0, 0, size=(3, 2))),
    ]
    np.save(tmp_path / "d.npy", DEPTH.astype(np.int32))
    with_nan = np.where(DEPTH == 0, np.nan, DEPTH / 1000)
    np.save(tmp_path / "e.npy", with_nan)
    for path in (*files, tmp_path / "d.npy"):
        found = read_depth(path, size_px=(3, 2))
        assert found.dtype == np.float32
        assert np.array_equal(found, DEPTH), path
    assert np.allclose(read_depth(tmp_path / "e.npy", mm_per_unit=1000), DEPTH)
    assert np.array_equal(read_depth(files[1]), DEPTH)
    assert np.array_equal(read_colour_png(written(tmp_path / "f.png", png_colour(DEPTH))), DEPTH)


def test_a_window_of_msra_by_hand(tmp_path: Path) -> None:
    """Two columns and one row at column 318, row 239: the last two pixels of the last row."""
    path = written(tmp_path / "000000_depth.bin", msra_bytes(np.array([[410.5, 0.0]]), 318, 239))
    assert path.stat().st_size == 24 + 4 * 2
    depth = read_windowed_depth(path, size_px=(320, 240))
    assert depth.shape == (240, 320)
    assert depth[239, 318] == 410.5
    assert np.count_nonzero(depth) == 1


@pytest.mark.shared
@pytest.mark.parametrize("case", ["case0", "case1", "case2"])
def test_windows_as_the_pytorch_port_reads_them(shared: Path, tmp_path: Path, case: str) -> None:
    """Its pixels are one too large and depth 0 becomes 700: both are undone here, and the rest agrees."""
    golden = load_golden(shared, "fn_msra_depth", area="pose").arrays
    depth = read_windowed_depth(written(tmp_path / "a.bin", golden[f"{case}.bytes"].tobytes()), size_px=(320, 240))
    left, top, right, bottom = golden[f"{case}.window"]
    window = depth[top:bottom, left:right]
    expected = golden[f"{case}.depth_window"]
    assert np.array_equal(np.where(window == 0, np.float32(700), window), expected)
    assert np.count_nonzero(depth) == np.count_nonzero(window)
    rows, columns = np.mgrid[top:bottom, left:right]
    pixels = np.stack((columns, rows, expected.astype(float)), axis=-1)
    ours = unproject_pixels(pixels, np.array([241.42, -241.42, 160.0, 120.0]))
    theirs = unproject_pixels(pixels, np.array([241.42, -241.42, 159.0, 119.0]))
    assert np.abs(ours - golden[f"{case}.points_window_zero_based"]).max() < 1e-9 * 700
    assert np.abs(theirs - golden[f"{case}.points_window"]).max() < 1e-6 * 700  # which is stored as float32


@run_each("size", [(3, 2), None])
def test_files_of_msra_that_are_not_whole(tmp_path: Path, size: tuple[int, int] | None) -> None:
    whole = msra_bytes(DEPTH, 0, 0, size=(3, 2))
    cases = {
        whole[:20]: r"has 20 bytes, the header alone has 24",
        whole[:-1]: r"has 47 bytes, its window of 3 x 2 asks for 48",
        whole + b"\0\0\0\0": r"has 52 bytes, its window of 3 x 2 asks for 48",
        struct.pack("<6i", 3, 2, 1, 0, 4, 2) + whole[24:]: r"byte 8: the window from 1, 0 to 4, 2 is not within",
        struct.pack("<6i", -3, 2, 0, 0, 3, 2) + whole[24:]: r"byte 0: the image is -3 x 2",
        whole[:28] + struct.pack("<f", np.nan) + whole[32:]: r"the depth at byte 28 is nan",
        whole[:44] + struct.pack("<f", -5.0): r"the depth at byte 44 is -5.0",
    }
    for content, told in cases.items():
        refused(written(tmp_path / "a.bin", content), told, read=partial(read_windowed_depth, size_px=size))
    read = partial(read_windowed_depth, size_px=(320, 240))
    refused(written(tmp_path / "a.bin", whole), r"byte 0: the image is 3 x 2, 320 x 240 is needed", read=read)


def test_what_is_no_depth_image(tmp_path: Path) -> None:
    grey = Image.fromarray(np.zeros((2, 3), dtype=np.uint8))
    grey.save(tmp_path / "grey.png")
    np.save(tmp_path / "cube.npy", np.zeros((2, 3, 4)))
    np.save(tmp_path / "below.npy", np.array([[300.0, -1.0]]))
    np.save(tmp_path / "metres.npy", np.array([[0.3, 2.5]]))
    np.save(tmp_path / "endless.npy", np.array([[300.0, np.inf]]))
    sound = png16(DEPTH)
    cases = {
        written(tmp_path / "cut.png", sound[:-5]): r"does not end as PNG files do, at byte \d+",
        written(tmp_path / "more.png", sound + b"x"): "does not end as PNG files do",
        written(tmp_path / "torn.png", sound[:40] + bytes(8) + sound[48:]): "cannot be decoded",
        tmp_path / "grey.png": "has the mode L, one channel of 16 bits is needed",
        tmp_path / "cube.npy": r"holds float64 \(2, 3, 4\), numbers \(height, width\) are needed",
        tmp_path / "below.npy": r"the depth in row 0, column 1 is -1\.0",
        tmp_path / "endless.npy": r"the depth in row 0, column 1 is inf",
        tmp_path / "metres.npy": r"the farthest depth is 2\.5 mm.* set mm_per_unit to 1000",
        written(tmp_path / "raw.bin", DEPTH.astype("<f4").tobytes()[:20]): "the header alone has 24",
        written(tmp_path / "a.jpg", b""): r"is not a depth image of a known kind; convert it to one of \.png \(16",
    }
    for path, told in cases.items():
        refused(path, told, read=read_depth)


@run_each("dtype", ["uint16", "float16", "float32"])
def test_packing_loses_nothing(dtype: str) -> None:
    generator = np.random.default_rng(0)
    images = [
        generator.integers(0, 60000, (7, 9)).astype(dtype),
        np.zeros((7, 9), dtype=dtype),
        np.pad(np.full((1, 1), 65504, dtype=dtype), ((6, 0), (8, 0))),
        np.where(generator.random((7, 9)) > 0.7, generator.normal(400, 3, (7, 9)), 0).astype(dtype),
    ]
    for image in images:
        packed = pack_depth(image)
        assert packed.dtype.name == "uint8"
        assert packed.ndim == 1
        assert len(packed) > 0
        found = unpack_depth(packed, dtype=dtype, width_px=9, height_px=7)
        assert found.dtype == image.dtype
        assert np.array_equal(found, image)


def test_a_kind_that_is_not_read_is_named_with_the_way_out(tmp_path: Path) -> None:
    """Given by its path it is opened, whatever it is called: Pillow reads JPEG 2000 and PPM."""
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic")
    refused(tmp_path / "a.heic", "is of a kind that is not read: save them as JPEG or PNG", read=read_image)
    Image.new("RGB", (3, 2), (1, 2, 3)).save(tmp_path / "a.ppm")
    assert read_image(tmp_path / "a.ppm").shape == (2, 3, 3)
