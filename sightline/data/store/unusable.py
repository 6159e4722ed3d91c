"""The files of a source that cannot be used: found in one pass, a few printed, all of them in a file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from sightline.data.store.columns import SampleRow
from sightline.errors import DataError

__all__ = ["FaultCollector"]

_MOST_PRINTED = 8
"""Faults, which with the line above them and the one below are ten lines."""
_MOST_FOUND = 10_000


class FaultCollector:
    """Collects what reading a set's rows raises; `report` is the file that lists all of it where it is much."""

    def __init__(self, target: Path) -> None:
        self.report = target.with_name(f"{target.name}.unusable.txt")
        self._faults: list[str] = []
        self._last: DataError | None = None

    def __bool__(self) -> bool:
        return bool(self._faults)

    def skip_unusable(self, begin: Callable[[], Iterator[SampleRow]]) -> Iterator[SampleRow]:
        """The rows that can be read, of those that `begin` gives; where the iterator goes on after an error, a `map`
        does and a generator does not, so does this.
        """
        try:
            rows = begin()
        except DataError as error:
            self.add(error)
            return
        while len(self._faults) < _MOST_FOUND:
            try:
                yield next(rows)
            except StopIteration:
                return
            except DataError as error:
                self.add(error)

    def add(self, error: DataError) -> None:
        """One more file, or part of a set, that cannot be used."""
        self._faults.append(str(error))
        self._last = error

    def raise_any(self, num_rows: int) -> None:
        """Raises DataError with every fault: one as it is, more below a line that counts them."""
        self.report.unlink(missing_ok=True)
        if self._last is None:
            return
        if len(self._faults) == 1:
            raise self._last
        listed, rest = self._faults, ""
        if len(listed) > _MOST_PRINTED + 1:
            listed, rest = listed[:_MOST_PRINTED], f"and {len(listed) - _MOST_PRINTED} more"
            with contextlib.suppress(OSError):
                self.report.write_text(
                    "".join(f"{line}\n" for line in self._faults), encoding="utf-8", errors="replace"
                )
                rest += f"; all are in {self.report}"
        head = f"{len(self._faults)} of {num_rows} samples cannot be used; mend their files, or leave them out:"
        raise DataError.from_lines([head, *listed, *([rest] if rest else [])])
