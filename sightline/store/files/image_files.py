"""Images of any kind: header, integrity check, pixels as RGB, and composition of views with a background."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError, features

from sightline.contract.errors import DataError
from sightline.ops.views.rendering import Background
from sightline.parts.transforms.images import resize_images
from sightline.store.files.input_files import (
    assert_regular,
    check_decompressed_size,
    convert_errors,
    damaged,
    list_files,
    open_regular,
    read_file,
)

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Numbers of a pixel by a PNG's type of colours."""
_PNG_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column and row of each pass of an interlaced PNG, and the steps to the next ones (Adam7)."""
_PIECE_BYTES = 2**20
PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"
FREE_IMAGE_BYTES = 2**28
"""Size up to which an image is decoded regardless of its compression: a drawing may have one colour."""
_MAX_SIZE_PX = 4096
_TIFF_DEPTHS = ("I;16", "I;16B", "I", "F")
DEPTH_MODES = {".png": ("I;16", "I"), ".tif": _TIFF_DEPTHS, ".tiff": _TIFF_DEPTHS}
"""Pillow's modes of images with one channel of 16 bits or more, in which depths are stored, by suffix."""
IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""Suffixes of image files, in lower case."""
UNREAD_SUFFIXES = frozenset(
    {".avif", ".cr2", ".cr3", ".dng", ".heic", ".heif", ".jp2", ".jxl", ".mpo", ".nef", ".pgm", ".ppm", ".arw"}
)
"""Suffixes of photos that are not read: they are named where they are left out."""
CONVERT_ADVICE = "save them as JPEG or PNG, such as by ImageMagick's 'magick mogrify -format jpg FILE'"
_SMALL_BYTES = 2**17
"""Largest size of a file that is read at once: Pillow asks for a header in pieces of two bytes."""
_SIXTEEN_BIT = ("I", "I;16", "I;16L", "I;16B", "I;16N")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Transpositions that make the stored pixels upright. Source: Exif 2.32, tag 274."""


class _BoundedFile(io.BufferedReader):
    """Reader that never requests more bytes than the file has; Pillow requests as many as a chunk states."""

    def __init__(self, file: io.FileIO, num_bytes: int) -> None:
        super().__init__(file)
        self._num_bytes = num_bytes

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(-1 if size is None or size > self._num_bytes else size)


PHOTO_RULE = "upright RGB of 8 bits, resized by a triangle filter as wide as the larger pixel, rounded to 8 bits"
"""How `read_image` and `resize_images` make numbers of a photo; another rule has other words."""


def describe_photo_reading() -> str:
    """Describe how photos become numbers here: by what rule, and by which decoder of JPEG: its versions may differ."""
    turbo = features.version("libjpeg_turbo")
    return f"{PHOTO_RULE}; libjpeg-turbo {turbo}" if turbo else f"{PHOTO_RULE}; libjpeg {features.version('jpg')}"


