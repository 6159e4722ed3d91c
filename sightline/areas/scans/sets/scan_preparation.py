"""Preparation of scans: each file is read once to count ids and take its hash, and stays in place.

Survey of unprepared scans: label map, sensor estimate, and differences to an expected sensor.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sightline.areas.scans.projection_summary import ProjectionSummary
from sightline.contract.errors import DataError
from sightline.ops.projection import RangeView, rows_by_file_order
from sightline.store.files.cloud_files import note_mixed_units
from sightline.store.files.input_files import read_file
from sightline.store.files.scan_samples import RawScan, Sensor, channel_sums, check_scan, mean_and_std
from sightline.store.label_maps import LabelMap, identity_map
from sightline.store.prepared.columns import ColumnSpec
from sightline.store.prepared.prepared_set import PreparedSet
from sightline.store.prepared.prepared_writer import PreparationPlan, SampleRow, Shard, iterate_batches

_SCANS_PER_SHARD = 500
BY_NAME = "by data.tested, else the last data.test_share in the order of names"
"""Split of a set whose source has no parts."""
_LISTS = {"train": ("train.txt",), "test": ("val.txt", "test.txt")}
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
    """Scan to be prepared: its files, the function that reads them, and the values of further columns."""

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
    """Build the preparation plan of a set of scans, in order; `notes` precede the notes on the scans themselves."""
    shards = []
    for split, members in itertools.groupby(scans, key=lambda scan: scan.split):
        for batch in iterate_batches(members, _SCANS_PER_SHARD):
            files = tuple(file for scan in batch for file in scan.files)
            title = f"{batch[0].name} to {batch[-1].name}"
            shards.append(Shard(split, title, len(batch), files, partial(map, _make_row, batch), 32 * len(batch)))
    summarise = partial(_summary, notes=tuple(notes))
    return PreparationPlan(
        set_name, layout, root, {**_COLUMNS, **columns}, tuple(shards), about, summarise, options, True
    )


def id_counts(prepared: PreparedSet, rows: Sequence[tuple[str, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Count points per id in these scans: ids (K,) int64, ascending, and counts (K,) int64."""
    pairs = np.concatenate([prepared.row(split, "id_counts", row) for split, row in rows])
    ids, index = np.unique(pairs[:, 0], return_inverse=True)
    counts = np.zeros(len(ids), dtype=np.int64)
    np.add.at(counts, index, pairs[:, 1])
    return ids[counts > 0], counts[counts > 0]


def _make_row(scan: ListedScan) -> SampleRow:
    where = str(scan.files[0])
    raw_scan = check_scan(scan.read(), where=where)
    returns = raw_scan.returns()
    no_returns = {} if raw_scan.is_return is None else {NO_RETURNS: len(raw_scan.points) - len(returns.points)}
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
    return SampleRow(scan.name, where, values, scan.files, raw_scan.notes)


def _summary(prepared: PreparedSet, *, notes: tuple[str, ...]) -> dict[str, Any]:
    """Manifest entries computed from the written arrays."""
    splits, names = prepared.manifest["splits"], prepared.splits
    rows = [(split, row) for split in names for row in range(splits[split]["num_rows"])]
    ids, counts = id_counts(prepared, rows)
    empty = [prepared.names(split)[row] for split, row in rows if not prepared.array(split, "num_points")[row]]
    empty_notes = [f"{len(empty)} scans without points: {', '.join(empty[:5])}"] if empty else []
    if NO_RETURNS in prepared.manifest["columns"]:
        missing = sum(int(prepared.array(split, NO_RETURNS).sum()) for split in names)
        empty_notes.append(f"{missing} points without a return: not counted, not drawn and not scored")
    reaches = [float(prepared.array(split, "reach_m")[row]) for split, row in rows]
    units = note_mixed_units([prepared.names(split)[row] for split, row in rows], reaches, "scans")
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
        "remission_high": max(float(prepared.array(split, "remission_high").max()) for split in names),
        "points_per_id": dict(zip(map(str, ids.tolist()), counts.tolist(), strict=True)),
        "differences": [*notes, *empty_notes, *units],
    }


