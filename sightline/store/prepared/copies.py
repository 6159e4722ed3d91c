"""Copies among the rows of a prepared set: a digest of what each row is about, made once by its preparation."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sightline.contract.errors import join_some
from sightline.store.prepared.columns import ColumnSpec, SampleRow
from sightline.store.prepared.prepared_set import PreparedSet

_IDENTIFYING = ("points", "depth")
"""Columns of which the first that a set has identifies its samples; without one, the first listed file does."""
_NUM_HEX = 32
_MAX_NAMED = 3
_PAIRS = (("train", "test"), ("train", "validation"), ("validation", "test"))


def digest_arrays(*arrays: np.ndarray) -> str:
    """Return a digest of the types, shapes and bytes of arrays; "" if all are empty, which identifies nothing."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:_NUM_HEX] if any(array.size for array in arrays) else ""


def digest_content(row: SampleRow, columns: Mapping[str, ColumnSpec], listed: Sequence[Any]) -> str:
    """Return the digest of what a row is about: the one that it states, of its identifying column, or of its file."""
    if row.content is not None:
        return row.content
    name = next((name for name in _IDENTIFYING if name in columns), None)
    if name is not None:
        return digest_arrays(np.asarray(row.values[name], dtype=columns[name].dtype))
    return listed[0].sha256[:_NUM_HEX] if listed else ""


def group_copies(prepared: PreparedSet) -> list[list[tuple[str, int]]]:
    """Group the rows, each as stored split and index, that hold the same, over all splits."""
    rows_by_digest: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
    for split in prepared.splits:
        for index, digest in enumerate(prepared.contents(split)):
            rows_by_digest[digest].append((split, index))
    return [rows for digest, rows in rows_by_digest.items() if digest and len(rows) > 1]


def name_copies(prepared: PreparedSet, groups: Sequence[Sequence[tuple[str, int]]]) -> list[list[str]]:
    """Return the rows of groups as `split/name`."""
    names = {split: prepared.names(split) for split in ({split for rows in groups for split, _ in rows})}
    return [[f"{split}/{names[split][index]}" for split, index in rows] for rows in groups]


def describe_copies(prepared: PreparedSet, groups: Sequence[Sequence[tuple[str, int]]]) -> list[str]:
    """Return notes on groups of copies: under two labels, in two splits, or more than once; the first that applies."""
    named = name_copies(prepared, groups)
    notes: list[str] = []
    shared: list[tuple[Sequence[tuple[str, int]], list[str]]] = []
    repeated: list[tuple[Sequence[tuple[str, int]], list[str]]] = []
    for rows, names in zip(groups, named, strict=True):
        classes = _list_classes(prepared, rows)
        if len(classes) > 1:
            fault = f"the same sample in the classes {_join(classes)}: at most one label is right"
            notes.append(f"{fault} ({_join(names)})")
        (shared if len({split for split, _ in rows}) > 1 else repeated).append((rows, names))
    notes[_MAX_NAMED:] = [f"{len(notes) - _MAX_NAMED} more samples in two classes"] if len(notes) > _MAX_NAMED else []
    sizes = {split: facts["num_rows"] for split, facts in prepared.manifest["splits"].items()}
    left = 0
    for first, second in _PAIRS:
        pairs = [(rows, names) for rows, names in shared if {first, second} <= {split for split, _ in rows}]
        left += len(pairs)
        if pairs:
            count = sum(split == second for rows, _ in pairs for split, _ in rows)
            notes.append(
                f"{count} of {sizes[second]} samples of {second} ({count / sizes[second]:.1%}) are in {first}, too: "
                f"{second} is not one of unseen samples; shared=leave_out_of_train trains without them (first: "
                f"{_join(pairs[0][1])})"
            )
    rest = [names for _, names in (repeated if left else [*repeated, *shared])]
    if rest:
        notes.append(f"{len(rest)} samples are there more than once (first: {_join(rest[0])})")
    return notes


def _join(names: Sequence[str]) -> str:
    """Join names for a note: four hundred equal photos would be a line of 11,000 characters."""
    return join_some(names, most=_MAX_NAMED)


def _list_classes(prepared: PreparedSet, rows: Sequence[tuple[str, int]]) -> list[str]:
    """List the names of the classes of rows, of sets whose samples have one each."""
    names = prepared.manifest.get("class_names")
    column = prepared.manifest["columns"].get("label", {})
    if not names or column.get("shape") != [] or column.get("is_ragged"):
        return []
    labels = {int(prepared.array(split, "label")[index]) for split, index in rows}
    return sorted(names[label] for label in labels if 0 <= label < len(names))
