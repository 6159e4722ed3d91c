"""Faulty source files of a preparation: collected in one pass, a few printed, all listed in a file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from sightline.contract.errors import DataError
from sightline.store.prepared.columns import SampleRow

_MAX_PRINTED = 8
"""Maximum number of printed faults; with the line before and the line after them ten lines."""
_MAX_FAULTS = 10_000


class FaultCollector:
    """Collector of the errors of reading a set's rows; `report` is the file that lists all if there are many."""

    def __init__(self, target: Path) -> None:
        self.report = target.with_name(f"{target.name}.unusable.txt")
        self._faults: list[str] = []
        self._last: DataError | None = None

    def __bool__(self) -> bool:
        return bool(self._faults)

    def skip_unusable(self, begin: Callable[[], Iterator[SampleRow]]) -> Iterator[SampleRow]:
        """Iterate over the readable rows of `begin()` and collect the errors of the others.

        Reading goes on after an error if the iterator does: a `map` does, a generator does not.
        """
        try:
            rows = begin()
        except DataError as error:
            self.add(error)
            return
        while len(self._faults) < _MAX_FAULTS:
            try:
                yield next(rows)
            except StopIteration:
                return
            except DataError as error:
                self.add(error)

    def add(self, error: DataError) -> None:
        """Add the fault of one more file or shard."""
        self._faults.append(str(error))
        self._last = error

    def raise_any(self, num_rows: int) -> None:
        """Raise DataError with every fault: a single one unchanged, several below a line that counts them."""
        self.report.unlink(missing_ok=True)
        if self._last is None:
            return
        if len(self._faults) == 1:
            raise self._last
        lines = [f"{len(self._faults)} of {num_rows} samples cannot be used; mend their files, or leave them out:"]
        lines += self._faults[:_MAX_PRINTED]
        if len(self._faults) > _MAX_PRINTED:
            lines.append(f"and {len(self._faults) - _MAX_PRINTED} more")
            with contextlib.suppress(OSError):
                text = "".join(f"{line}\n" for line in self._faults)
                self.report.write_text(text, encoding="utf-8", errors="replace")
                lines[-1] += f"; all are in {self.report}"
        raise DataError.from_lines(lines)
