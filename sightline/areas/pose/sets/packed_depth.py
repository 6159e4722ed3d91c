"""Lossless compression of depth images to bytes, without their empty margin."""

from __future__ import annotations

import struct
import zlib

import numpy as np

DEPTH_TYPES = ("uint16", "float16", "float32")
"""Supported dtypes of depth images."""
_WINDOW = struct.Struct("<4H")
"""Left, top, right and bottom of the measured window, the last two exclusive."""
_LEVEL = 1
"""Compression level of zlib; higher ones take several times as long to save a few per cent."""


def pack_depth(depth: np.ndarray) -> np.ndarray:
    """Pack a depth image (H, W) of one of `DEPTH_TYPES` into bytes (N,) uint8.

    Integers are stored as differences to the previous pixel: neighbours are similar, and small numbers compress well.
    High and low bytes are separated for the same reason.
    """
    assert depth.dtype.name in DEPTH_TYPES, f"depths are {depth.dtype}"
    rows, columns = np.flatnonzero(depth.any(axis=1)), np.flatnonzero(depth.any(axis=0))
    left, right = (int(columns[0]), int(columns[-1]) + 1) if len(columns) else (0, 0)
    top, bottom = (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, 0)
    window = depth[top:bottom, left:right]
    if depth.dtype == np.uint16:
        window = np.diff(window, axis=1, prepend=np.uint16(0))  # modulo 2^16
    little = np.ascontiguousarray(window.astype(depth.dtype.newbyteorder("<"), copy=False))
    planes = little.view(np.uint8).reshape(-1, depth.dtype.itemsize).T
    packed = _WINDOW.pack(left, top, right, bottom) + zlib.compress(planes.tobytes(), _LEVEL)
    return np.frombuffer(packed, dtype=np.uint8)


def unpack_depth(packed: np.ndarray, *, dtype: str, width_px: int, height_px: int) -> np.ndarray:
    """Unpack the bytes (N,) of `pack_depth` to a depth image (height_px, width_px) of `dtype`."""
    kind = np.dtype(dtype).newbyteorder("<")
    stored = packed.tobytes()
    left, top, right, bottom = _WINDOW.unpack_from(stored)
    planes = np.frombuffer(zlib.decompress(stored[_WINDOW.size :]), dtype=np.uint8)
    window = np.ascontiguousarray(planes.reshape(kind.itemsize, -1).T).view(kind).reshape(bottom - top, right - left)
    depth = np.zeros((height_px, width_px), dtype=dtype)
    if dtype == "uint16":
        window = np.cumsum(window, axis=1, dtype=np.uint16)
    depth[top:bottom, left:right] = window
    return depth
