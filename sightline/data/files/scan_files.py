"""LiDAR scans as the cars of KITTI wrote them: points and labels in raw little-endian binary, poses in text."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from sightline.data.files.atomic_write import open_atomic
from sightline.data.files.input_files import read_file
from sightline.errors import DataError

__all__ = ["MatrixRow", "check_pose", "read_bin", "read_label_ids", "read_matrices", "velodyne_poses"]
__all__ += ["write_label_ids"]

_MOST_SKEW = 0.01
"""By which an entry of R R^T may differ from the identity's: published files differ by 1e-5 at most."""
_FARTHEST_M = 1e9
"""From the origin: coordinates of the whole Earth stay below, and sums of such numbers are finite."""


class MatrixRow(NamedTuple):
    """The numbers of a named row, and the file and line that hold them."""

    numbers: np.ndarray
    where: str


def read_bin(path: Path, *, num_columns: int) -> np.ndarray:
    """The rows (N, num_columns) float32 of a raw file; an empty file has none.

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
    """The semantic ids (N,) int64 of a SemanticKITTI label file: the lower halves of its numbers.

    The upper halves are instances. Raises DataError unless there is one for each of the `num_points` in `points_path`.
    """
    content = read_file(path)
    if len(content) != 4 * num_points:
        raise DataError(
            f"{path}: has {len(content)} bytes, {4 * num_points} are expected: one uint32 for each of the {num_points} "
            f"points of {points_path}; get both files again"
        )
    return (np.frombuffer(content, dtype="<u4") & 0xFFFF).astype(np.int64)


def write_label_ids(path: Path, ids: np.ndarray) -> None:
    """Write ids (N,) as a SemanticKITTI label file, without instances; the file is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_atomic(path) as file:
        file.write(ids.astype("<u4").tobytes())


def read_matrices(path: Path) -> dict[str, MatrixRow]:
    """The named rows of numbers in a calibration file of KITTI, `Tr: 1 0 0 ...`, float64 each; blank lines are skipped.

    Raises DataError with the line for one that is none, and for a name that two lines have.
    """
    matrices: dict[str, MatrixRow] = {}
    for number, line in _numbered(path):
        where, (name, colon, numbers) = f"{path}:{number}", line.partition(":")
        if not colon:
            raise DataError(f"{where}: is not `name: numbers`; get the file again")
        if (key := name.strip()) in matrices:
            raise DataError(f"{where}: '{key[:40]}' is there twice, before in {matrices[key].where}; keep one of them")
        matrices[key] = MatrixRow(_numbers(numbers, where), where)
    return matrices


def check_pose(matrix: np.ndarray, *, where: str) -> None:
    """Raises DataError, led by `where`, unless a matrix (3, 3) or (3, 4) is a rotation, then a place."""
    turn = matrix[:3, :3]
    with np.errstate(over="ignore", invalid="ignore"):
        skew = float(np.abs(turn @ turn.T - np.eye(3)).max())
    if not skew <= _MOST_SKEW:
        raise DataError(
            f"{where}: is not a rotation: R R^T is {skew:.3g} off the identity, {_MOST_SKEW:g} may be; the numbers are "
            "zeros, scaled or damaged: get the file again"
        )
    if np.linalg.det(turn) < 0:
        raise DataError(f"{where}: mirrors space, a rotation does not; get the file again")
    if not (farthest := float(np.abs(matrix).max())) <= _FARTHEST_M:
        raise DataError(f"{where}: lies {farthest:.3g} m away; get the file again")


def velodyne_poses(poses_path: Path, calib_path: Path) -> np.ndarray:
    """The poses (N, 3, 4) float64 of a sequence's scans in the frame of the first camera's start.

    A pose P in `poses.txt` is the camera's; with Tr of `calib.txt` the scanner's is inverse(Tr) P Tr.
    Raises DataError with file and line for what is not twelve numbers, or not a pose.
    Source: Behley et al. 2019, semantic-kitti-api.
    """
    rows = [_matrix(_numbers(line, f"{poses_path}:{n}"), f"{poses_path}:{n}") for n, line in _numbered(poses_path)]
    matrices = read_matrices(calib_path)
    if "Tr" not in matrices:
        raise DataError(f"{calib_path}: has no row 'Tr'; get the file again")
    transform = _matrix(*matrices["Tr"])
    poses: np.ndarray = (np.linalg.inv(transform) @ np.array(rows).reshape(-1, 4, 4) @ transform)[:, :3]
    return poses


def _matrix(numbers: np.ndarray, where: str) -> np.ndarray:
    """The pose (4, 4) from the twelve numbers of its first three rows."""
    if len(numbers) != 12:
        raise DataError(f"{where}: has {len(numbers)} numbers, 12 are expected; get the file again")
    check_pose(numbers.reshape(3, 4), where=where)
    return np.vstack([numbers.reshape(3, 4), [0.0, 0.0, 0.0, 1.0]])


def _numbers(text: str, where: str) -> np.ndarray:
    try:
        numbers = np.array([float(word) for word in text.split()])
    except ValueError:
        raise DataError(f"{where}: holds something else than numbers; get the file again") from None
    if not np.isfinite(numbers).all():
        raise DataError(f"{where}: holds a number that is not finite; get the file again")
    return numbers


def _numbered(path: Path) -> list[tuple[int, str]]:
    return [(number, line) for number, line in enumerate(_lines(path), start=1) if line.strip()]


def _lines(path: Path) -> list[str]:
    try:
        return read_file(path).decode("ascii").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not text (byte {error.start}); get the file again") from error
