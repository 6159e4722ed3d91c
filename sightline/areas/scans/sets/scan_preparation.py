"""Preparation of scans: each file is read once to count ids and take its hash, and stays in place."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from sightline.contract.errors import DataError, join_some
from sightline.store.files.cloud_values import note_mixed_scales, note_mixed_units
from sightline.store.files.scan_samples import RawScan, channel_sums, check_scan
from sightline.store.prepared.columns import ColumnSpec
from sightline.store.prepared.copies import digest_arrays
from sightline.store.prepared.prepared_set import PreparedSet
from sightline.store.prepared.prepared_writer import PreparationPlan, SampleRow, Shard, iterate_batches

_SCANS_PER_SHARD = 500
_MAX_REACH_M = 1000.0
"""Largest plausible reach of a scan: LiDAR sensors see some 300 m, some of aircraft more."""
_MIN_REACH_M = 0.5
"""Smallest plausible reach of a scan."""
NO_RETURNS = "num_no_returns"
"""Column with the number of points without a return, for sets whose files mark such points."""
_COLUMNS = {
    "num_points": ColumnSpec((), "int64"),
    "sums": ColumnSpec((2, 5), "float64"),
    "reach_m": ColumnSpec((), "float64"),
    "remission_high": ColumnSpec((), "float64"),
    "id_counts": ColumnSpec((2,), "int64", is_ragged=True),
}
"""Stored columns of a scan: size, channel sums, largest coordinate and remission, and pairs of id and count."""


@dataclass(frozen=True)
class ListedScan:
    """Scan to be prepared: its files, and the values of further columns."""

    split: str
    name: str
    files: tuple[Path, ...]
    values: Mapping[str, Any] = field(default_factory=dict)


class ScanReader(Protocol):
    """Set of scans: its name, and the reader of the files of a scan, by the values of its further columns.

    `manifest` has the entries and `options` of the preparation.
    """

    set_name: str

    def read_files(self, files: Sequence[Path], values: Mapping[str, Any], manifest: Mapping[str, Any]) -> RawScan: ...


def scan_plan(
    reader: ScanReader,
    *,
    layout: str,
    root: Path,
    scans: Sequence[ListedScan],
    about: Mapping[str, Any],
    columns: Mapping[str, ColumnSpec] = MappingProxyType({}),
    options: Mapping[str, Any] = MappingProxyType({}),
    notes: Sequence[str] = (),
) -> PreparationPlan:
    """Build the preparation plan of a set of scans, in order; `notes` precede the notes on the scans themselves."""
    shards = []
    make_row = partial(_make_row, reader, {**about, "options": options}, has_no_returns=NO_RETURNS in columns)
    for split, members in itertools.groupby(scans, key=lambda scan: scan.split):
        for batch in iterate_batches(members, _SCANS_PER_SHARD):
            files = tuple(file for scan in batch for file in scan.files)
            title = f"{batch[0].name} to {batch[-1].name}"
            shards.append(Shard(split, title, len(batch), files, partial(map, make_row, batch), 32 * len(batch)))
    summarise = partial(_summary, notes=tuple(notes))
    return PreparationPlan(
        reader.set_name, layout, root, {**_COLUMNS, **columns}, tuple(shards), about, summarise, options, True
    )


def id_counts(prepared: PreparedSet, rows: Sequence[tuple[str, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Count points per id in these scans: ids (K,) int64, ascending, and counts (K,) int64."""
    pairs = np.concatenate([prepared.row(split, "id_counts", row) for split, row in rows])
    ids, index = np.unique(pairs[:, 0], return_inverse=True)
    counts = np.zeros(len(ids), dtype=np.int64)
    np.add.at(counts, index, pairs[:, 1])
    return ids[counts > 0], counts[counts > 0]


