"""Range images as SqueezeSeg's release stores them: x, y, z, intensity, range and label of each pixel, in `.npy`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sightline.contract.errors import DataError
from sightline.store.files.array_files import read_npy
from sightline.store.files.scan_files import MAX_ID
from sightline.store.files.scan_samples import RawScan

_X, _Y, _Z, _INTENSITY, _RANGE, _LABEL = range(6)
_NUM_CHANNELS = 6
_MAX_RANGE_ERROR = 1e-3
"""Maximum relative error between range and coordinates: half precision files reach 5e-4."""


def range_image_shape(image: np.ndarray, path: Path) -> tuple[int, int]:
    """Return height and width of a range image. Raises DataError for another form than the release's."""
    if image.ndim != 3 or image.shape[2] != _NUM_CHANNELS or image.dtype.kind != "f":
        raise DataError(
            f"{path}: holds {image.dtype} {image.shape}; a range image is float (64, 512, 6): x, y, z, intensity, "
            "range, label"
        )
    return image.shape[0], image.shape[1]


def read_range_image(path: Path, *, height: int, width: int) -> RawScan:
    """Read the filled pixels of a range image. Raises DataError for a wrong shape, channel order or label."""
    image = read_npy(path)
    if range_image_shape(image, path) != (height, width):
        raise DataError(f"{path}: has {image.shape[:2]} pixels, the first image has {(height, width)}; leave it out")
    row, column = np.nonzero(image[..., _RANGE] > 0)
    pixels = image[row, column]
    distance = pixels[:, _RANGE]
    with np.errstate(over="ignore", invalid="ignore"):  # values beyond float32 are refused below
        points = pixels[:, : _Z + 1].astype(np.float32)
        norm = np.linalg.norm(points, axis=1)
        is_mismatch = ~(np.abs(norm - distance) <= _MAX_RANGE_ERROR * np.maximum(distance, 1))
    if is_mismatch.any():
        index = int(is_mismatch.argmax())
        raise DataError(
            f"{path}: pixel ({row[index]}, {column[index]}) lies {norm[index]:.3f} m away and "
            f"channel {_RANGE} is {distance[index]:.3f}; the channels must be x, y, z, intensity, range, label"
        )
    label = pixels[:, _LABEL]
    is_wrong = ~((label == np.floor(label)) & (label >= 0) & (label <= MAX_ID))
    if is_wrong.any():
        index = int(is_wrong.argmax())
        raise DataError(
            f"{path}: pixel ({row[index]}, {column[index]}) has the label {label[index]:g}; labels are whole numbers "
            "from 0"
        )
    return RawScan(points, pixels[:, _INTENSITY].astype(np.float32), label.astype(np.int64), row, column)
