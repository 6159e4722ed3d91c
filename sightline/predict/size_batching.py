"""Batching of files that are read one by one: files of equal shape wait for one another."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence

from sightline.predict.predictor import ReadFile

__all__ = ["SizeBatcher"]

_MAX_WAITING_BATCHES = 8
"""Maximum number of waiting files of all kinds, in batches."""
_MAX_SIZE = 2**18
"""Maximum size of a batch, regardless of the batch size, unless a single file is larger; twice as much may wait."""


class SizeBatcher:
    """Files that wait for others of their kind, until there are `batch_size` of them or they are large enough."""

    def __init__(
        self, batch_size: int, *, kind_of: Callable[[ReadFile], Hashable], size_of: Callable[[ReadFile], int]
    ) -> None:
        self.batch_size = batch_size
        self._groups: dict[Hashable, list[ReadFile]] = {}
        self._kind_of = kind_of
        self._size_of = size_of

    def add(self, file: ReadFile) -> Iterator[list[ReadFile]]:
        """Add a file; yield batches that are full, or would be too large, or the largest if too many files wait."""
        kind = self._kind_of(file)
        if self._size(self._groups.get(kind, [])) + self._size_of(file) > _MAX_SIZE and kind in self._groups:
            yield self._groups.pop(kind)
        group = self._groups.setdefault(kind, [])
        group.append(file)
        if len(group) >= self.batch_size or self._size(group) >= _MAX_SIZE:
            yield self._groups.pop(kind)
        waiting = [waiting_file for group in self._groups.values() for waiting_file in group]
        if len(waiting) >= _MAX_WAITING_BATCHES * self.batch_size or self._size(waiting) > 2 * _MAX_SIZE:
            yield self._groups.pop(max(self._groups, key=lambda kind: len(self._groups[kind])))

    def flush(self) -> Iterator[list[ReadFile]]:
        """Yield every remaining batch, full or not."""
        while self._groups:
            yield self._groups.pop(next(iter(self._groups)))

    def _size(self, files: Sequence[ReadFile]) -> int:
        return sum(map(self._size_of, files))
