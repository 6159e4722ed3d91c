"""Classes of ModelNet, and helpers shared by all of its layouts."""

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
    """Read the published facts: counts per class, the ten classes, layouts, terms of use."""
    return json.loads(Path(__file__).with_name("modelnet.json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class ClassSubset:
    """Classes of a set in the order of their labels, and all classes of ModelNet."""

    names: tuple[str, ...]
    known: tuple[str, ...]

    @classmethod
    def from_set_name(cls, set_name: str) -> ClassSubset:
        """Return the classes of ModelNet10 or ModelNet40."""
        facts = published_counts()
        all_names = tuple(facts["counts_train_test"])
        return cls(tuple(facts["modelnet10"]) if set_name == "modelnet10" else all_names, all_names)

    def label(self, name: str, *, where: str) -> int | None:
        """Return the label of a class, None if the set leaves it out. Raises DataError for an unknown class."""
        if name in self.names:
            return self.names.index(name)
        if name not in self.known:
            raise DataError(f"{where}: '{name}' is not one of ModelNet's 40 classes{suggest(name, self.known)}")
        return None


class SourceContents(NamedTuple):
    """Contents of a recognised source: the columns of a row, and the shards in order."""

    columns: dict[str, ColumnSpec]
    parts: tuple[Shard, ...]


def natural_sort_key(name: str) -> list[tuple[int, str]]:
    """Return a sort key for names in which `a2` comes before `a10`."""
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in re.split(r"(\d+)", name)]


def make_columns(num_points: int, *, has_normals: bool) -> dict[str, ColumnSpec]:
    """Return the columns of a row: points, label, and normals if there are any."""
    names = ("points", "normals") if has_normals else ("points",)
    return {**{name: ColumnSpec((num_points, 3), "float32") for name in names}, "label": ColumnSpec((), "int64")}


def map_labels(
    file_labels: np.ndarray, names: Sequence[str], classes: ClassSubset, *, where: str, names_where: str
) -> np.ndarray:
    """Map the labels of a file (N,) to those of the set, -1 for classes left out. Raises DataError if out of range."""
    invalid = np.flatnonzero((file_labels < 0) | (file_labels >= len(names)))
    if len(invalid):
        raise DataError(
            f"{where}[{invalid[0]}]: is {file_labels[invalid[0]]}, {names_where} names {len(names)} classes (0 to "
            f"{len(names) - 1}); download the file again"
        )
    new_labels = [classes.label(name, where=names_where) for name in names]
    return np.array([-1 if label is None else label for label in new_labels], dtype=np.int64)[file_labels]
