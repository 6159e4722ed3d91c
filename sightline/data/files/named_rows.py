"""Text files of lines `name number number ...`: names at once, numbers by blocks, so that a million need no room."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sightline.data.files.text_tables import parse_rows
from sightline.errors import DataError

__all__ = ["BLOCK_LINES", "LabelLines"]

BLOCK_LINES = 1000
"""How many lines are read together."""


class LabelLines:
    """The lines of a file; empty ones at its end are none. Raises DataError with the line for empty ones before it."""

    def __init__(self, path: Path, *, num_columns: int) -> None:
        self.path = path
        self.num_columns = num_columns
        self.names: list[str] = []
        self._starts: list[int] = []
        self._scan()

    def __len__(self) -> int:
        return len(self.names)

    def rows(self, first: int, count: int) -> np.ndarray:
        """The numbers (count, num_columns) float64 behind the names; `first` is a multiple of `BLOCK_LINES`.

        Raises DataError with the line for one that has another number of them, or something that is no number.
        """
        assert first % BLOCK_LINES == 0, f"blocks begin at multiples of {BLOCK_LINES}, not at {first}"
        with self.path.open("rb") as file:
            file.seek(self._starts[first // BLOCK_LINES])
            lines = [file.readline().decode("latin-1") for _ in range(count)]
        numbers = [line.partition(line.split(None, 1)[0])[2].strip() for line in lines]
        where = range(first + 1, first + count + 1)
        return parse_rows(numbers, where, path=self.path, num_columns=self.num_columns)

    def _scan(self) -> None:
        place, empty = 0, 0
        try:
            with self.path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    words = line.split(None, 1)
                    if words and empty:
                        raise DataError(f"{self.path}:{empty}: is empty, a name and numbers are needed; mend the file")
                    if not words:
                        empty = empty or number
                    else:
                        if len(self.names) % BLOCK_LINES == 0:
                            self._starts.append(place)
                        self.names.append(words[0].decode("latin-1"))
                    place += len(line)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror}); get the data again") from error
        if not self.names:
            raise DataError(f"{self.path}: holds no lines; get the file again")
