"""Depth image files: PNG, TIFF, NPY, and the windows of MSRA; in mm, 0 without a measurement."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from PIL import Image

from sightline.contract.errors import DataError
from sightline.store.files.array_files import read_npy
from sightline.store.files.image_files import DEPTH_MODES, FREE_IMAGE_BYTES, PNG_END, load_pixels
from sightline.store.files.input_files import (
    assert_regular,
    check_decompressed_size,
    convert_errors,
    damaged,
    read_file,
)

SizePx: TypeAlias = tuple[int, int]
"""Width and height of an image, in pixels."""
_HEADER = struct.Struct("<6i")
"""Header of MSRA's files: width and height of the image, then left, top, right, bottom (exclusive)."""
_MAX_SIZE_PX = 16_384
_TYPE_MAXIMA, _MIN_MARK_SHARE = (2.0**15 - 1, 2.0**16 - 1, 2.0**31 - 1, 2.0**32 - 1), 0.001
MIN_RANGE_MM = 20.0
"""Shortest range of any depth camera: an image whose largest depth is below it is in metres."""
DEPTH_KINDS: Mapping[str, str] = {
    ".png": "16 bits",
    ".tif": "16 bits or float32",
    ".tiff": "16 bits or float32",
    ".npy": "numbers",
    ".bin": "of MSRA",
}
"""Suffixes of depth images, and what their pixels are."""


def read_depth(
    path: Path, *, size_px: SizePx | None = None, mm_per_unit: float = 1.0, no_return: float | None = None
) -> np.ndarray:
    """Read the depth image (H, W) of a user's file, float32 in mm, 0 without a measurement.

    PNG and TIFF files have one channel, TIFF files also of float32; NPY files numbers of any type (H, W), NaN without a
    measurement; BIN files MSRA's header and window. `no_return` is a further number of the file that marks pixels
    without a measurement. Raises DataError, one line, for other files, for images of another size than `size_px`
    (width, height), and if the numbers cannot be depths in mm.
    """
    image = read_depth_numbers(path, no_return=no_return)
    _check_size(image, size_px, path)
    with np.errstate(over="ignore"):  # values too large for float32 become infinite
        depth = (image * np.float64(mm_per_unit)).astype(np.float32)
    if np.isinf(depth).any():
        raise damaged(f"{path}: the farthest depth is {image.max():.4g}, which cannot be in mm")
    if 0 < depth.max(initial=0) < MIN_RANGE_MM:
        raise DataError(
            f"{path}: the farthest depth is {depth.max():.4g} mm, nearer than any camera measures; if the file is in "
            "metres, set mm_per_unit to 1000"
        )
    return depth


def read_depth_numbers(path: Path, *, no_return: float | None = None) -> np.ndarray:
    """Read the numbers (H, W) of a depth image in its own unit and type. Raises DataError as `read_depth`."""
    assert_regular(path)
    suffix = path.suffix.lower()
    if suffix == ".png":
        return read_depth_png(path, no_return=no_return)
    if suffix in (".tif", ".tiff"):
        return _check_numbers(_read_tiff(path), path, no_return)
    if suffix == ".npy":
        return _check_numbers(read_npy(path), path, no_return)
    if suffix == ".bin":
        return _take_out(read_windowed_depth(path), no_return)
    kinds = ", ".join(f"{known} ({numbers})" for known, numbers in DEPTH_KINDS.items())
    raise DataError(f"{path}: is not a depth image of a known kind; convert it to one of {kinds}")


def check_marks(depth: np.ndarray, path: Path, *, mm_per_unit: float) -> None:
    """Raise DataError if many pixels of a depth image in mm have the largest number of an integer type."""
    farthest, measured = depth.max(initial=0), np.count_nonzero(depth)
    number, share = round(float(farthest) / mm_per_unit, 6), (depth == farthest).sum() / max(measured, 1)
    if number in _TYPE_MAXIMA and share >= _MIN_MARK_SHARE:
        raise DataError(
            f"{path}: {share:.0%} of the measured pixels are {number:.9g}, the largest number of their type, which "
            f"marks pixels without a measurement; give no_return={number:.9g} (camera.no_return= when predicting)"
        )


def read_depth_png(path: Path, *, size_px: SizePx | None = None, no_return: float | None = None) -> np.ndarray:
    """Read the pixels (H, W) uint16 of a 16-bit, one-channel PNG file, 0 where they are `no_return`.

    Raises DataError for any other file.
    """
    mode, pixels = _decode(path, "PNG")
    if mode not in DEPTH_MODES[".png"]:
        raise DataError(f"{path}: has the mode {mode}, one channel of 16 bits is needed, which holds depths in mm")
    _check_size(pixels, size_px, path)
    return _take_out(pixels.astype(np.uint16), no_return)


def _read_tiff(path: Path) -> np.ndarray:
    """Read the numbers (H, W) of a TIFF file with one channel of 16 bits or float32."""
    mode, pixels = _decode(path, "TIFF")
    if mode not in DEPTH_MODES[".tif"]:
        raise DataError(f"{path}: has the mode {mode}, one channel of 16 bits or float32 is needed, which holds depths")
    return pixels


