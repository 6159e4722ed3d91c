"""Depth images in files: 16-bit PNG, NPY, raw float32, and the windows of MSRA; in mm, 0 where nothing was measured."""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image

from sightline.data.files.array_files import check_decompressed_size, read_npy
from sightline.data.files.input_files import assert_regular, file_size, read_file
from sightline.data.files.png_views import DECODE_ERRORS, FREE_IMAGE_BYTES, PNG_END
from sightline.errors import DataError

__all__ = ["SizePx", "read_colour_png", "read_depth", "read_depth_png", "read_raw_depth", "read_windowed_depth"]

SizePx: TypeAlias = tuple[int, int]
"""Width and height of an image in pixels."""
_HEADER = struct.Struct("<6i")
"""Of MSRA's files: width and height of the image, then left, top, right and bottom, the last two excluded."""
_LARGEST_PX = 16_384
_NEAREST_MM = 20.0
"""No camera measures nearer: an image that ends below it is in metres."""


def read_depth(path: Path, *, size_px: SizePx | None = None, mm_per_unit: float = 1.0) -> np.ndarray:
    """The depth image (H, W) of a file of one's own, float32 in mm, 0 where nothing was measured.

    PNG files have one channel of 16 bits; NPY files numbers of any type (H, W), NaN where nothing was measured; BIN
    files either float32 row after row and nothing else, for which `size_px` (width, height) must be known, or MSRA's
    header and window. Raises DataError, one line, for other files, for images of another size than `size_px`, and
    where the numbers cannot be depths in mm.
    """
    assert_regular(path)
    suffix = path.suffix.lower()
    if suffix == ".png":
        found = read_depth_png(path)
    elif suffix == ".npy":
        found = _checked_npy(read_npy(path), path)
    elif suffix == ".bin":
        found = _read_bin(path, size_px)
    else:
        raise DataError(f"{path}: is not a depth image of a known kind; give .png (16 bits), .npy or .bin (float32)")
    _check_size(found, size_px, path)
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite
        depth = (found * np.float64(mm_per_unit)).astype(np.float32)
    if np.isinf(depth).any():
        raise DataError(f"{path}: the farthest depth is {found.max():.4g}, which cannot be in mm; get the file again")
    if 0 < depth.max(initial=0) < _NEAREST_MM:
        raise DataError(
            f"{path}: the farthest depth is {depth.max():.4g} mm, nearer than any camera measures; if the file is in "
            "metres, set mm_per_unit to 1000"
        )
    return depth


def read_depth_png(path: Path, *, size_px: SizePx | None = None) -> np.ndarray:
    """The numbers (H, W) uint16 of a PNG file with one channel of 16 bits. Raises DataError for any other file."""
    mode, pixels = _decoded(path)
    if mode not in ("I;16", "I"):
        raise DataError(f"{path}: has the mode {mode}, one channel of 16 bits is needed, which holds depths in mm")
    _check_size(pixels, size_px, path)
    return pixels.astype(np.uint16)


def read_colour_png(path: Path, *, size_px: SizePx | None = None) -> np.ndarray:
    """The depths (H, W) uint16 of a PNG file whose green and blue channels hold their higher and lower eight bits.

    Source: the reader that comes with the NYU hand data.
    """
    mode, pixels = _decoded(path)
    if mode != "RGB":
        raise DataError(f"{path}: has the mode {mode}, RGB is needed, whose green and blue hold the depth")
    _check_size(pixels, size_px, path)
    depth: np.ndarray = pixels[..., 1].astype(np.uint16) * 256 + pixels[..., 2]
    return depth


def read_raw_depth(path: Path, *, size_px: SizePx) -> np.ndarray:
    """The depths (H, W) float32 of a file of little-endian float32, row after row, without a header."""
    content = read_file(path)
    width, height = size_px
    if len(content) != 4 * width * height:
        raise DataError(
            f"{path}: has {len(content)} bytes, an image of {width} x {height} float32 has {4 * width * height}; get "
            "the file again, or give the size of its image"
        )
    return _checked(np.frombuffer(content, "<f4"), path, start=0).reshape(height, width)


