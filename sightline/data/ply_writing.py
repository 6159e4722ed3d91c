"""Coloured clouds as binary PLY files, which CloudCompare, MeshLab, Open3D and `read_ply` open.

Source: Turk 1994, "The PLY Polygon File Format".
"""

from __future__ import annotations

import numpy as np

__all__ = ["encode_ply"]

_KINDS = {np.dtype(np.float32): ("<f4", "float"), np.dtype(np.float64): ("<f8", "double")}


def encode_ply(points: np.ndarray, *, colors: np.ndarray, labels: np.ndarray | None = None) -> bytes:
    """The bytes of a little-endian PLY file of points (N, 3), in float32 or float64 as they are, and uint8 colours.

    The properties are x, y, z, red, green, blue and, with `labels` (N,), a 32-bit label; the order of points stays.
    Raises ValueError for arrays of other shapes or types.
    """
    if points.ndim != 2 or points.shape[1] != 3 or points.dtype not in _KINDS:
        raise ValueError(f"points: found {points.dtype} {points.shape}, expected float32 or float64 (N, 3)")
    if colors.shape != points.shape or colors.dtype != np.uint8:
        raise ValueError(f"colors: found {colors.dtype} {colors.shape}, expected uint8 {points.shape}")
    if labels is not None and (labels.shape != points.shape[:1] or labels.dtype.kind not in "iu"):
        raise ValueError(f"labels: found {labels.dtype} {labels.shape}, expected integers {points.shape[:1]}")
    kind, told = _KINDS[points.dtype]
    columns = [(name, kind, told, points[:, axis]) for axis, name in enumerate("xyz")]
    columns += [(name, "u1", "uchar", colors[:, axis]) for axis, name in enumerate(("red", "green", "blue"))]
    columns += [] if labels is None else [("label", "<i4", "int", labels)]
    table = np.empty(len(points), dtype=[(name, kind) for name, kind, _, _ in columns])
    for name, _, _, values in columns:
        table[name] = values
    properties = "".join(f"property {told} {name}\n" for name, _, told, _ in columns)
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(points)}\n{properties}end_header\n"
    return header.encode("ascii") + table.tobytes()