def _take_out(image: np.ndarray, no_return: float | None) -> np.ndarray:
    """Return the image with 0 where it is `no_return`."""
    return image if no_return is None else np.where(image == no_return, 0, image).astype(image.dtype, copy=False)


def read_colour_png(path: Path, *, size_px: SizePx | None = None) -> np.ndarray:
    """Read the depths (H, W) uint16 of a PNG file with the high byte in the green and the low byte in the blue channel.

    Source: the reader that comes with the NYU hand data.
    """
    mode, pixels = _decode(path, "PNG")
    if mode != "RGB":
        raise DataError(f"{path}: has the mode {mode}, RGB is needed, whose green and blue hold the depth")
    _check_size(pixels, size_px, path)
    depth: np.ndarray = pixels[..., 1].astype(np.uint16) * 256 + pixels[..., 2]
    return depth


def read_windowed_depth(path: Path, *, size_px: SizePx | None = None) -> np.ndarray:
    """Read the depths (H, W) float32 of an MSRA file: a header and a window of the image; the rest is 0.

    The header gives the window's left column and top row, counted from 0. Raises DataError with the byte at which the
    header, or a depth, is wrong, and with the size that the header requires.
    """
    content = read_file(path)
    if len(content) < _HEADER.size:
        raise damaged(f"{path}: has {len(content)} bytes, the header alone has {_HEADER.size}")
    width, height, left, top, right, bottom = _HEADER.unpack_from(content)
    if size_px not in (None, (width, height)) or not (0 < width <= _MAX_SIZE_PX and 0 < height <= _MAX_SIZE_PX):
        expected_size = "{} x {}".format(*size_px) if size_px else f"at most {_MAX_SIZE_PX} a side"
        raise damaged(f"{path}: byte 0: the image is {width} x {height}, {expected_size} is needed")
    if not (0 <= left <= right <= width and 0 <= top <= bottom <= height):
        raise damaged(
            f"{path}: byte 8: the window from {left}, {top} to {right}, {bottom} is not within the image of {width} x "
            f"{height}"
        )
    expected = _HEADER.size + 4 * (right - left) * (bottom - top)
    if len(content) != expected:
        raise damaged(
            f"{path}: has {len(content)} bytes, its window of {right - left} x {bottom - top} asks for {expected}"
        )
    check_decompressed_size(str(path), 4 * width * height, len(content))
    depth = np.zeros((height, width), dtype=np.float32)
    window = np.frombuffer(content, "<f4", offset=_HEADER.size)
    invalid = np.flatnonzero(~np.isfinite(window) | (window < 0))
    if len(invalid):
        index = int(invalid[0])
        raise DataError(
            f"{path}: the depth at byte {_HEADER.size + 4 * index} is {window[index]}; pixels without a measurement "
            "must be 0: the file is damaged or in another format"
        )
    depth[top:bottom, left:right] = window.reshape(bottom - top, right - left)
    return depth


def _decode(path: Path, kind: Literal["PNG", "TIFF"]) -> tuple[str, np.ndarray]:
    """Decode a file to its mode and pixels. Raises DataError if it is truncated, damaged, or has several images."""
    content = read_file(path)
    if kind == "PNG" and not content.endswith(PNG_END):
        raise damaged(f"{path}: does not end as PNG files do, at byte {len(content)}")
    with convert_errors(path, "cannot be decoded"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about large images, which are checked below, and damaged tags
        with Image.open(io.BytesIO(content), formats=[kind]) as image:
            num_images = getattr(image, "n_frames", 1)
            if num_images > 1:
                raise DataError(f"{path}: holds {num_images} images, one is needed; write each to a file of its own")
            num_bytes = 8 * image.width * image.height
            check_decompressed_size(str(path), num_bytes, len(content), free_bytes=FREE_IMAGE_BYTES)
            load_pixels(image, path)
            return image.mode, np.asarray(image)


def _check_numbers(array: np.ndarray, path: Path, no_return: float | None) -> np.ndarray:
    """Check the depths (H, W) of a file and replace NaN and `no_return` by 0."""
    if array.ndim != 2 or array.dtype.kind not in "uif":
        raise DataError(f"{path}: holds {array.dtype} {array.shape}, numbers (height, width) are needed")
    depth = _take_out(np.where(np.isnan(array), 0, array) if array.dtype.kind == "f" else array, no_return)
    wrong_pixels = np.argwhere(~np.isfinite(depth) | (depth < 0))
    if len(wrong_pixels):
        row, column = (int(index) for index in wrong_pixels[0])
        value, advice = array[row, column], "put 0 where nothing was measured"
        if np.isfinite(value):
            advice += f"; if the number marks that: no_return={value} (camera.no_return={value} when predicting)"
        raise DataError(f"{path}: the depth in row {row}, column {column} is {value}; {advice}")
    return depth


def _check_size(image: np.ndarray, size_px: SizePx | None, path: Path) -> None:
    """Raise DataError if an image has another size than `size_px`."""
    image_size_px = (image.shape[1], image.shape[0])
    if size_px is not None and image_size_px != size_px:
        raise DataError(
            f"{path}: the image is {image_size_px[0]} x {image_size_px[1]} pixels, the camera's "
            f"{size_px[0]} x {size_px[1]}; give the intrinsics and the size of this image's camera"
        )
