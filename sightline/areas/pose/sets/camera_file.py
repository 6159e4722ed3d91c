"""Intrinsics of the camera of depth frames, from `camera.json` in the keys of several tools."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sightline.areas.pose.depth_files import SizePx
from sightline.areas.pose.sets.joint_labels import is_number, parse_json_file
from sightline.contract.errors import DataError

CAMERA_FILE = "camera.json"
CAMERA_KEYS = ("fx", "fy", "u0", "v0")
CAMERA_FORM = f'{CAMERA_FILE}: {{"fx": 475.0, "fy": 475.0, "u0": 320.0, "v0": 240.0}}'
_SPELLINGS: Mapping[str, tuple[str, ...]] = {
    "fx": ("fx",),
    "fy": ("fy",),
    "u0": ("u0", "cx", "ppx"),
    "v0": ("v0", "cy", "ppy"),
    "width": ("width", "image_width", "width_px"),
    "height": ("height", "image_height", "height_px"),
}
"""Keys of a camera's numbers in lower case: ours, those of OpenCV and Open3D, of RealSense, and of ROS."""
_KEYS = {spelling: key for key, spellings in _SPELLINGS.items() for spelling in spellings}
_MATRICES = ("k", "camera_matrix", "intrinsic_matrix", "intrinsics", "intrinsic")
"""Keys of the nine numbers of a matrix: by rows (ROS, OpenCV) or by columns (Open3D)."""
_INNER = ("intrinsics", "intrinsic", "camera", "depth", "depth_intrinsics")
"""Keys of a mapping with the camera's numbers."""
_DISTORTION = ("d", "coeffs", "distortion", "distortion_coefficients", "dist_coeffs", "k1", "k2", "k3", "p1", "p2")


@dataclass(frozen=True)
class StatedCamera:
    """Intrinsics in pixels by `CAMERA_KEYS`; width and height of the images if the file states them; notes."""

    intrinsics: Mapping[str, float]
    size_px: SizePx | None = None
    notes: tuple[str, ...] = ()


def read_camera(root: Path) -> StatedCamera:
    """Read `camera.json` of a folder; without the file the camera has no numbers.

    Raises DataError for a key that is missing, no number, or stated twice with two numbers.
    """
    path = root / CAMERA_FILE
    if not path.is_file():
        return StatedCamera({})
    document = parse_json_file(path)
    stated: defaultdict[str, dict[str, float]] = defaultdict(dict)
    distorted = _collect(document, path, "", stated) if isinstance(document, dict) else []
    for key, numbers in stated.items():
        if len({*numbers.values()}) > 1:
            listed = ", ".join(f"{place} {number:g}" for place, number in numbers.items())
            raise DataError(f"{path}: states {key} more than once: {listed}; keep the camera of the depth images")
    missing = [" or ".join(_SPELLINGS[key]) for key in CAMERA_KEYS if key not in stated]
    if missing:
        keys = ", ".join(document)[:100] if isinstance(document, dict) else ""
        raise DataError(f"{path}: has no {', no '.join(missing)}; it has {keys or 'no keys'}; write {CAMERA_FORM}")
    places = [next(iter(stated[key])) for key in CAMERA_KEYS]
    intrinsics = {key: next(iter(stated[key].values())) for key in CAMERA_KEYS}
    size = [int(next(iter(stated[key].values()), 0)) for key in ("width", "height")]
    listed = ", ".join(f"{key} {number:g}" for key, number in intrinsics.items())
    notes = (
        [] if places == [*CAMERA_KEYS] else [f"{CAMERA_FILE}: {listed}, read from {', '.join(dict.fromkeys(places))}"]
    )
    notes += [f"{CAMERA_FILE}: {place} is not 0, and lens distortion is not applied" for place in distorted]
    return StatedCamera(intrinsics, (size[0], size[1]) if min(size) > 0 else None, tuple(notes))


def _collect(document: Mapping[str, Any], path: Path, prefix: str, stated: Mapping[str, dict[str, float]]) -> list[str]:
    """Add the numbers of a mapping to `stated`, by key and by place in the file; return places of lens distortion."""
    distorted = []
    for key, value in document.items():
        name, place = key.lower(), f"{prefix}{key}"
        values = value["data"] if isinstance(value, dict) and "data" in value else value
        listed = values if isinstance(values, list) else [values]
        if name in _KEYS:
            if not is_number(value):
                raise DataError(f"{path}: {place} is {str(value)[:40]!r}, a number of pixels is needed")
            stated[_KEYS[name]][place] = float(value)
        elif name in _MATRICES and isinstance(values, list):
            for entry, number in zip(CAMERA_KEYS, _parse_matrix(values, f"{path}: {place}"), strict=True):
                stated[entry][place] = number
        elif name in _INNER and isinstance(value, dict):
            distorted += _collect(value, path, f"{place}.", stated)
        elif name in _DISTORTION and any(is_number(one) and one for one in listed):
            distorted.append(place)
    return distorted


def _parse_matrix(values: list[Any], where: str) -> tuple[float, float, float, float]:
    """Parse fx, fy, u0 and v0 of a matrix, nested or flat; its zeros tell whether it goes by rows or by columns."""
    flat = [number for row in values for number in (row if isinstance(row, list) else [row])]
    if len(flat) != 9 or not all(map(is_number, flat)):
        raise DataError(f"{where}: is not nine numbers fx 0 u0, 0 fy v0, 0 0 1; write {CAMERA_FORM}")
    matrix = np.array(flat, dtype=np.float64).reshape(3, 3)
    for (fx, skew, u0), (zero, fy, v0), last in (matrix.tolist(), matrix.T.tolist()):
        if (skew, zero, *last) == (0, 0, 0, 0, 1):
            return fx, fy, u0, v0
    raise DataError(f"{where}: is not fx 0 u0, 0 fy v0, 0 0 1, by rows or by columns; write {CAMERA_FORM}")
