"""`python -m benchmarks.pack_modelnet CLOUDS.npz PACKED.npz`: stored clouds with 10 bits a coordinate, to travel.

Coordinates lie in [-1, 1]; each is moved by at most `LARGEST_ERROR`. ModelNet40's 12,311 clouds of 1,024 points take 45
MiB in place of 64. The queue of a GPU unpacks them for its trainings.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sightline.contract.errors import DataError, UserError
from sightline.runs.packed import pack_bits, unpack_bits
from sightline.verbs.output import print_note

_LEVELS = 1023
LARGEST_ERROR = 1 / _LEVELS
_HALF_BITS = 5
"""`pack_bits` takes codes of a byte: each coordinate is two."""
_CLOUDS = ("X_train", "X_test")
_SHAPE = "shape of "


def pack(source: Path, target: Path) -> None:
    """Pack the clouds of a file; its other arrays stay. Raises DataError for coordinates outside of [-1, 1]."""
    stored = dict(np.load(source, allow_pickle=False))
    for name in _CLOUDS:
        points = stored.pop(name).astype(np.float32)
        if not (np.abs(points) <= 1).all():
            raise DataError(f"{source}: {name} has coordinates outside of [-1, 1]: {points.min()} to {points.max()}")
        codes = np.rint((points.ravel() + 1) * (_LEVELS / 2)).astype(np.uint16)
        halves = (codes >> _HALF_BITS, codes & (2**_HALF_BITS - 1))
        stored[name] = np.frombuffer(
            b"".join(pack_bits(half.astype(np.uint8), _HALF_BITS) for half in halves), np.uint8
        )
        stored[_SHAPE + name] = np.array(points.shape)
    with target.open("wb") as file:
        np.savez_compressed(file, **stored)


def unpack(source: Path, target: Path) -> None:
    """Write the file that `pack` read, its clouds in float32 within `LARGEST_ERROR`."""
    stored = dict(np.load(source, allow_pickle=False))
    for name in _CLOUDS:
        shape, data = stored.pop(_SHAPE + name), stored[name].tobytes()
        count = int(shape.prod())
        high, low = (unpack_bits(half, count, _HALF_BITS) for half in (data[: len(data) // 2], data[len(data) // 2 :]))
        codes = high.astype(np.float32) * 2**_HALF_BITS + low
        stored[name] = (codes * np.float32(2 / _LEVELS) - 1).reshape(shape)
    with target.open("wb") as file:
        np.savez(file, **stored)


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
