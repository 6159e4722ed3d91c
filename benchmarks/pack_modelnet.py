"""`python -m benchmarks.pack_modelnet CLOUDS.npz PACKED.npz`: stored clouds with 10 bits a coordinate, to travel.

Coordinates lie in [-1, 1]; each is moved by at most `LARGEST_ERROR`. A cloud's points are sorted along a curve, and
their differences along it are packed (Morton 1966): ModelNet40's 12,311 clouds of 1,024 points take 28 MiB in place of
64. The queue of a GPU unpacks them for its trainings, in a random order, so that the first points of a cloud are a
sample of it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sightline.contract.errors import DataError, UserError
from sightline.verbs.output import print_note

_LEVELS = 1023
LARGEST_ERROR = 1 / _LEVELS
_CLOUDS = ("X_train", "X_test")
_SPREADS = ((16, 0x30000FF), (8, 0x300F00F), (4, 0x30C30C3), (2, 0x9249249))
"""Shifts and masks that put two zeros before each of ten bits."""


def pack(source: Path, target: Path) -> None:
    """Pack the clouds of a file; its other arrays stay. Raises DataError for coordinates outside of [-1, 1]."""
    stored = dict(np.load(source, allow_pickle=False))
    for name in _CLOUDS:
        points = stored[name].astype(np.float32)
        if not (np.abs(points) <= 1).all():
            raise DataError(f"{source}: {name} has coordinates outside of [-1, 1]: {points.min()} to {points.max()}")
        codes = np.rint((points + 1) * (_LEVELS / 2)).astype(np.uint32)
        along = np.sort(sum(_spread(codes[..., axis]) << np.uint32(axis) for axis in range(3)), axis=1)
        steps = np.diff(along, axis=1, prepend=np.zeros((len(along), 1), np.uint32)).astype("<u4")
        stored[name] = steps[..., None].view(np.uint8).transpose(2, 0, 1)  # a plane for each byte
    with target.open("wb") as file:
        np.savez_compressed(file, **stored)


def unpack(source: Path, target: Path) -> None:
    """Write the file that `pack` read, its clouds in float32 within `LARGEST_ERROR`, each in a random order."""
    stored = dict(np.load(source, allow_pickle=False))
    for name in _CLOUDS:
        planes = np.ascontiguousarray(stored[name].transpose(1, 2, 0))
        along = np.cumsum(planes.view("<u4")[..., 0], axis=1, dtype=np.uint32)
        along = np.random.default_rng(0).permuted(along, axis=1)
        codes = np.stack([_gather(along >> np.uint32(axis)) for axis in range(3)], axis=-1)
        stored[name] = codes.astype(np.float32) * np.float32(2 / _LEVELS) - 1
    with target.open("wb") as file:
        np.savez(file, **stored)


def _spread(codes: np.ndarray) -> np.ndarray:
    """Move bit i of codes of ten bits to bit 3i."""
    for shift, mask in _SPREADS:
        codes = (codes | codes << np.uint32(shift)) & np.uint32(mask)
    return codes


def _gather(codes: np.ndarray) -> np.ndarray:
    """Move bit 3i back to bit i."""
    codes = codes & np.uint32(_SPREADS[-1][1])
    for (shift, _), mask in zip(_SPREADS[::-1], (*[mask for _, mask in _SPREADS[-2::-1]], _LEVELS), strict=True):
        codes = (codes | codes >> np.uint32(shift)) & np.uint32(mask)
    return codes


def main(words: Sequence[str]) -> int:
    """Pack a file; return the exit code."""
    if len(words) != 2:
        print_note("python -m benchmarks.pack_modelnet CLOUDS.npz PACKED.npz")
        return 2
    try:
        pack(*map(Path, words))
    except (UserError, OSError) as error:
        print_note(f"error: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
