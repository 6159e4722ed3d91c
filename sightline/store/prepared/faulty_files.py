"""Faulty source files of a preparation: collected in one pass, a few printed, all listed in a file."""

from __future__ import annotations

import contextlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from sightline.contract.errors import DataError
from sightline.store.prepared.columns import SampleRow

_MAX_PRINTED = 8
"""Maximum number of printed faults; with the line before and the line after them ten lines."""
_MAX_ALIKE = 4
"""Maximum number of files with faults of one kind that are all printed."""
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
        """Raise DataError with every fault: a single one unchanged, several below a line that counts them.

        Faults that differ in names and numbers alone are one line, with their number and the first file, if they are
        many.
        """
        self.report.unlink(missing_ok=True)
        if self._last is None:
            return
        if len(self._faults) == 1:
            raise self._last
        lines = self._group()
        remainder = [f"and {len(lines) - _MAX_PRINTED} more"] if len(lines) > _MAX_PRINTED + 1 else []
        lines = lines[:_MAX_PRINTED] if remainder else lines
        if len(lines) < len(self._faults):
            with contextlib.suppress(OSError):
                self.report.write_text(
                    "".join(f"{line}\n" for line in self._faults), encoding="utf-8", errors="replace"
                )
                remainder.append(f"all are in {self.report}")
        head = f"{len(self._faults)} of {num_rows} samples cannot be used; mend their files, or leave them out:"
        raise DataError.from_lines([head, *lines, *(["; ".join(remainder)] if remainder else [])])

    def _group(self) -> list[str]:
        """List the faults in order, those of many files as one: `8 files: <reason of the first>; first: <its path>`."""
        files_by_kind: defaultdict[str, set[str]] = defaultdict(set)
        for fault in self._faults:
            files_by_kind[_describe_kind(fault)].add(fault.partition(": ")[0])
        lines: dict[str, str] = {}
        for fault in self._faults:
            file, _, reason = fault.partition(": ")
            kind = _describe_kind(fault)
            if len(files_by_kind[kind]) > _MAX_ALIKE:
                lines.setdefault(kind, f"{len(files_by_kind[kind])} files: {reason}; first: {file}")
            else:
                lines[fault] = fault
        return [*lines.values()]


def _describe_kind(fault: str) -> str:
    """Return the reason of a fault without what differs from file to file: its name and numbers."""
    file, _, reason = (re.sub(r"\d+([.,]\d+)*", "0", part) for part in fault.partition(": "))
    return re.sub(rf"\b{re.escape(Path(file).stem)}\b", "0", reason)
