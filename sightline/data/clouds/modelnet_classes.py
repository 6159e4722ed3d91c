"""The classes of ModelNet, and what every layout of it shares."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sightline.data.store.prepared_writer import ColumnSpec, Shard
from sightline.errors import DataError
from sightline.schema import suggest

__all__ = [
    "SPLITS",
    "ClassSubset",
    "SourceContents",
    "make_columns",
    "map_labels",
    "natural_sort_key",
    "published_counts",
]

SPLITS = ("train", "test")


def published_counts() -> dict[str, Any]:
    """What the publications state: counts per class, the ten classes, layouts, terms of use."""
    return json.loads(Path(__file__).with_name("modelnet.json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class ClassSubset:
    """The classes of a set in the order of their labels, among all that ModelNet knows."""

    names: tuple[str, ...]
    known: tuple[str, ...]

    @classmethod
    def of(cls, set_name: str) -> ClassSubset:
        facts = published_counts()
        known = tuple(facts["counts_train_test"])
        return cls(tuple(facts["modelnet10"]) if set_name == "modelnet10" else known, known)

    def label(self, name: str, *, where: str) -> int | None:
        """The label of a class, None if it is one that the set leaves out. Raises DataError for an unknown class."""
        if name in self.names:
            return self.names.index(name)
        if name not in self.known:
            raise DataError(f"{where}: '{name}' is none of ModelNet's 40 classes{suggest(name, self.known)}")
        return None


class SourceContents(NamedTuple):
    """What a recognised source holds: the columns of a row, and the parts in order."""

    columns: dict[str, ColumnSpec]
    parts: tuple[Shard, ...]


def natural_sort_key(name: str) -> list[tuple[int, str]]:
    """A sort key for names in which `a2` comes before `a10`."""
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in re.split(r"(\d+)", name)]


def make_columns(num_points: int, *, has_normals: bool) -> dict[str, ColumnSpec]:
    """The columns of a row: points, label, and normals where there are any."""
    names = ("points", "normals") if has_normals else ("points",)
    return {**{name: ColumnSpec((num_points, 3), "float32") for name in names}, "label": ColumnSpec((), "int64")}


def map_labels(
    given: np.ndarray, names: Sequence[str], classes: ClassSubset, *, where: str, names_where: str
) -> np.ndarray:
    """Labels of the set for labels of a file, -1 for classes left out. Raises DataError naming one out of range."""
    wrong = np.flatnonzero((given < 0) | (given >= len(names)))
    if len(wrong):
        raise DataError(
            f"{where}[{wrong[0]}]: is {given[wrong[0]]}, {names_where} names {len(names)} classes "
            f"(0 to {len(names) - 1}); get the file again"
        )
    found = [classes.label(name, where=names_where) for name in names]
    return np.array([-1 if label is None else label for label in found], dtype=np.int64)[given]
