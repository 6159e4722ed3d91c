"""ShapeNetPart as HDF5 files of many shapes each."""

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
    """The files of a split by their numbers: those whose names hold the release's word for it."""
    return sorted(root.glob(f"*{SPLITS[split]}*.h5"), key=lambda path: natural_sort_key(path.name))


def hdf5_parts(root: Path) -> list[Shard]:
    """The parts of the release, one per file. Raises DataError naming file and key; shapes are not yet read."""
    known, parts = categories(), []
    for split in SPLITS:
        files = hdf5_files(root, split)
        if not files:
            raise DataError(f"{root}: holds no *{SPLITS[split]}*.h5, the {split} split; unpack the release again")
        _assert_no_gap(files)
        for path in files:
            num_shapes, num_points = _scan(path, len(known))
            parts.append(Shard(split, path.name, num_shapes, (path,), _Rows(path, known), num_shapes * num_points))
    return parts


def _assert_no_gap(files: list[Path]) -> None:
    """Raises DataError where the numbers in the names of a split's files leave one out."""
    numbers = [re.search(r"(\d+)\.h5$", path.name) for path in files]
    if len(files) == 1 and numbers[0] is None:
        return
    found = [int(number[1]) if number else -1 for number in numbers]
    if found != list(range(len(files))):
        gap = next(number for number in range(len(files)) if number not in found)
        stem = files[0].name[: numbers[0].start(1)] if numbers[0] else files[0].stem
        raise DataError(
            f"{files[0].parent / f'{stem}{gap}.h5'}: is missing, there are {', '.join(path.name for path in files)}; "
            "unpack the release again"
        )


class _Arrays(NamedTuple):
    data: Any
    label: Any
    pid: Any


def _checked(path: Path, file: Hdf5File) -> _Arrays:
    """The three data sets of a file, whose shapes and types agree. Raises DataError naming the key."""
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
    """Shapes and points of a file. Raises DataError for keys that are missing or wrong and labels out of range."""
    with open_hdf5(path, what=_WHAT) as file:
        arrays = _checked(path, file)
        labels = arrays.label[...].reshape(-1)
        wrong = np.flatnonzero((labels < 0) | (labels >= num_categories))
        if len(wrong):
            raise DataError(
                f"{path}: label[{wrong[0]}] is {labels[wrong[0]]}, there are {num_categories} categories "
                f"(0 to {num_categories - 1}); get the file again"
            )
        return arrays.data.shape[:2]


@dataclass(frozen=True)
class _Rows:
    path: Path
    known: tuple[Category, ...]

    def __call__(self) -> Iterator[SampleRow]:
        with open_hdf5(self.path, what=_WHAT) as file:
            points, labels, parts = (array[...] for array in _checked(self.path, file))

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
    is_finite = np.isfinite(points)
    if not is_finite.all():
        point, axis = np.argwhere(~is_finite)[0]
        raise DataError(f"{where}: data[{point}, {axis}] is {points[point, axis]}; get the file again")