def read_name_lists(folder: Path, names: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Read the names of `train` and `test` from lists in a folder, and notes; one split `all` without lists.

    Lists have one name per line: train.txt, and val.txt or else test.txt. Names in no list are left out, with a note.
    Raises DataError for a name in both lists, and for a list that names none of the scans.
    """
    list_paths = {
        part: [folder / file for file in files if (folder / file).is_file()][:1] for part, files in _LISTS.items()
    }
    if not all(list_paths.values()):
        return {"all": list(names)}, []
    texts = {part: read_file(files[0]).decode("utf-8-sig", "replace") for part, files in list_paths.items()}
    names_by_list = {
        part: [name for line in text.splitlines() if (name := line.strip())] for part, text in texts.items()
    }
    shared = sorted(set(names_by_list["train"]) & set(names_by_list["test"]))
    if shared:
        more = f", and {len(shared) - 1} more" if len(shared) > 1 else ""
        raise DataError(f"{folder}: '{shared[0]}' is in both lists{more}; each name has one part")
    available = set(names)
    parts = {part: sorted(available & set(part_names)) for part, part_names in names_by_list.items()}
    missing = sum(len(set(part_names) - available) for part_names in names_by_list.values())
    empty = [part for part in parts if not parts[part]]
    if empty:
        raise DataError(
            f"{list_paths[empty[0]][0]}: names none of the {len(names)} scans; put the lists of these scans there"
        )
    left_out = len(available) - sum(map(len, parts.values()))
    notes = [
        *([f"{missing} names in the lists of {folder.name} without files"] if missing else []),
        *([f"{left_out} scans in none of the lists of {folder.name}, left out"] if left_out else []),
    ]
    return parts, notes


def describe_split(parts: Collection[str], source: str, *, otherwise: str = BY_NAME) -> str:
    """Describe the split that a set has: the parts of the source, found in `source`, or one made by the run."""
    return otherwise if "all" in parts else f"{' and '.join(parts)} are given by {source}; data.tested overrides them"


_MAX_REACH_M = 1000.0
"""Largest plausible reach of a scan: LiDAR sensors see some 300 m, some of aircraft more."""
_MIN_REACH_M = 0.5
"""Smallest plausible reach of a scan."""
MAX_SCANS = 200
"""Maximum number of surveyed scans, evenly spaced over all."""
_MAX_PROJECTED = 16
"""Maximum number of scans that are also projected: with kNN voting a full scan takes a second."""
_WIDTHS = (2048, 1024, 512)
"""Widths of range images in columns of a full turn."""
_WIDTH_STEP = 32
"""Widths are multiples of it, as networks halve them up to five times."""
_MIN_SHOWN = 0.95
"""Share of points that an image of the proposed width shows; else the widest image is proposed."""
_CHANNELS = ("range", "x", "y", "z", "remission")
_MAX_OUTSIDE = 0.05
"""Maximum share of points outside the field of view: real scans of KITTI have up to 0.044."""
_MAX_DEVIATIONS = 3.0
"""Maximum distance of a channel's mean from the expected mean, in standard deviations."""
_TAIL = 0.001
"""Share of points left out at either end of the elevations."""
_MAX_RINGS = 256
_NUMBERS_OF_BEAMS = (1, 4, 8, 16, 32, 40, 64, 80, 128, 256)
"""Numbers of beams of sensors on the market."""
_GUESSED_BEAMS = 64
_MIN_RING_CORRELATION = 0.9
"""Minimum correlation of ring number and elevation at which the file order counts as ring order."""
_MIN_GAP_DEG = 20
"""Minimum gap in the azimuths at which the sensor counts as covering a part of the turn."""


@dataclass
class _SurveyStatistics:
    """Accumulated statistics of scans; histograms of elevations in tenths of a degree and azimuths in degrees."""

    ids: np.ndarray = field(default_factory=lambda: np.zeros(2**16, dtype=np.int64))
    sums: np.ndarray = field(default_factory=lambda: np.zeros((2, 5)))
    elevations: np.ndarray = field(default_factory=lambda: np.zeros(1800, dtype=np.int64))
    azimuths: np.ndarray = field(default_factory=lambda: np.zeros(360, dtype=np.int64))
    rings: list[int] = field(default_factory=list)
    has_ring_column: bool = False
    num_points: int = 0
    num_outside: int = 0
    high: float = 0.0

    def add(self, scan: RawScan, sensor: Sensor | None) -> None:
        """Add the returns of a scan to the statistics."""
        self.ids += np.bincount(scan.ids, minlength=2**16)
        self.sums += channel_sums(scan.points, scan.remission[:, None])
        distance = np.maximum(np.linalg.norm(scan.points, axis=1), 1e-6)
        elevation = np.degrees(np.arcsin(np.clip(scan.points[:, 2] / distance, -1, 1)))
        azimuth = np.degrees(np.arctan2(scan.points[:, 1], scan.points[:, 0]))
        self.elevations += np.histogram(elevation, bins=1800, range=(-90, 90))[0]
        self.azimuths += np.histogram(azimuth, bins=360, range=(-180, 180))[0]
        if sensor is not None:
            self.num_outside += int(((elevation < sensor.fov_deg[1]) | (elevation > sensor.fov_deg[0])).sum())
        self.num_points += len(scan.points)
        self.high = max(self.high, float(scan.remission.max(initial=0.0)))
        self.has_ring_column |= scan.ring is not None
        ring = rows_by_file_order(torch.tensor(scan.points)).numpy() if scan.ring is None else scan.ring
        if len(ring) and ring.min() < ring.max() and -np.corrcoef(ring, elevation)[0, 1] >= _MIN_RING_CORRELATION:
            self.rings.append(int(ring.max()) + 1)

    def fov_deg(self) -> tuple[float, float]:
        """Return the highest and lowest elevation to tenths, without a thousandth of the points at either end."""
        share = self.elevations.cumsum() / max(1, self.elevations.sum())
        low, high = np.searchsorted(share, [_TAIL, 1 - _TAIL])
        return round(float(high) / 10 - 89.9, 1), round(float(low) / 10 - 90, 1)

    def azimuth_deg(self) -> tuple[float, float]:
        """Return the left and right border of the azimuths; a full turn if no 20 consecutive degrees are empty."""
        degrees = np.flatnonzero(self.azimuths)
        if not len(degrees):
            return 180.0, -180.0
        gaps = np.diff(np.append(degrees, degrees[0] + 360)) - 1
        if gaps.max() < _MIN_GAP_DEG:
            return 180.0, -180.0
        right = int(degrees[(gaps.argmax() + 1) % len(degrees)]) - 180
        left = int(degrees[gaps.argmax()]) - 179
        left += 360 if left <= right else 0
        behind = 360 if left + right > 360 else 0  # keeps the borders around forward (0)
        return float(left - behind), float(right - behind)

    def num_rings(self) -> int | None:
        """Return the most frequent number of rings, by column or file order; None if there are no rings."""
        counts = [count for count in self.rings if count <= _MAX_RINGS]
        return max(set(counts), key=counts.count) if counts else None

    def num_beams(self) -> tuple[int, list[str]]:
        """Propose a number of beams, with doubts: a beam without a return leaves no ring."""
        rings, hint = self.num_rings(), "look at the sensor's data sheet"
        if rings is None:
            return _GUESSED_BEAMS, [
                f"num_beams: {_GUESSED_BEAMS} is a guess, there are no rings by a column or the order of files; {hint}"
            ]
        proposed = next(count for count in _NUMBERS_OF_BEAMS if count >= rings)
        source = "a column" if self.has_ring_column else "the order of the files"
        if proposed != rings:
            return proposed, [
                f"num_beams: there are {rings} rings by {source}, and beams without a return leave none; "
                f"{proposed} is the next number that sensors have: {hint}"
            ]
        if (largest := max(self.rings)) > proposed:
            return proposed, [f"num_beams: scans have up to {largest} rings by {source}, most have {rings}; {hint}"]
        return proposed, []


def survey_scans(
    readers: Mapping[Path, Callable[[], RawScan]],
    *,
    source: Path,
    label_map: LabelMap | None,
    sensor: Sensor | None,
    id_names: Mapping[int, str] | None = None,
) -> dict[str, Any]:
    """Survey scans for `data info NAME --from PATH`: ids, sensor, range images, statistics and differences.

    If `label_map` lacks ids, a map with a class for each of them is proposed. Without a `sensor` to compare with, the
    estimated one is proposed. `readers` maps files to functions that read them. Raises as the readers, and DataError
    for a scan that cannot be prepared.
    """
    files = list(readers)
    chosen = _choose_evenly(len(readers), MAX_SCANS)
    statistics = _SurveyStatistics()
    for index in chosen:
        scan = check_scan(readers[files[index]](), where=str(files[index]))
        statistics.add(scan.returns(), sensor)
    mean, std = mean_and_std(statistics.sums, statistics.num_points)
    ids = np.flatnonzero(statistics.ids).tolist()
    labels = label_map or identity_map(ids, id_names or {}, where=str(source))
    rings = statistics.num_rings()
    document = {
        "source": str(source),
        "scans": f"{len(chosen)} of {len(readers)} looked at",
        "points_per_id": {f"{raw} {labels.label_name(raw)}": int(statistics.ids[raw]) for raw in ids},
        "sensor": {
            "elevations_deg": list(statistics.fov_deg()),
            "azimuths_deg": list(statistics.azimuth_deg()),
            "rings": "none found" if rings is None else str(rings),
            "remission_high": round(statistics.high, 4),
        },
        "input_mean": list(mean),
        "input_std": list(std),
    }
    (num_beams, doubts), sensor_words = statistics.num_beams(), ""
    view = sensor or Sensor(
        statistics.fov_deg(), num_beams, statistics.azimuth_deg(), remission_max=max(1.0, statistics.high)
    )
    if sensor is None:
        block = f"fov_deg: {list(view.fov_deg)}, azimuth_deg: {list(view.azimuth_deg)}, num_beams: {view.num_beams}"
        block = f"{{{block}, remission_max: {guess_remission_max(statistics.high)}}}"
        document["proposed"], sensor_words = f"sensor: {block}", f"'data.sensor={block}' "
        if doubts:
            document["doubts"] = doubts
    else:
        document["deviations_off"] = _compute_deviations(sensor, mean)
        document["unlike"] = _list_differences(sensor, statistics, mean)
    unknown = [raw for raw in ids if not labels.has_id(raw)]
    if unknown:
        labels = LabelMap(labels.tables_with(unknown), where=str(source))
        document["label_map"] = labels.tables_with(())
    scans = [readers[files[index]]().returns() for index in _choose_evenly(len(readers), _MAX_PROJECTED)]
    turn = (view.azimuth_deg[0] - view.azimuth_deg[1]) / 360
    widths = [max(1, round(width * turn / _WIDTH_STEP)) * _WIDTH_STEP for width in _WIDTHS]
    figures = {width: _measure_projection(scans, labels, view, width) for width in widths}
    document["projected"] = {f"{view.num_beams} x {width}": shares for width, shares in figures.items()}
    fit = min((w for w in widths if figures[w]["points_shown"] >= _MIN_SHOWN), default=max(widths))
    size = {"height": view.num_beams, "width": fit}
    words = (f"transforms.{place}.{side}={px}" for place in ("train.2", "evaluate.0") for side, px in size.items())
    document["for_configs_segment_own_scans"] = sensor_words + " ".join(words)
    document["proposed_projection"] = (
        f"{{name: project, height: {view.num_beams}, width: {fit}}} shows {figures[fit]['points_shown']:.0%} of points"
    )
    return document


def guess_remission_max(high: float) -> int:
    """Return the end of the usual scale that contains the highest remission: 1, 8 bits, 16 bits, or beyond them."""
    return next((limit for limit in (1, 2**8 - 1, 2**16 - 1) if high <= limit), math.ceil(high))


def _choose_evenly(count: int, max_chosen: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, min(max_chosen, count)).astype(np.int64)).tolist()


