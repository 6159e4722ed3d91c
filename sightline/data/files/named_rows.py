"""Text files of lines `name number number ...`: all names are read, numbers in blocks, to save memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sightline.data.files.text_tables import parse_rows
from sightline.errors import DataError

__all__ = ["BLOCK_LINES", "LabelLines"]

BLOCK_LINES = 1000
"""Number of lines per block."""


class LabelLines:
    """Lines of a file, except empty ones at the end. Raises DataError with the line for other empty lines."""

    def __init__(self, path: Path, *, num_columns: int) -> None:
        self.path = path
        self.num_columns = num_columns
        self.names: list[str] = []
        self._starts: list[int] = []
        self._scan()

    def __len__(self) -> int:
        return len(self.names)

    def rows(self, first: int, count: int) -> np.ndarray:
        """Read the numbers (count, num_columns) float64 after the names; `first` is a multiple of `BLOCK_LINES`.

        Raises DataError with the line for another count of numbers, or a token that is not a number.
        """
        assert first % BLOCK_LINES == 0, f"blocks begin at multiples of {BLOCK_LINES}, not at {first}"
        with self.path.open("rb") as file:
            file.seek(self._starts[first // BLOCK_LINES])
            lines = [file.readline().decode("latin-1") for _ in range(count)]
        numbers = [line.partition(line.split(None, 1)[0])[2].strip() for line in lines]
        line_numbers = range(first + 1, first + count + 1)
        return parse_rows(numbers, line_numbers, path=self.path, num_columns=self.num_columns)

    def _scan(self) -> None:
        """Read the names, and the byte at which every block begins."""
        position, first_empty = 0, 0
        try:
            with self.path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    fields = line.split(None, 1)
                    if fields and first_empty:
                        raise DataError(
                            f"{self.path}:{first_empty}: is empty, a name and numbers are needed; mend the file"
                        )
                    if not fields:
                        first_empty = first_empty or number
                    else:
                        if len(self.names) % BLOCK_LINES == 0:
                            self._starts.append(position)
                        self.names.append(fields[0].decode("latin-1"))
                    position += len(line)
        except OSError as error:
            raise DataError(
                f"{self.path}: cannot be read ({error.strerror}); check the file and its permissions"
            ) from error
        if not self.names:
            raise DataError(f"{self.path}: holds no lines; the file is damaged or in another format")
