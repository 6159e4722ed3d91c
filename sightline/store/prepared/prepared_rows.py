"""Bases of the sets whose samples are rows of a prepared folder, or whole rows of its columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from sightline.contract.types import Field, Sample, SampleKey
from sightline.store.prepared.prepared_data import PreparedData


class PreparedRows(PreparedData):
    """Base of a set that keeps the stored split and row of every sample as `_rows`.

    With `repeats` an epoch visits every row so often, with different random numbers: sample i is row i modulo their
    number.
    """

    repeats: int = 1
    _rows: Sequence[tuple[str, int]]

    def __len__(self) -> int:
        return len(self._rows) * self.repeats

    def sample_name(self, index: int) -> str:
        """Name of a sample in reports."""
        return self._prepared.name(*self._rows[index % len(self._rows)])

    def _locate(self, index: int) -> tuple[str, int]:
        """Return the stored split and row of a sample. Raises IndexError for an index out of range."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.set_name} has the samples 0 to {len(self) - 1}, asked for {index}")
        return self._rows[index % len(self._rows)]

    def _describe_sample(self, index: int) -> str:
        """Return root, stored split and name of a sample, for error messages."""
        return f"{self._prepared.root}: {self._rows[index % len(self._rows)][0]}/{self.sample_name(index)}"

    def _list_stored_rows(self) -> list[tuple[str, int]]:
        return [*self._rows] * self.repeats


class SampleColumn(NamedTuple):
    """Field of a sample, the column that it is read from, and what `convert` makes of a row.

    `convert` also gets a function that returns the location of the row, for errors.
    """

    stored: str
    field: Field
    convert: Callable[[np.ndarray, Callable[[], str]], np.ndarray] | None = None


class WholeRows(PreparedRows):
    """Base of a set whose samples are whole rows of the columns that the table `_columns` names; pure."""

    _columns: Mapping[str, SampleColumn]

    def __getitem__(self, key: SampleKey) -> Sample:
        """Read one whole row as new tensors. Raises IndexError for an index out of range."""
        stored, row = self._locate(key.index)
        sample: Sample = {}
        for name, column in self._columns.items():
            values = self._prepared.row(stored, column.stored, row)
            if column.convert is not None:
                values = column.convert(values, partial(self._describe_sample, key.index))
            sample[name] = torch.from_numpy(np.array(values, dtype=column.field.dtype))
        return sample