def _measure_projection(scans: Sequence[RawScan], labels: LabelMap, sensor: Sensor, width: int) -> dict[str, float]:
    """Compute the coverage of a range projection, and the metrics of a network that is right in every pixel."""
    view = RangeView(sensor.num_beams, width, "pitch", sensor.fov_deg, sensor.azimuth_deg)
    summary = ProjectionSummary(view, labels.num_classes, labels.ignore_index)
    for scan in scans:
        label = torch.from_numpy(labels.classes(scan.ids, where="the survey"))
        points = torch.tensor(scan.points)
        summary.add(points, label=label, offsets=torch.tensor([0, len(points)]))
    return summary.figures()


def _compute_deviations(sensor: Sensor, mean: tuple[float, ...]) -> dict[str, float]:
    """Return the offset of each channel's mean in standard deviations of the sensor; {} if it has no statistics."""
    if sensor.input_mean is None or sensor.input_std is None:
        return {}
    stated = zip(_CHANNELS, mean, sensor.input_mean, sensor.input_std, strict=True)
    return {name: round((actual - expected) / std, 2) for name, actual, expected, std in stated}


def _list_differences(sensor: Sensor, statistics: _SurveyStatistics, mean: tuple[float, ...]) -> list[str]:
    """List differences between these scans and the expected sensor (field of view, rings, range, remission)."""
    notes = []
    up, down = sensor.fov_deg
    outside = statistics.num_outside / max(1, statistics.num_points)
    if outside > _MAX_OUTSIDE:
        high, low = statistics.fov_deg()
        notes.append(
            f"{outside:.0%} of the points are outside the field of view from {up:g} to {down:g} degrees: they lie from "
            f"{high:g} to {low:g}"
        )
    left, right = statistics.azimuth_deg()
    if left - right < sensor.azimuth_deg[0] - sensor.azimuth_deg[1] - _MIN_GAP_DEG:
        notes.append(f"azimuths run from {left:g} to {right:g} degrees: set sensor.azimuth_deg=[{left:g}, {right:g}]")
    if statistics.high > sensor.remission_max:
        notes.append(
            f"remissions run to {statistics.high:g}, to {sensor.remission_max:g} expected: set sensor.remission_max"
        )
    for name, deviations in _compute_deviations(sensor, mean).items():
        if abs(deviations) > _MAX_DEVIATIONS:
            index = _CHANNELS.index(name)
            notes.append(
                f"the mean {name} is {mean[index]:g}, {deviations:+.1f} deviations from that of the sensor's scans"
            )
    return notes
