"""Array files of the columns of a split while they are written: rows are appended, headers are completed at the end.

A ragged column contains the elements (points) of all rows, concatenated; all ragged columns of a set have the same
number of elements in a row, and `<split>.offsets.npy` contains the start of each row.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sightline.contract.errors import DataError

OFFSETS = "offsets"
"""File name part, in place of a column's name, of the row starts (and the last end) of the ragged columns."""


class ColumnSpec(NamedTuple):
    """Specification of one array of the native form: the shape of a row and the dtype.

    In a ragged column a row has any number of elements, and `shape` is that of an element; an empty row is refused
    unless `can_be_empty`, which is the same for all ragged columns of a set.
    """

    shape: tuple[int, ...]
    dtype: str
    is_ragged: bool = False
    can_be_empty: bool = False

    @property
    def num_bytes(self) -> int:
        """Size in bytes of a row, or of an element if rows are ragged."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


class ColumnForm(NamedTuple):
    """Form that a reader expects of a stored column: length of the last axis (None for a number), and NumPy kinds."""

    width: int | None
    kinds: str

    def fits(self, shape: Sequence[int], dtype: str) -> bool:
        """Return True if a column with rows, or elements, of this shape and dtype has the form."""
        is_as_wide = not shape if self.width is None else list(shape[-1:]) == [self.width]
        return is_as_wide and np.dtype(dtype).kind in self.kinds


VECTORS, BOXES, CLASSES = ColumnForm(3, "f"), ColumnForm(4, "f"), ColumnForm(None, "iu")


class SampleRow(NamedTuple):
    """One sample to be written: name, location for errors, a value per column, and the files to list in place.

    `notes` state how its file was read where that is not plain; they are among the `differences` of the manifest.
    `content` is a digest of what identifies the sample, "" if nothing does; by default of a column, or of its file.
    """

    name: str
    where: str
    values: Mapping[str, Any]
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    content: str | None = None


class SplitWriter:
    """Writer of the array files of a split, row by row; a context manager, which closes the files."""

    def __init__(self, folder: Path, split: str, num_rows: int, columns: Mapping[str, ColumnSpec]) -> None:
        assert OFFSETS not in columns, f"'{OFFSETS}' cannot be the name of a column"
        self._is_ragged = any(column.is_ragged for column in columns.values())
        self._offsets = np.zeros(num_rows + 1, dtype=np.int64)
        self._offsets_path = folder / f"{split}.{OFFSETS}.npy"
        self.columns = dict(columns)
        self._files = {name: (folder / f"{split}.{name}.npy").open("xb") for name in columns}
        for name, file in self._files.items():
            file.write(_make_header(columns[name], 0))
        self._row = 0

    def __enter__(self) -> SplitWriter:
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files.values():
            file.close()

    def put(self, row: SampleRow) -> None:
        """Write the next row. Raises DataError for values of another shape or not finite."""
        values = {name: _check_value(row, name, column) for name, column in self.columns.items()}
        lengths = {len(values[name]) for name, column in self.columns.items() if column.is_ragged}
        assert len(lengths) < 2, f"{row.where}: ragged columns of {sorted(lengths)} elements"
        for name, file in self._files.items():
            file.write(values[name].reshape(-1).data)
        self._row += 1
        self._offsets[self._row] = self._offsets[self._row - 1] + max(lengths, default=0)

    def finish(self) -> int:
        """Complete the headers after the last row; return the number of elements of ragged columns, 0 without any."""
        assert self._row == len(self._offsets) - 1, f"{self._row} of {len(self._offsets) - 1} rows were written"
        for name, file in self._files.items():
            column = self.columns[name]
            file.seek(0)
            file.write(_make_header(column, int(self._offsets[-1]) if column.is_ragged else self._row))
            file.flush()
        if self._is_ragged:
            np.save(self._offsets_path, self._offsets)
        return int(self._offsets[-1])


def _make_header(column: ColumnSpec, num_elements: int) -> bytes:
    """Make the header that numpy.save writes, of the same length for any number of rows."""
    header = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(np.dtype(column.dtype))
    shape = (num_elements, *column.shape)
    np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": shape})
    return header.getvalue()


def _check_value(row: SampleRow, name: str, column: ColumnSpec) -> np.ndarray:
    """Convert the value of a column to its dtype. Raises DataError for another shape or a number that is not finite."""
    value = np.asarray(row.values[name])
    if value.dtype != column.dtype or not value.flags.c_contiguous:
        with np.errstate(over="ignore"):  # values too large for the column become infinite, and are refused below
            value = value.astype(column.dtype, order="C", copy=False)
    if column.is_ragged:
        is_empty = len(value) == 0 and not column.can_be_empty
        if value.ndim != 1 + len(column.shape) or value.shape[1:] != column.shape or is_empty:
            expected = " ".join(map(str, column.shape))
            minimum = "" if column.can_be_empty else " with at least one point"
            raise DataError(
                f"{row.where}: {name} has the shape {value.shape}, (points{expected and f', {expected}'}){minimum} "
                "is needed"
            )
    elif value.shape != column.shape:
        raise DataError(
            f"{row.where}: {name} has the shape {value.shape}, {column.shape} is needed as in the first file"
        )
    if value.dtype.kind == "f" and not (is_finite := np.isfinite(value)).all():
        position = tuple(int(i) for i in np.argwhere(~is_finite)[0])
        raise DataError(
            f"{row.where}: {name}{list(position)} is {value[position]}; mend the file or leave the shape out"
        )
    return value