def _make_row(reader: ScanReader, manifest: Mapping[str, Any], scan: ListedScan, *, has_no_returns: bool) -> SampleRow:
    where = str(scan.files[0])
    raw_scan = check_scan(reader.read_files(scan.files, scan.values, manifest), where=where)
    returns = raw_scan.returns()
    no_returns = {NO_RETURNS: len(raw_scan.points) - len(returns.points)} if has_no_returns else {}
    counts = np.bincount(returns.ids)  # ids have 16 bits: sorting the points would take ten times as long
    pairs = np.stack([np.flatnonzero(counts), counts[counts > 0]], axis=1)
    values = {
        "num_points": len(returns.points),
        "sums": channel_sums(returns.points, returns.remission[:, None]),
        "reach_m": np.abs(returns.points).max(initial=0.0),
        "remission_high": returns.remission.max(initial=0.0),
        "id_counts": pairs if len(pairs) else np.zeros((1, 2), dtype=np.int64),
        **no_returns,
        **scan.values,
    }
    content = digest_arrays(raw_scan.points, raw_scan.remission)
    return SampleRow(scan.name, where, values, scan.files, raw_scan.notes, content)


def _summary(prepared: PreparedSet, *, notes: tuple[str, ...]) -> dict[str, Any]:
    """Manifest entries computed from the written arrays."""
    splits, names = prepared.manifest["splits"], prepared.splits
    rows = [(split, row) for split in names for row in range(splits[split]["num_rows"])]
    ids, counts = id_counts(prepared, rows)
    points_per_id = dict(zip(ids.tolist(), counts.tolist(), strict=True))
    names_by_id = _check_named(points_per_id, prepared)
    empty = [prepared.names(split)[row] for split, row in rows if not prepared.array(split, "num_points")[row]]
    empty_notes = [f"{len(empty)} scans without points: {', '.join(empty[:5])}"] if empty else []
    if NO_RETURNS in prepared.manifest["columns"]:
        missing = sum(int(prepared.array(split, NO_RETURNS).sum()) for split in names)
        empty_notes.append(f"{missing} points without a return: not counted, not drawn and not scored")
    reaches = [float(prepared.array(split, "reach_m")[row]) for split, row in rows]
    scan_names = [prepared.names(split)[row] for split, row in rows]
    highs = [float(prepared.array(split, "remission_high")[row]) for split, row in rows]
    if not max(highs):
        empty_notes.append("no scan has a remission other than 0: that input of a network is constant")
    units = note_mixed_units(scan_names, reaches, "scans")
    units += note_mixed_scales(scan_names, highs, "scans", values="remissions")
    if np.median(reaches) > _MAX_REACH_M:
        units.append(
            f"half of the scans reach {np.median(reaches):.4g} m or more: scans are read as metres; if these are in "
            "millimetres, divide x, y and z by 1000"
        )
    if 0 < np.median(reaches) < _MIN_REACH_M:
        units.append(f"half of the scans reach {np.median(reaches):.4g} m or less: scans are read as metres")
    return {
        "splits": {
            split: {**splits[split], "num_points": int(prepared.array(split, "num_points").sum())} for split in names
        },
        "remission_high": max(highs),
        "points_per_id": {f"{raw} {names_by_id.get(raw, '')}".strip(): n for raw, n in points_per_id.items()},
        "doubts": units,
        "differences": [*notes, *empty_notes, *units],
    }


def _check_named(points_per_id: Mapping[int, int], prepared: PreparedSet) -> dict[int, str]:
    """Return the stated name of each id, "not scored" for null; else those that the source has, if any.

    Raises DataError for ids of the files that the stated names do not reach.
    """
    names = prepared.manifest.get("options", {}).get("names")
    if names is None:
        return {int(raw): name for raw, name in prepared.manifest.get("id_names", {}).items()}
    if unnamed := [f"{raw} ({count} points)" for raw, count in points_per_id.items() if raw >= len(names)]:
        raise DataError(
            f"{prepared.manifest['source']['path']}: names are stated for the label ids 0 to {len(names) - 1}, and the "
            f"files also have {join_some(unnamed, most=3)}; name all ids in order, null for one that is not scored"
        )
    return {raw: "not scored" if name is None else name for raw, name in enumerate(names)}


def guess_remission_max(high: float) -> int:
    """Return the end of the usual scale that contains the highest remission: 1, 8 bits, 16 bits, or beyond them."""
    return next((limit for limit in (1, 2**8 - 1, 2**16 - 1) if high <= limit), math.ceil(high))
