"""LiDAR scans in KITTI's format: points and labels in raw little-endian binary, poses in text."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from sightline.contract.errors import DataError
from sightline.store.files.atomic_write import open_atomic
from sightline.store.files.input_files import damaged, read_file
from sightline.store.files.text_tables import parse_rows, read_text, split_lines

MAX_ID = 2**16 - 1
"""Largest id: files store ids in 16 bits; the upper half of a label is an instance."""
_LABEL_DTYPES = {".bin": "u1"}
"""Type of the labels in files of a suffix, if it is not uint32."""
_MAX_SKEW = 0.01
"""Maximum deviation of an entry of R R^T from the identity; in published files it is at most 1e-5."""
_MAX_DISTANCE_M = 1e9
"""Maximum distance from the origin: all coordinates on Earth are below, and sums remain finite."""


class MatrixRow(NamedTuple):
    """Numbers of a named row, with the file and line."""

    numbers: np.ndarray
    where: str


def read_bin(path: Path, *, num_columns: int) -> np.ndarray:
    """Read the rows (N, num_columns) float32 of a raw file; an empty file has none.

    Raises DataError if the file's size is not that of whole rows.
    """
    content = read_file(path)
    if len(content) % (4 * num_columns):
        raise DataError(
            f"{path}: has {len(content)} bytes, whole points of {num_columns} float32 have a multiple of "
            f"{4 * num_columns}; it is cut short or has other columns"
        )
    return np.frombuffer(content, dtype="<f4").reshape(-1, num_columns)


def read_label_ids(path: Path, *, num_points: int, points_path: Path) -> np.ndarray:
    """Read the semantic ids (N,) int64 of a label file: of SemanticKITTI the lower 16 bits, of nuScenes (.bin) a byte.

    The upper bits are instances. Raises DataError unless there is one for each of the `num_points` in `points_path`.
    """
    content, dtype = read_file(path), np.dtype(_LABEL_DTYPES.get(path.suffix, "<u4"))
    if len(content) != dtype.itemsize * num_points:
        raise DataError(
            f"{path}: has {len(content)} bytes, {dtype.itemsize * num_points} are expected: one {dtype} for each of "
            f"the {num_points} points of {points_path}; one of the files is damaged, or of another scan"
        )
    return np.frombuffer(content, dtype=dtype).astype(np.int64) & 0xFFFF


def write_label_ids(path: Path, ids: np.ndarray) -> None:
    """Write ids (N,) as a label file that `read_label_ids` reads, without instances; it is complete or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_atomic(path) as file:
        file.write(ids.astype(_LABEL_DTYPES.get(path.suffix, "<u4")).tobytes())


def read_matrices(path: Path) -> dict[str, MatrixRow]:
    """Read the named rows of a KITTI calibration file, `Tr: 1 0 0 ...`, float64 each; blank lines are skipped.

    Raises DataError with the line for one in another form, and for a repeated name.
    """
    matrices: dict[str, MatrixRow] = {}
    for number, line in enumerate(split_lines(read_text(path)), start=1):
        name, colon, numbers = line.partition(":")
        if not line.strip():
            continue
        if not colon:
            raise damaged(f"{path}:{number}: is not `name: numbers`")
        if (key := name.strip()) in matrices:
            where = matrices[key].where
            raise DataError(f"{path}:{number}: '{key[:40]}' is there twice, before in {where}; keep one of them")
        matrices[key] = _parse_row(numbers, path, number)
    return matrices


def check_pose(matrix: np.ndarray, *, where: str) -> None:
    """Raise DataError, beginning with `where`, unless a matrix (3, 3) or (3, 4) is a rotation with a translation."""
    rotation = matrix[:3, :3]
    with np.errstate(over="ignore", invalid="ignore"):
        skew = float(np.abs(rotation @ rotation.T - np.eye(3)).max())
    if not skew <= _MAX_SKEW:
        raise DataError(
            f"{where}: is not a rotation: R R^T is {skew:.3g} off the identity, {_MAX_SKEW:g} may be; the numbers are "
            "zeros, scaled or damaged: copy or download the file again"
        )
    if np.linalg.det(rotation) < 0:
        raise damaged(f"{where}: mirrors space, a rotation does not")
    if not (farthest := float(np.abs(matrix).max())) <= _MAX_DISTANCE_M:
        raise damaged(f"{where}: is {farthest:.3g} m away")


def _parse_row(text: str, path: Path, number: int) -> MatrixRow:
    table = parse_rows([text], [number], path=path, num_columns=len(text.split()))
    return MatrixRow(table[0], f"{path}:{number}")