def advise_unread(folder: Path) -> str:
    """Return the end of a message on photos below a folder whose kind is not read, with the first; "" without any."""
    unread = list_files(folder, UNREAD_SUFFIXES)
    return f"; {unread[0].name} is of a kind that is not read: {CONVERT_ADVICE}" if unread else ""


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Open an image. Raises DataError for a file that is damaged or has an absurd size, also while it is used."""
    assert_regular(path)  # which says of a folder what it is
    with convert_errors(path, "cannot be decoded"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about damaged EXIF data, and about large images
        with io.FileIO(path) as stream:
            num_stored = os.fstat(stream.fileno()).st_size
            is_small = num_stored <= _SMALL_BYTES
            file = io.BytesIO(stream.read()) if is_small else _BoundedFile(stream, num_stored)
            with file, _open_known(file, path) as image:
                num_bytes = 4 * image.width * image.height
                check_decompressed_size(str(path), num_bytes, num_stored, free_bytes=FREE_IMAGE_BYTES)
                yield image


def _open_known(file: IO[bytes], path: Path) -> Image.Image:
    """Open an image of a file. Raises DataError with the advice for a kind that is not read, such as HEIC."""
    try:
        return Image.open(file)
    except UnidentifiedImageError:
        if path.suffix.lower() in UNREAD_SUFFIXES:
            raise DataError(f"{path}: is of a kind that is not read: {CONVERT_ADVICE}") from None
        raise


def load_pixels(image: Image.Image, path: Path) -> None:
    """Decode all pixels of an open image. Raises DataError for a PNG whose compressed rows end before its last one.

    Pillow leaves rows 0 for which a sound stream has no bytes: where the last one is 0, the bytes are counted.
    """
    image.load()
    if image.format != "PNG" or not image.height:
        return
    last = image.crop((0, image.height - 1, image.width, image.height))
    if not image.info.get("interlace") and np.asarray(last).any():
        return
    found, expected = _count_png_bytes(read_file(path))
    if found < expected:
        raise damaged(f"{path}: its pixels end after {found} of {expected} bytes")


def _count_png_bytes(content: bytes) -> tuple[int, int]:
    """Count the bytes of the rows of a PNG, up to those that its size makes; return them, and these."""
    width, height, depth, kind, _, _, is_interlaced = struct.unpack_from(">IIBBBBB", content, 16)
    expected = 0
    for left, top, across, down in _PNG_PASSES if is_interlaced else ((0, 0, 1, 1),):
        columns, rows = -((left - width) // across), -((top - height) // down)
        expected += rows * (1 + -(-columns * depth * _PNG_CHANNELS[kind] // 8)) if columns > 0 else 0
    found, position, stream = 0, len(_SIGNATURE), zlib.decompressobj()
    while found < expected and not stream.eof and position + 8 <= len(content):
        length, name = struct.unpack_from(">I4s", content, position)
        piece = content[position + 8 : position + 8 + length] if name == b"IDAT" else b""
        position += length + 12
        while piece and found < expected:
            found += len(stream.decompress(piece, _PIECE_BYTES))
            piece = stream.unconsumed_tail
    return min(found, expected), expected


def png_fault(path: Path) -> str:
    """Describe the fault that the beginning and the end of a file show, after its path; empty if there is none."""
    with open_regular(path) as file:
        head = file.read(24)
        size = file.seek(0, 2)
        file.seek(max(0, size - len(PNG_END)))
        tail = file.read()
    if not head:
        return f"{path} (is empty)"
    if len(head) < 24 or not head.startswith(_SIGNATURE) or head[12:16] != b"IHDR":
        return f"{path} (is not a PNG file)"
    width, height = struct.unpack(">II", head[16:24])
    if width != height or not 0 < width <= _MAX_SIZE_PX:
        return f"{path} (is {width} x {height} pixels, a square of up to {_MAX_SIZE_PX} is needed)"
    return "" if tail == PNG_END else f"{path} (is cut short at byte {size})"


def read_view(path: Path, *, size_px: int, background: Background) -> np.ndarray:
    """Read an image composed with its background, resized to a square: uint8 (size_px, size_px, 3).

    Colours are mixed by alpha before the resize, so that colours of transparent pixels have no effect; a smaller image
    averages the pixels that it covers. Raises DataError for a file that cannot be decoded, and for one without alpha,
    whose background cannot be chosen any more.
    """
    fault = png_fault(path)
    if fault:
        raise DataError(f"{fault}; the file is damaged or in another format")
    with open_image(path) as image:
        load_pixels(image, path)
        mode, pixels = image.mode, np.asarray(image)
    if mode != "RGBA":
        raise DataError(f"{path}: is {mode}, RGBA is needed, whose transparency marks the background; get the renders")
    composed = torch.from_numpy(composite_over(pixels, background))
    resized: np.ndarray = resize_images(composed, size=(size_px, size_px)).numpy()
    return resized


def composite_over(rgba: np.ndarray, background: Background) -> np.ndarray:
    """Compose colours with opacity (H, W, 4) uint8 over a background: (H, W, 3) uint8, rounded.

    Source: Porter and Duff 1984, "over", with colours not multiplied by opacity.
    """
    colours, opacity = rgba[..., :3].astype(np.int32), rgba[..., 3:].astype(np.int32)
    background_value = 255 if background == "white" else 0
    return ((colours * opacity + background_value * (255 - opacity) + 127) // 255).astype(np.uint8)


class ImageHeader(NamedTuple):
    """Height and width of the pixels as stored, Pillow's mode, and the EXIF orientation (1 to 8)."""

    height: int
    width: int
    mode: str
    orientation: int

    def size_px(self, *, upright: bool) -> tuple[int, int]:
        """Return height and width; if `upright`, after the rotation of the EXIF orientation."""
        return (self.width, self.height) if upright and self.orientation > 4 else (self.height, self.width)


def read_header(path: Path) -> ImageHeader:
    """Read the header of an image. Raises DataError if the file is not an image, or has an absurd size."""
    with open_image(path) as image:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        return ImageHeader(image.height, image.width, image.mode, orientation if orientation in _TURNS else 1)


class ImageSurvey(NamedTuple):
    """Highest value of the RGB pixels of an image of more than 8 bits, None for others; and a digest of its pixels."""

    deep_max: int | None
    digest: bytes


