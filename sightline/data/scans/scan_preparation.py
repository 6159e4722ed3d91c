"""Preparing scans: every file is read once, its ids counted and its digest noted, and stays where it is."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sightline.data.files.input_files import read_file
from sightline.data.scans.scan_samples import RawScan, channel_sums, check_scan
from sightline.data.store.columns import ColumnSpec
from sightline.data.store.prepared_set import LISTED, PreparedSet
from sightline.data.store.prepared_writer import PreparationPlan, SampleRow, Shard, iterate_batches
from sightline.errors import DataError

__all__ = ["NO_RETURNS", "ListedScan", "describe_scans", "id_counts", "read_name_lists", "scan_plan"]

_SCANS_A_PART = 500
_LISTS = {"train": ("train.txt",), "test": ("val.txt", "test.txt")}
NO_RETURNS = "num_no_returns"
"""The column of sets whose files mark points without a return: how many of them a scan has."""
_COLUMNS = {
    "num_points": ColumnSpec((), "int64"),
    "sums": ColumnSpec((2, 5), "float64"),
    "reach_m": ColumnSpec((), "float64"),
    "remission_high": ColumnSpec((), "float64"),
    "id_counts": ColumnSpec((2,), "int64", is_ragged=True),
}
"""What is kept of a scan: its size, the sums of its channels, its farthest coordinate, and pairs of id and count."""


@dataclass(frozen=True)
class ListedScan:
    """A scan on its way into a set: the files that are listed, how they are read, and further columns of its row."""

    split: str
    name: str
    files: tuple[Path, ...]
    read: Callable[[], RawScan]
    values: Mapping[str, Any] = field(default_factory=dict)


def scan_plan(
    *,
    set_name: str,
    layout: str,
    root: Path,
    scans: Sequence[ListedScan],
    columns: Mapping[str, ColumnSpec],
    about: Mapping[str, Any],
    options: Mapping[str, Any],
    notes: Sequence[str],
) -> PreparationPlan:
    """The plan of a set of scans, in the order given; `notes` go before what reading them shows."""
    parts = []
    for split, members in itertools.groupby(scans, key=lambda scan: scan.split):
        for part in iterate_batches(members, _SCANS_A_PART):
            files = tuple(file for scan in part for file in scan.files)
            title = f"{part[0].name} to {part[-1].name}"
            parts.append(Shard(split, title, len(part), files, partial(_rows, part), 32 * len(part)))
    summarise = partial(_summary, notes=tuple(notes))
    return PreparationPlan(
        set_name, layout, root, {**_COLUMNS, **columns}, tuple(parts), about, summarise, options, True
    )


def id_counts(prepared: PreparedSet, rows: Sequence[tuple[str, int]]) -> tuple[np.ndarray, np.ndarray]:
    """The ids in these scans, in ascending order, and how many points have each: (K,) and (K,) int64."""
    pairs = np.concatenate([prepared.row(split, "id_counts", row) for split, row in rows])
    ids, place = np.unique(pairs[:, 0], return_inverse=True)
    counts = np.zeros(len(ids), dtype=np.int64)
    np.add.at(counts, place, pairs[:, 1])
    return ids[counts > 0], counts[counts > 0]


def describe_scans(prepared: PreparedSet) -> dict[str, Any]:
    """What `data info` prints of a prepared set of scans."""
    manifest = prepared.manifest
    listed = manifest[LISTED]
    shown = ("layout", "split", "remission_high", "points_per_id", "differences")
    return {
        "set": manifest["set"],
        "root": str(prepared.root.resolve()),
        "files": f"{listed['num_files']:,} files, {listed['num_bytes']:,} bytes, in place below {listed['root']}",
        "scans": {split: facts["num_rows"] for split, facts in manifest["splits"].items()},
        "points": {split: facts["num_points"] for split, facts in manifest["splits"].items()},
        **{key: manifest[key] for key in shown if key in manifest},
    }


def _rows(scans: Sequence[ListedScan]) -> Iterator[SampleRow]:
    return map(_row, scans)


def _row(scan: ListedScan) -> SampleRow:
    where = str(scan.files[0])
    scanned = check_scan(scan.read(), where=where)
    found = scanned.returns()
    missing = {} if scanned.is_return is None else {NO_RETURNS: len(scanned.points) - len(found.points)}
    counts = np.bincount(found.ids)  # ids have 16 bits: sorting the points would take ten times as long
    pairs = np.stack([np.flatnonzero(counts), counts[counts > 0]], axis=1)
    values = {
        "num_points": len(found.points),
        "sums": channel_sums(found.points, found.remission[:, None]),
        "reach_m": np.abs(found.points).max(initial=0.0),
        "remission_high": found.remission.max(initial=0.0),
        "id_counts": pairs if len(pairs) else np.zeros((1, 2), dtype=np.int64),
        **missing,
        **scan.values,
    }
    return SampleRow(scan.name, where, values, scan.files)


def _summary(prepared: PreparedSet, *, notes: tuple[str, ...]) -> dict[str, Any]:
    splits, names = prepared.manifest["splits"], prepared.splits
    rows = [(split, row) for split in names for row in range(splits[split]["num_rows"])]
    ids, counts = id_counts(prepared, rows)
    empty = [prepared.names(split)[row] for split, row in rows if not prepared.array(split, "num_points")[row]]
    empty_notes = [f"{len(empty)} scans without points: {', '.join(empty[:5])}"] if empty else []
    if NO_RETURNS in prepared.manifest["columns"]:
        missing = sum(int(prepared.array(split, NO_RETURNS).sum()) for split in names)
        empty_notes.append(f"{missing} points without a return: not counted, not drawn and not scored")
    return {
        "splits": {
            split: {**splits[split], "num_points": int(prepared.array(split, "num_points").sum())} for split in names
        },
        "remission_high": max(float(prepared.array(split, "remission_high").max()) for split in names),
        "points_per_id": dict(zip(map(str, ids.tolist()), counts.tolist(), strict=True)),
        "differences": [*notes, *empty_notes],
    }


def read_name_lists(folder: Path, names: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """The names of the parts `train` and `test` by lists in a folder, and what to note; all in one part without lists.

    Lists are one name a line: train.txt, and val.txt or else test.txt. Names in no list are left out, and counted.
    Raises DataError for a name that is in both parts, and for lists of which none is there.
    """
    there = {part: [folder / each for each in files if (folder / each).is_file()][:1] for part, files in _LISTS.items()}
    if not all(there.values()):
        return {"all": list(names)}, []
    listed = {part: read_file(files[0]).decode("utf-8", "replace").split() for part, files in there.items()}
    both = sorted(set(listed["train"]) & set(listed["test"]))
    if both:
        more = f", and {len(both) - 1} more" if len(both) > 1 else ""
        raise DataError(f"{folder}: '{both[0]}' is in both lists{more}; each name has one part")
    held = set(names)
    parts = {part: sorted(held & set(each)) for part, each in listed.items()}
    lacking = sum(len(set(each) - held) for each in listed.values())
    empty = [part for part in parts if not parts[part]]
    if empty:
        raise DataError(
            f"{there[empty[0]][0]}: names none of the {len(names)} scans; put the lists of these scans there"
        )
    left_out = len(held) - sum(map(len, parts.values()))
    notes = [
        *([f"{lacking} names in the lists of {folder.name} without files"] if lacking else []),
        *([f"{left_out} scans in none of the lists of {folder.name}, left out"] if left_out else []),
    ]
    return parts, notes
