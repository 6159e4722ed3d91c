"""PNG files of rendered views: integrity check, and composition with a background."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sightline.data.files.input_files import BoundedFile, open_regular
from sightline.errors import DataError
from sightline.geometry.rendering import Background
from sightline.transforms.images import resize_images

__all__ = ["DECODE_ERRORS", "PNG_END", "composite_over", "png_fault", "read_view"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
"""Exceptions of Pillow for files that are damaged, or of an absurd size."""
FREE_IMAGE_BYTES = 2**28
"""Size up to which an image is decoded regardless of its compression: a drawing may have one colour."""
_MAX_SIZE_PX = 4096


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
    try:
        with BoundedFile(path) as file, Image.open(file) as image:
            mode, pixels = image.mode, np.asarray(image)
    except DECODE_ERRORS as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: cannot be decoded ({reason}); the file is damaged or in another format") from error
    if mode != "RGBA":
        raise DataError(f"{path}: is {mode}, RGBA is needed, whose transparency marks the background; get the renders")
    resized: np.ndarray = resize_images(
        torch.from_numpy(composite_over(pixels, background)), size=(size_px, size_px)
    ).numpy()
    return resized


def composite_over(rgba: np.ndarray, background: Background) -> np.ndarray:
    """Compose colours with opacity (H, W, 4) uint8 over a background: (H, W, 3) uint8, rounded.

    Source: Porter and Duff 1984, "over", with colours not multiplied by opacity.
    """
    colours, opacity = rgba[..., :3].astype(np.int32), rgba[..., 3:].astype(np.int32)
    background_value = 255 if background == "white" else 0
    return ((colours * opacity + background_value * (255 - opacity) + 127) // 255).astype(np.uint8)