def check_image(path: Path) -> ImageSurvey:
    """Decode an image and describe its pixels: copies have one digest, other images rarely.

    JPEG is decoded at an eighth of its size, which takes about half the time of reading it. Raises DataError for a file
    that is truncated or cannot be decoded, and as `read_image` for pixels that cannot be converted.
    """
    with open_image(path) as image:
        storage = str(getattr(image, "tile", ""))  # names RGB;16, whose mode is RGB
        is_deep = image.mode in (*_SIXTEEN_BIT, "F", "LAB") or ";16" in storage
        image.draft(image.mode, (1, 1))
        load_pixels(image, path)
        deep_max = int(np.asarray(_convert_to_rgb(image, path)).max()) if is_deep else None
        return ImageSurvey(deep_max, hashlib.sha256(image.tobytes()).digest())


def read_image(path: Path, *, orientation: int = 1) -> np.ndarray:
    """Read the pixels as RGB, rotated by this EXIF orientation: (H, W, 3) uint8, a new array.

    Grey is repeated; of 16 bits the upper 8 are taken; a palette is looked up; CMYK and YCbCr are converted by Pillow's
    formulas; opacity is dropped, so that transparent pixels show the colours stored below. Of several frames the first
    is taken. Raises DataError for a file that is truncated, is not an image, has other pixels (32-bit, Lab), or would
    be black for its upper 8 bits.
    """
    with open_image(path) as image:
        memory, mapped = _map_pixels(image)
        load_pixels(image, path)
        if mapped is not None and image.im is mapped:
            return _turn(_pack_pixels(memory, image.width, image.height), orientation)
        upright = image.transpose(_TURNS[orientation]) if orientation in _TURNS else image
        return _copy_pixels(_convert_to_rgb(upright, path))


def _map_pixels(image: Image.Image) -> tuple[np.ndarray, Any]:
    """Let an RGB image that is opened, and not loaded, be decoded into memory of ours, 4 bytes a pixel.

    Return the memory, 0 as Pillow's own, and Pillow's image of it: None for other modes. Formats that bring an image of
    their own replace it. A large photo exists once this way, and not beside its copy.
    """
    if image.mode != "RGB" or "transparency" in image.info:
        return np.zeros(0, dtype=np.uint8), None
    memory = np.zeros(4 * image.width * image.height, dtype=np.uint8)
    mapped = Image.core.map_buffer(memory, image.size, "raw", 0, (image.mode, 0, 1))
    image.im = mapped
    return memory, mapped


def _pack_pixels(memory: np.ndarray, width: int, height: int) -> np.ndarray:
    """Pack pixels of 4 bytes to (height, width, 3) in their own memory, some rows at a time, and give the rest back."""
    stored = memory.reshape(height, width, 4)
    num_rows = max(1, _PIECE_BYTES // (4 * max(1, width)))
    for top in range(0, height, num_rows):
        piece = stored[top : top + num_rows, :, :3].copy()  # what is written ends before the next piece begins
        memory[3 * width * top :][: piece.size] = piece.reshape(-1)
    del stored
    memory.resize(3 * width * height, refcheck=False)  # the image that Pillow mapped to it is read no more
    return memory.reshape(height, width, 3)


def _turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn stored pixels (H, W, 3) upright, as `_TURNS`: themselves, or a new array."""
    views = {
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.swapaxes(0, 1),
        6: pixels[::-1].swapaxes(0, 1),
        7: pixels[::-1, ::-1].swapaxes(0, 1),
        8: pixels[:, ::-1].swapaxes(0, 1),
    }
    return np.ascontiguousarray(views.get(orientation, pixels))


def _copy_pixels(image: Image.Image) -> np.ndarray:
    """Copy the pixels of an RGB image to a new array (H, W, 3), some rows at a time: Pillow makes two more copies."""
    pixels = np.empty((image.height, image.width, 3), dtype=np.uint8)
    num_rows = max(1, _PIECE_BYTES // (3 * max(1, image.width)))
    for top in range(0, image.height, num_rows):
        bottom = min(top + num_rows, image.height)
        pixels[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
    return pixels


def _convert_to_rgb(image: Image.Image, path: Path) -> Image.Image:
    """Convert an image to RGB. Raises DataError for a mode or range that cannot be converted."""
    if image.mode in _SIXTEEN_BIT:
        values = np.asarray(image)
        if values.min() < 0 or values.max() >= 2**16:
            raise DataError(f"{path}: its values run from {values.min()} to {values.max()}, beyond 16 bits; convert it")
        if 0 < values.max() < 2**8:
            fault = f"its values run to {values.max()} of 65535, and their upper 8 bits, which are used, are 0"
            raise DataError(f"{path}: {fault}; save it with 8 bits, or scale its values to 65535")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode in ("F", "LAB"):
        raise DataError(
            f"{path}: has pixels of the kind {image.mode}, which are not colours to show; convert it to RGB"
        )
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")
