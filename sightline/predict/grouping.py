"""Files that are read one by one and answered several at once: which of them wait for one another."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from sightline.errors import DataError, UserError, in_one_line
from sightline.predict.answers import Refusal

__all__ = ["Reading", "Waiting", "answer_each"]

Read = TypeVar("Read")
_UNREAD = (ValueError, OSError, MemoryError, EOFError, ArithmeticError, zlib.error, zipfile.BadZipFile)
"""What a reader raises that has overlooked something in a file: it must not end the prediction of the others."""


class Reading(Protocol[Read]):
    """Reads a file, and answers for files that were read."""

    def read(self, path: Path) -> Read:
        """Raises DataError for a file that cannot be predicted."""
        ...

    def __call__(self, files: Sequence[Read], /) -> dict[Path, Any | Refusal]: ...


class Waiting(Generic[Read]):
    """Files that wait for others which can go through a model with them: of their kind, `batch_size` at most.

    No group is larger than `most_at_once`, in the sizes of `size_of`, unless it is a single file; all that wait are not
    larger than twice as much, nor than `most_batches` batches.
    """

    def __init__(
        self,
        batch_size: int,
        *,
        kind_of: Callable[[Read], Hashable],
        size_of: Callable[[Read], int],
        most_at_once: int,
        most_batches: int,
    ) -> None:
        self.batch_size = batch_size
        self.most_at_once = most_at_once
        self.most_batches = most_batches
        self.groups: dict[Hashable, list[Read]] = {}
        self._kind_of = kind_of
        self._size_of = size_of

    def add(self, file: Read) -> Iterator[list[Read]]:
        """Groups that are full with this file, or would be too large, or the largest where too many files wait."""
        kind = self._kind_of(file)
        if self._size(self.groups.get(kind, [])) + self._size_of(file) > self.most_at_once and kind in self.groups:
            yield self.groups.pop(kind)
        group = self.groups.setdefault(kind, [])
        group.append(file)
        if len(group) >= self.batch_size or self._size(group) >= self.most_at_once:
            yield self.groups.pop(kind)
        waiting = [each for group in self.groups.values() for each in group]
        if len(waiting) >= self.most_batches * self.batch_size or self._size(waiting) > 2 * self.most_at_once:
            yield self.groups.pop(max(self.groups, key=lambda kind: len(self.groups[kind])))

    def rest(self) -> Iterator[list[Read]]:
        """Every group, full or not."""
        while self.groups:
            yield self.groups.pop(next(iter(self.groups)))

    def _size(self, files: Sequence[Read]) -> int:
        return sum(map(self._size_of, files))


def answer_each(
    files: Iterable[Path], reading: Reading[Read], waiting: Waiting[Read]
) -> Iterator[tuple[Path, Any | Refusal]]:
    """Files and their answers as they come; one that cannot be read is refused with its reason."""
    for path in files:
        try:
            file = reading.read(path)
        except DataError as error:
            yield path, Refusal(path, str(error))
            continue
        except UserError:
            raise  # of what was asked for, not of the file
        except _UNREAD as error:
            told = f"{path}: cannot be read ({type(error).__name__}: {error}); get the file again"
            yield path, Refusal(path, in_one_line(told))
            continue
        for group in waiting.add(file):
            yield from reading(group).items()
            group.clear()  # or its files would be held beside the next one
        del file
    for group in waiting.rest():
        yield from reading(group).items()
        group.clear()
