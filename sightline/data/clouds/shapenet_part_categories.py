"""Categories and parts of ShapeNetPart, and helpers shared by both of its layouts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sightline.data.store.prepared_writer import ColumnSpec, normalize_to_unit_sphere
from sightline.errors import DataError

__all__ = [
    "SPLITS",
    "Category",
    "categories",
    "category_from_name",
    "make_columns",
    "part_names",
    "published_counts",
    "row_values",
]

SPLITS = {"train": "train", "validation": "val", "test": "test"}
"""Our name of each official split, with that of the release."""


class Category(NamedTuple):
    """Category with its label, and its parts numbered from 0 to 49."""

    name: str
    label: int
    synset: str
    parts: tuple[int, ...]


def published_counts() -> dict[str, Any]:
    """Read the published facts: categories with sizes and parts, layouts, terms of use."""
    return json.loads(Path(__file__).with_name("shapenet_part.json").read_text(encoding="utf-8"))


def categories() -> tuple[Category, ...]:
    """Return the sixteen categories in the order of their labels; parts are numbered in the same order."""
    result: list[Category] = []
    for label, (name, facts) in enumerate(published_counts()["categories"].items()):
        first = result[-1].parts[-1] + 1 if result else 0
        result.append(Category(name, label, facts["synset"], tuple(range(first, first + facts["num_parts"]))))
    return tuple(result)


def category_from_name(name: str) -> Category | None:
    """Return the category of a name in any public spelling (Motorbike, motor, ...), None if unknown."""
    plain = name.lower()
    plain = published_counts()["aliases"].get(plain, plain)
    return next((category for category in categories() if category.name == plain), None)


def part_names() -> tuple[str, ...]:
    """Return a name for each of the fifty parts, which releases only number: `chair_0` is a chair's first part."""
    return tuple(f"{category.name}_{index}" for category in categories() for index in range(len(category.parts)))


def make_columns(*, has_normals: bool) -> dict[str, ColumnSpec]:
    """Return the columns of a row: points, normals if there are any, part labels, category."""
    names = ("points", "normals") if has_normals else ("points",)
    return {
        **{name: ColumnSpec((3,), "float32", is_ragged=True) for name in names},
        "label": ColumnSpec((), "uint8", is_ragged=True),
        "category": ColumnSpec((), "int64"),
    }


def row_values(
    category: Category,
    *,
    points: np.ndarray,
    normals: np.ndarray | None,
    parts: np.ndarray,
    where: str,
    place_of: Callable[[int], str],
) -> dict[str, Any]:
    """Compute the values of a row from points (N, 3), normals (N, 3) and parts (N,): unit sphere, unit normals.

    Raises DataError, beginning with `place_of` of the first wrong point, for a part that the category does not have,
    and for a normal whose length is not finite; beginning with `where` for a shape whose points coincide.
    """
    is_foreign = ~np.isin(parts, category.parts)
    if is_foreign.any():
        first = int(np.argmax(is_foreign))
        raise DataError(
            f"{place_of(first)}: part {parts[first]:g} is none of {category.name}'s ({category.parts[0]} to "
            f"{category.parts[-1]}); download the file again"
        )
    values = {"points": normalize_to_unit_sphere(points, where=where), "label": parts, "category": category.label}
    if normals is not None:
        with np.errstate(over="ignore"):
            lengths = np.linalg.norm(normals, axis=1, keepdims=True)
        if not np.isfinite(lengths).all():
            first = int(np.argmin(np.isfinite(lengths)))
            raise DataError(f"{place_of(first)}: the normal is too long to be one; download the file again")
        values["normals"] = normals / np.where(lengths > 0, lengths, 1.0)
    return values
