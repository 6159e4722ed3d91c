"""Names of the columns of a cloud that has none, as its values suggest them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sightline.store.files.column_names import COLOURS, NORMALS, POINTS, SKIPPED, is_whole

_MAX_LABELS = 256
"""Largest number of different values of a column that may be labels."""
_MIN_UNIT_SHARE = 0.95
"""Least share of points with a vector of length 1 in columns that may be normals; files have zeros for missing ones."""


class GuessedColumns(NamedTuple):
    """Names of columns of a table, `_` for one without a known meaning, and the reason in words."""

    names: tuple[str, ...]
    reason: str


def guess_columns(table: np.ndarray, *, label: str | None = None) -> GuessedColumns | None:
    """Guess the names of the columns of a table (N, columns) by its values: the first three are x, y, z.

    Vectors of length 1 are normals, three columns of whole numbers from 0 to 255 colours. With `label`, the first or
    last of the other columns is to be the label of each point: the one of fewest different whole numbers. Returns None
    for a table without points, and where no column can be the label.
    """
    if len(table) == 0 or table.shape[1] < len(POINTS):
        return None
    rest = [table[:, index] for index in range(len(POINTS), table.shape[1])]
    label_index = None if label is None else _find_label(rest)
    if label is not None and label_index is None:
        return None
    names, reasons, unclear = list(POINTS), ["columns 1 to 3 are taken for x, y, z"], []
    while (index := len(names) - len(POINTS)) < len(rest):
        number, ahead = len(names) + 1, rest[index : index + 3]
        is_free = len(ahead) == 3 and label_index not in range(index, index + 3)
        triple = _name_triple(np.stack(ahead, axis=1)) if is_free else None
        if triple is not None and triple.names[0] not in names:
            names += triple.names
            reasons.append(f"columns {number} to {number + 2} {triple.reason}: {', '.join(triple.names)}")
            continue
        values = f"{ahead[0].min():.4g} to {ahead[0].max():.4g}"
        if index == label_index:
            reasons.append(f"column {number} has whole numbers ({values}): {label}")
        else:
            unclear.append(f"{number} ({values})")
        names.append(str(label) if index == label_index else SKIPPED)
    if unclear:
        is_one = len(unclear) == 1
        reasons.append(
            f"column{'' if is_one else 's'} {', '.join(unclear)} may be anything and {'is' if is_one else 'are'} left "
            f"out: to keep {'it' if is_one else 'one'}, write a name in place of its {SKIPPED}"
        )
    return GuessedColumns(tuple(names), "; ".join(reasons))


def _name_triple(values: np.ndarray) -> GuessedColumns | None:
    """Name three columns (N, 3) by their values, with the reason; None where they may be anything."""
    with np.errstate(over="ignore", invalid="ignore"):
        length = np.linalg.norm(values.astype(np.float64), axis=1)
        if float((np.abs(length - 1) < 0.01).mean()) >= _MIN_UNIT_SHARE and values.min() < 0:
            return GuessedColumns(NORMALS, "are vectors of length 1")
    if is_whole(values, 0, 255) and values.max() > 1:
        return GuessedColumns(COLOURS, "are whole numbers from 0 to 255")
    return None


def _find_label(columns: Sequence[np.ndarray]) -> int | None:
    """Find which of the columns (N,) behind the coordinates may be labels; None if none may."""
    triples = [np.stack(columns[at : at + 3], axis=1) for at in range(0, len(columns) - 2, 3)]
    if len(columns) == 3 * len(triples) and all(map(_name_triple, triples)):
        return None  # nothing besides normals and colours
    counts = {
        at: len(np.unique(columns[at]))
        for at in dict.fromkeys((len(columns) - 1, 0))
        if columns and is_whole(columns[at], -1, np.inf)
    }
    at = min(counts, key=counts.__getitem__, default=None)
    return at if at is not None and counts[at] <= _MAX_LABELS else None
