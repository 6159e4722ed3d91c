"""HDF5 release of ShapeNetPart: files of many shapes each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sightline.data.clouds.modelnet_classes import natural_sort_key
from sightline.data.clouds.shapenet_part_categories import SPLITS, Category, categories, row_values
from sightline.data.files.hdf5_files import Hdf5File, open_hdf5
from sightline.data.store.prepared_writer import SampleRow, Shard
from sightline.errors import DataError

__all__ = ["hdf5_files", "hdf5_parts"]

_KEYS = ("data", "label", "pid")
_WHAT = "a file of ShapeNetPart"


def hdf5_files(root: Path, split: str) -> list[Path]:
    """List the files of a split, those with the release's word for it in their names, sorted by number."""
    return sorted(root.glob(f"*{SPLITS[split]}*.h5"), key=lambda path: natural_sort_key(path.name))


def hdf5_parts(root: Path) -> list[Shard]:
    """List the shards of the release, one per file; shapes are not read yet. Raises DataError with file and key."""
    all_categories, parts = categories(), []
    for split in SPLITS:
        files = hdf5_files(root, split)
        if not files:
            raise DataError(f"{root}: holds no *{SPLITS[split]}*.h5, the {split} split; unpack the release again")
        _assert_no_gap(files)
        for path in files:
            num_shapes, num_points = _scan(path, len(all_categories))
            parts.append(
                Shard(split, path.name, num_shapes, (path,), _Rows(path, all_categories), num_shapes * num_points)
            )
    return parts


def _assert_no_gap(files: list[Path]) -> None:
    """Raise DataError if the numbers in the file names of a split leave one out."""
    matches = [re.search(r"(\d+)\.h5$", path.name) for path in files]
    if len(files) == 1 and matches[0] is None:
        return
    numbers = [int(number[1]) if number else -1 for number in matches]
    if numbers != list(range(len(files))):
        gap = next(number for number in range(len(files)) if number not in numbers)
        stem = files[0].name[: matches[0].start(1)] if matches[0] else files[0].stem
        raise DataError(
            f"{files[0].parent / f'{stem}{gap}.h5'}: is missing, there are {', '.join(path.name for path in files)}; "
            "unpack the release again"
        )


class _Arrays(NamedTuple):
    data: Any
    label: Any
    pid: Any


def _read_arrays(path: Path, file: Hdf5File) -> _Arrays:
    """Return the three data sets of a file after a check of shapes and types. Raises DataError naming the key."""
    arrays = _Arrays(*(file.array(key) for key in _KEYS))
    data, label, pid = arrays
    if data.ndim != 3 or data.shape[2] != 3 or data.dtype.kind != "f" or 0 in data.shape:
        raise DataError(f"{path}: 'data' is {data.dtype} {data.shape}, floats (shapes, points, 3) are needed")
    if label.shape not in {data.shape[:1], (len(data), 1)} or label.dtype.kind not in "iu":
        raise DataError(f"{path}: 'label' is {label.dtype} {label.shape}, integers ({len(data)}, 1) are needed")
    if pid.shape != data.shape[:2] or pid.dtype.kind not in "iu":
        raise DataError(f"{path}: 'pid' is {pid.dtype} {pid.shape}, integers {data.shape[:2]} are needed")
    return arrays


def _scan(path: Path, num_categories: int) -> tuple[int, int]:
    """Read the numbers of shapes and points of a file. Raises DataError for wrong keys and labels out of range."""
    with open_hdf5(path, what=_WHAT) as file:
        arrays = _read_arrays(path, file)
        labels = arrays.label[...].reshape(-1)
        invalid = np.flatnonzero((labels < 0) | (labels >= num_categories))
        if len(invalid):
            raise DataError(
                f"{path}: label[{invalid[0]}] is {labels[invalid[0]]}, there are {num_categories} categories (0 to "
                f"{num_categories - 1}); download the file again"
            )
        return arrays.data.shape[:2]


@dataclass(frozen=True)
class _Rows:
    path: Path
    known: tuple[Category, ...]

    def __call__(self) -> Iterator[SampleRow]:
        with open_hdf5(self.path, what=_WHAT) as file:
            points, labels, parts = (array[...] for array in _read_arrays(self.path, file))

        def row(index: int, label: int) -> SampleRow:
            where = f"{self.path}: shape {index}"
            _assert_finite(points[index], where)
            values = row_values(
                self.known[label],
                points=points[index],
                normals=None,
                parts=parts[index],
                where=where,
                place_of=lambda point: f"{self.path}: pid[{index}, {point}]",
            )
            return SampleRow(f"{self.path.stem}/{index:04d}", where, values)

        return map(row, range(len(points)), labels.reshape(-1).tolist())


def _assert_finite(points: np.ndarray, where: str) -> None:
    """Raise DataError naming the first coordinate that is not finite."""
    is_finite = np.isfinite(points)
    if not is_finite.all():
        point, axis = np.argwhere(~is_finite)[0]
        raise DataError(f"{where}: data[{point}, {axis}] is {points[point, axis]}; download the file again")