def read_windowed_depth(path: Path, *, size_px: SizePx | None = None) -> np.ndarray:
    """The depths (H, W) float32 of a file of MSRA: a header, and a window that is put at its place, the rest 0.

    The window's left column and top row are those of the header, counted from 0. Raises DataError with the byte at
    which the header, or a depth, is wrong, and with the size that the header asks for.
    """
    content = read_file(path)
    if len(content) < _HEADER.size:
        raise DataError(f"{path}: has {len(content)} bytes, the header alone has {_HEADER.size}; get the file again")
    width, height, left, top, right, bottom = _HEADER.unpack_from(content)
    if size_px not in (None, (width, height)) or not (0 < width <= _LARGEST_PX and 0 < height <= _LARGEST_PX):
        wanted = "{} x {}".format(*size_px) if size_px else f"at most {_LARGEST_PX} a side"
        raise DataError(f"{path}: byte 0: the image is {width} x {height}, {wanted} is needed; get the file again")
    if not (0 <= left <= right <= width and 0 <= top <= bottom <= height):
        raise DataError(
            f"{path}: byte 8: the window from {left}, {top} to {right}, {bottom} does not lie in the image of {width} "
            f"x {height}; get the file again"
        )
    expected = _HEADER.size + 4 * (right - left) * (bottom - top)
    if len(content) != expected:
        raise DataError(
            f"{path}: has {len(content)} bytes, its window of {right - left} x {bottom - top} asks for {expected}; get "
            "the file again"
        )
    check_decompressed_size(str(path), 4 * width * height, len(content))
    depth = np.zeros((height, width), dtype=np.float32)
    window = _checked(np.frombuffer(content, "<f4", offset=_HEADER.size), path, start=_HEADER.size)
    depth[top:bottom, left:right] = window.reshape(bottom - top, right - left)
    return depth


def _read_bin(path: Path, size_px: SizePx | None) -> np.ndarray:
    num_bytes = file_size(path)
    if size_px is not None and num_bytes == 4 * size_px[0] * size_px[1]:
        return read_raw_depth(path, size_px=size_px)
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
    if len(header) == _HEADER.size:
        width, height, left, top, right, bottom = _HEADER.unpack(header)
        if 0 <= left <= right <= width <= _LARGEST_PX and 0 <= top <= bottom <= height <= _LARGEST_PX:
            return read_windowed_depth(path, size_px=size_px)
    if size_px is None:
        raise DataError(
            f"{path}: has no header, so its {num_bytes} bytes may be an image of any shape; give its width and height"
        )
    return read_raw_depth(path, size_px=size_px)


def _decoded(path: Path) -> tuple[str, np.ndarray]:
    content = read_file(path)
    if not content.endswith(PNG_END):
        raise DataError(f"{path}: does not end as PNG files do, at byte {len(content)}; get the file again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a large image: it is refused below, or fits
            opened = Image.open(io.BytesIO(content), formats=["PNG"])
        with opened as image:
            check_decompressed_size(
                str(path), 8 * image.width * image.height, len(content), free_bytes=FREE_IMAGE_BYTES
            )
            return image.mode, np.asarray(image)
    except DataError:
        raise
    except DECODE_ERRORS as error:
        reason = " ".join(str(error).partition(" <_io.")[0].split())
        raise DataError(f"{path}: cannot be decoded ({reason}); get the file again") from error


def _checked_npy(array: np.ndarray, path: Path) -> np.ndarray:
    if array.ndim != 2 or array.dtype.kind not in "uif":
        raise DataError(f"{path}: holds {array.dtype} {array.shape}, numbers (height, width) are needed")
    depth = np.where(np.isnan(array), 0, array) if array.dtype.kind == "f" else array
    wrong = np.argwhere(~np.isfinite(depth) | (depth < 0))
    if len(wrong):
        row, column = (int(place) for place in wrong[0])
        raise DataError(
            f"{path}: the depth in row {row}, column {column} is {array[row, column]}; put 0 where nothing was measured"
        )
    return depth


def _checked(depths: np.ndarray, path: Path, *, start: int) -> np.ndarray:
    """Depths as they are in a file from the byte `start` on, all of them finite and not negative."""
    wrong = np.flatnonzero(~np.isfinite(depths) | (depths < 0))
    if len(wrong):
        place = int(wrong[0])
        raise DataError(
            f"{path}: the depth at byte {start + 4 * place} is {depths[place]}; pixels without a measurement are 0: "
            "get the file again"
        )
    return depths.astype(np.float32, copy=False)


def _check_size(image: np.ndarray, size_px: SizePx | None, path: Path) -> None:
    found = (image.shape[1], image.shape[0])
    if size_px is not None and found != size_px:
        raise DataError(
            f"{path}: the image is {found[0]} x {found[1]} pixels, the camera's {size_px[0]} x {size_px[1]}; give the "
            "intrinsics and the size of this image's camera"
        )
