"""PLY writer for coloured point clouds: binary, little endian.

Source: Turk 1994, "The PLY Polygon File Format".
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sightline.data.files.atomic_write import open_atomic

__all__ = ["write_ply"]

_PLY_TYPES = {"<f4": "float", "<f8": "double", "|u1": "uchar", "<i4": "int"}
_ROWS_AT_ONCE = 2**16


def write_ply(path: Path, *, points: np.ndarray, colors: np.ndarray, label: np.ndarray | None = None) -> None:
    """Write a cloud as a PLY file with the properties x y z red green blue and, if labels are given, label.

    `points` (N, 3) float32 or float64, written bit for bit; `colors` (N, 3) uint8; `label` (N,) integers, written with
    32 bits. The file is complete or absent; an older one of that name is replaced. Raises ValueError for arrays of
    another form, and OSError as the disk does.
    """
    _check_arrays(points, colors, label)
    columns = dict(zip(("x", "y", "z"), points.T, strict=True))
    columns |= dict(zip(("red", "green", "blue"), colors.T, strict=True))
    kinds = dict.fromkeys("xyz", f"<f{points.itemsize}") | dict.fromkeys(("red", "green", "blue"), "|u1")
    if label is not None:
        columns["label"], kinds["label"] = label, "<i4"
    properties = [f"property {_PLY_TYPES[kind]} {name}" for name, kind in kinds.items()]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}", *properties, "end_header", ""]
    with open_atomic(path) as file:
        file.write("\n".join(header).encode("ascii"))
        for start in range(0, len(points), _ROWS_AT_ONCE):
            rows = np.empty(len(points[start : start + _ROWS_AT_ONCE]), dtype=list(kinds.items()))
            for name, values in columns.items():
                rows[name] = values[start : start + _ROWS_AT_ONCE]
            file.write(rows.tobytes())


def _check_arrays(points: np.ndarray, colors: np.ndarray, label: np.ndarray | None) -> None:
    is_float = points.dtype.kind == "f" and points.itemsize in (4, 8)
    if not is_float or points.ndim != 2 or points.shape[1] != 3 or not len(points):
        raise ValueError(f"points: found {points.dtype} {points.shape}, expected float32 or float64 (N, 3), N >= 1")
    if colors.shape != points.shape or colors.dtype != np.uint8:
        raise ValueError(f"colors: found {colors.dtype} {colors.shape}, expected uint8 {points.shape}")
    if label is None:
        return
    if label.shape != points.shape[:1] or label.dtype.kind not in "iu":
        raise ValueError(f"label: found {label.dtype} {label.shape}, expected whole numbers {points.shape[:1]}")
    bounds = np.iinfo(np.int32)
    if label.min() < bounds.min or label.max() > bounds.max:
        raise ValueError(f"label: found {label.min()} to {label.max()}, a PLY file takes {bounds.min} to {bounds.max}")
