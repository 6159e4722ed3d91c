"""Class ids of YOLO text files: they count from 0, and those of some tools from 1."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

from sightline.contract.errors import DataError
from sightline.store.boxes.label_table import CategoryIds

FirstId = Literal[0, 1]
"""Id of the first class in the rows of text files."""


class RowIds:
    """Class ids of rows, read as those of `classes`; `first_id` is that of the first class, None if nothing states it.

    Ids that count from 1, read as if they counted from 0, give every box the name of the next class, and the boxes of
    the last class none.
    """

    def __init__(self, classes: CategoryIds, first_id: FirstId | None) -> None:
        self._names = dict(zip(classes.ids, classes.names, strict=True))
        self._first_id = first_id
        self._shift = 0 if first_id is None else first_id - min(classes.ids)
        self._counts = Counter[int]()

    def find_name(self, number: int) -> str:
        """Return the class name of an id in a row, and count it. Raises ValueError for an id of no class."""
        self._counts[number] += 1
        name = self._names.get(number - self._shift)
        if name is None:
            raise ValueError(f"class {number} of {len(self._names)}" + ", counted from 1" * (self._shift > 0))
        return name

    def describe(self, root: Path) -> list[str]:
        """Describe ids that are read as `first_id` states and not as they stand in the list of names.

        Raises DataError for ids of 1 to n, of n classes whose ids are 0 to n - 1, unless `first_id` is stated.
        """
        first, last = min(self._names), max(self._names)
        if self._shift:
            stated = first + self._shift
            return [f"class ids of rows count from {stated}: {stated} is '{self._names[first]}'"]
        are_from_1 = bool(self._counts) and not self._counts[0] and max(self._counts) == last + 1 == len(self._names)
        if self._first_id is None and are_from_1:
            raise DataError(
                f"{root}: class ids of the {self._counts.total()} rows seem to count from 1: there are {last + 1} "
                f"classes, no row has id 0, and {self._counts[last + 1]} have id {last + 1}; state first_id=1 to read "
                f"them so (1 is '{self._names[0]}'), or first_id=0 if 0 is '{self._names[0]}'"
            )
        return []
