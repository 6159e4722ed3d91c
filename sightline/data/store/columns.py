"""The columns of a split on their way to the disk: rows of one shape have their place, ragged rows are appended.

A ragged column holds the elements (points) of all rows one after another; all ragged columns of a set are equally long
in every row, and `<split>.offsets.npy` holds the start of each row.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sightline.errors import DataError, RunError

__all__ = ["OFFSETS", "ColumnSpec", "SampleRow", "SplitWriter"]

OFFSETS = "offsets"
"""In the place of a column's name: where the rows of the ragged columns start, and where the last one ends."""
_BLOCK_BYTES = 2**24


class ColumnSpec(NamedTuple):
    """One array of the native form: the shape of a row and the type of its numbers.

    In a ragged column a row has any number of elements, and `shape` is that of an element; a row without any is refused
    unless `can_be_empty`, which all ragged columns of a set have in common.
    """

    shape: tuple[int, ...]
    dtype: str
    is_ragged: bool = False
    can_be_empty: bool = False

    @property
    def num_bytes(self) -> int:
        """Of a row, or of an element where rows are ragged."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


class SampleRow(NamedTuple):
    """One sample on its way in: its name, where it was read (for errors), a value per column, files listed in place."""

    name: str
    where: str
    values: Mapping[str, Any]
    files: tuple[Path, ...] = ()


class SplitWriter:
    """Puts rows into the array files of a split, in order, over what an earlier run may have left there.

    Rows come in stretches: each is either kept as it lies in the files (`keep`), or begun and `put` row by row.
    `lengths` and `checksums` are those of the stretch at hand. A context: leaving it closes the files.
    """

    def __init__(self, folder: Path, split: str, num_rows: int, columns: Mapping[str, ColumnSpec]) -> None:
        assert OFFSETS not in columns, f"'{OFFSETS}' cannot be the name of a column"
        self._columns = columns
        self._offsets = np.zeros(num_rows + 1, dtype=np.int64)
        self._offsets_path = folder / f"{split}.{OFFSETS}.npy"
        paths = {name: folder / f"{split}.{name}.npy" for name in columns}
        self._ragged = {name: _Appended(paths[name], each) for name, each in columns.items() if each.is_ragged}
        self._fixed = {
            name: _open_array(paths[name], (num_rows, *each.shape), each.dtype)
            for name, each in columns.items()
            if not each.is_ragged
        }
        self._start = self._row = 0

    def __enter__(self) -> SplitWriter:
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._ragged.values():
            file.close()

    def begin(self) -> None:
        """A stretch of rows begins at the next row."""
        self._start = self._row
        for file in self._ragged.values():
            file.cut(int(self._offsets[self._row]))

    def put(self, row: SampleRow) -> None:
        """Write the next row. Raises DataError for values that do not fit or are not finite; RunError for no room."""
        values = {name: _sound(row, name, column) for name, column in self._columns.items()}
        lengths = {len(values[name]) for name in self._ragged}
        assert len(lengths) < 2, f"{row.where}: ragged columns of {sorted(lengths)} elements"
        for name, array in self._fixed.items():
            array[self._row] = values[name]
        for name, file in self._ragged.items():
            file.append(values[name])
        self._row += 1
        self._offsets[self._row] = self._offsets[self._row - 1] + max(lengths, default=0)

    def lengths(self) -> list[int] | None:
        """How many elements each row of the stretch has; None where no column is ragged."""
        return np.diff(self._offsets[self._start : self._row + 1]).tolist() if self._ragged else None

    def checksums(self) -> dict[str, int]:
        """The CRC-32 of what was put into the files in this stretch, by column."""
        return self._of_fixed(self._row) | {name: file.checksum_put() for name, file in self._ragged.items()}

    def keep(self, num_rows: int, lengths: Sequence[int] | None, checksums: Mapping[str, int]) -> bool:
        """Whether the files hold the next rows as an earlier run noted them; if they do, those rows are passed over."""
        self._start = self._row
        if (lengths is not None) != bool(self._ragged) or len(lengths or []) not in (0, num_rows):
            return False
        first, count = int(self._offsets[self._row]), sum(lengths or [])
        ragged = {name: file.checksum(first, count) for name, file in self._ragged.items()}
        if self._of_fixed(self._row + num_rows) | ragged != checksums:
            return False
        begin, end = self._row, self._row + num_rows
        if lengths is not None:
            self._offsets[begin + 1 : end + 1] = self._offsets[begin] + np.cumsum(lengths, dtype=np.int64)
        self._row = end
        return True

    def finish(self) -> int:
        """Seal the files, once every row is there; returns the number of elements of the ragged columns, 0 without."""
        assert self._row == len(self._offsets) - 1, f"{self._row} of {len(self._offsets) - 1} rows were written"
        for array in self._fixed.values():
            array.flush()
        for file in self._ragged.values():
            file.finish(int(self._offsets[-1]))
        if self._ragged:
            np.save(self._offsets_path, self._offsets)
        return int(self._offsets[-1])

    def _of_fixed(self, end: int) -> dict[str, int]:
        return {name: zlib.crc32(array[self._start : end].data) for name, array in self._fixed.items()}


class _Appended:
    """The file of a ragged column: elements are added at its end, its header counts them when it is finished."""

    def __init__(self, path: Path, column: ColumnSpec) -> None:
        self._path = path
        self._column = column
        self._header_bytes = len(self._header(0))
        self._checksum_put = 0
        if not path.exists():
            path.touch()
        self._file = path.open("r+b")

    def cut(self, num_elements: int) -> None:
        """Leave the first elements, which are there, and go on behind them."""
        self._file.truncate(self._place(num_elements))
        self._file.seek(self._place(num_elements))
        self._checksum_put = 0

    def append(self, values: np.ndarray) -> None:
        with self._writing():
            self._file.write(values.data)
        self._checksum_put = zlib.crc32(values.data, self._checksum_put)

    def checksum_put(self) -> int:
        """The CRC-32 of what was appended since the last cut. It is in the file, and not in a buffer, after this."""
        with self._writing():
            self._file.flush()
        return self._checksum_put

    def checksum(self, first: int, count: int) -> int:
        """The CRC-32 of `count` elements from the `first` on, or of as many as there are."""
        self._file.seek(self._place(first))
        left, checksum = count * self._column.num_bytes, 0
        while left and (block := self._file.read(min(left, _BLOCK_BYTES))):
            checksum = zlib.crc32(block, checksum)
            left -= len(block)
        return checksum

    def finish(self, num_elements: int) -> None:
        with self._writing():
            self._file.truncate(self._place(num_elements))
            self._file.seek(0)
            self._file.write(self._header(num_elements))
            self._file.flush()

    def close(self) -> None:
        with self._writing():
            self._file.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(
                f"{self._path}: cannot be written ({error.strerror}); make room and run the command again, which goes "
                "on where this one stopped"
            ) from error

    def _place(self, element: int) -> int:
        return self._header_bytes + element * self._column.num_bytes

    def _header(self, num_elements: int) -> bytes:
        """As numpy.save writes it, with room for any number of rows: so its length does not depend on theirs."""
        header = io.BytesIO()
        descr = np.lib.format.dtype_to_descr(np.dtype(self._column.dtype))
        shape = (num_elements, *self._column.shape)
        np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": shape})
        return header.getvalue()


def _sound(row: SampleRow, name: str, column: ColumnSpec) -> np.ndarray:
    with np.errstate(over="ignore"):  # what is too large for the column becomes infinite, and is refused below
        value = np.asarray(row.values[name]).astype(column.dtype, order="C", copy=False)
    if column.is_ragged:
        is_empty = len(value) == 0 and not column.can_be_empty
        if value.ndim != 1 + len(column.shape) or value.shape[1:] != column.shape or is_empty:
            wanted = " ".join(map(str, column.shape))
            least = "" if column.can_be_empty else " with at least one point"
            raise DataError(
                f"{row.where}: {name} has the shape {value.shape}, (points{wanted and f', {wanted}'}){least} is needed"
            )
    elif value.shape != column.shape:
        raise DataError(
            f"{row.where}: {name} has the shape {value.shape}, {column.shape} is needed as in the first file"
        )
    is_finite = np.isfinite(value)
    if not is_finite.all():
        place = tuple(int(i) for i in np.argwhere(~is_finite)[0])
        raise DataError(f"{row.where}: {name}{list(place)} is {value[place]}; mend the file or leave the shape out")
    return value


def _open_array(path: Path, shape: tuple[int, ...], dtype: str) -> np.memmap:
    """The array file, as an earlier run left it if that is sound, else new."""
    try:
        array = np.lib.format.open_memmap(path, mode="r+")
        if (array.shape, array.dtype) == (shape, np.dtype(dtype)):
            return array
    except (OSError, ValueError):
        pass
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
