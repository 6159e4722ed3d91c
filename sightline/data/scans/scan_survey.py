"""A look at scans before they are prepared: a label map for the ids found, the sensor, and what is unlike another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sightline.data.scans.label_maps import LabelMap, identity_map
from sightline.data.scans.scan_samples import RawScan, channel_sums, check_scan, mean_and_std
from sightline.data.scans.sensors import Sensor
from sightline.geometry.scans.projection import RangeView, rows_by_file_order
from sightline.geometry.scans.projection_summary import ProjectionSummary

__all__ = ["MOST_SCANS", "survey_scans"]

MOST_SCANS = 200
"""Scans that are looked at, evenly spread over those there are."""
_MOST_PROJECTED = 16
"""Of these, scans that are projected too: with a vote of neighbours a whole one takes a second."""
_WIDTHS = (2048, 1024, 512)
"""Columns of a full turn."""
_LOOKED_AT = ("range", "x", "y", "z", "remission")
_MOST_OUTSIDE = 0.05
"""Share of points outside the field of view: real scans of KITTI have up to 0.044."""
_MOST_SPREADS = 3.0
_TAIL = 0.001
"""The share of the points that borders of elevation leave out at either end."""
_MOST_RINGS = 256
_NUMBERS_OF_BEAMS = (1, 4, 8, 16, 32, 40, 64, 80, 128, 256)
"""Those of sensors on the market."""
_GUESSED_BEAMS = 64
_LEAST_ORDER = 0.9
"""Correlation of the order of the file with elevations, from which it counts as that of rings."""
_LEAST_GAP_DEG = 20
"""A gap in the azimuths of all points from which the sensor sees a part of the turn."""


@dataclass
class _Found:
    """Sums over the scans looked at; elevations are counted by tenths of a degree, azimuths by degrees."""

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
        """Take the returns of a scan into account."""
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
        if len(ring) and ring.min() < ring.max() and -np.corrcoef(ring, elevation)[0, 1] >= _LEAST_ORDER:
            self.rings.append(int(ring.max()) + 1)

    def fov_deg(self) -> tuple[float, float]:
        """The highest and the lowest elevation, to tenths, of all but a thousandth of the points at either end."""
        share = self.elevations.cumsum() / max(1, self.elevations.sum())
        low, high = np.searchsorted(share, [_TAIL, 1 - _TAIL])
        return round(float(high) / 10 - 89.9, 1), round(float(low) / 10 - 90, 1)

    def azimuth_deg(self) -> tuple[float, float]:
        """The left and the right border of the azimuths: a full turn where no 20 degrees side by side are empty."""
        places = np.flatnonzero(self.azimuths)
        if not len(places):
            return 180.0, -180.0
        gaps = np.diff(np.append(places, places[0] + 360)) - 1
        if gaps.max() < _LEAST_GAP_DEG:
            return 180.0, -180.0
        right = int(places[(gaps.argmax() + 1) % len(places)]) - 180
        left = int(places[gaps.argmax()]) - 179
        left += 360 if left <= right else 0
        behind = 360 if left + right > 360 else 0  # counted about forward
        return float(left - behind), float(right - behind)

    def num_rings(self) -> int | None:
        """The most frequent number of rings, by the column or the order of the files; None where there are none."""
        counts = [count for count in self.rings if count <= _MOST_RINGS]
        return max(set(counts), key=counts.count) if counts else None

    def num_beams(self) -> tuple[int, list[str]]:
        """The number of beams to propose, and why it may be another: a beam without a return leaves no ring."""
        rings, sheet = self.num_rings(), "look at the sensor's data sheet"
        if rings is None:
            return _GUESSED_BEAMS, [
                f"num_beams: {_GUESSED_BEAMS} is a guess, there are no rings by a column or the order of files; {sheet}"
            ]
        proposed = next(count for count in _NUMBERS_OF_BEAMS if count >= rings)
        source = "a column" if self.has_ring_column else "the order of the files"
        if proposed != rings:
            return proposed, [
                f"num_beams: there are {rings} rings by {source}, and beams without a return leave none; "
                f"{proposed} is the next number that sensors have: {sheet}"
            ]
        if (most := max(self.rings)) > proposed:
            return proposed, [f"num_beams: scans have up to {most} rings by {source}, most have {rings}; {sheet}"]
        return proposed, []


def survey_scans(
    readers: Mapping[Path, Callable[[], RawScan]], *, source: Path, label_map: LabelMap | None, sensor: Sensor | None
) -> dict[str, Any]:
    """What `data info NAME --from PATH` prints: ids, the sensor, its range images, statistics, and what is `unlike`.

    Where `label_map` lacks ids, a map with each of them as a class of its own is proposed. Without a `sensor` to
    compare with, the one found is proposed. `readers` are those of files. Raises as the readers, and DataError for a
    scan that cannot be prepared.
    """
    files = list(readers)
    chosen = _spread(len(readers), MOST_SCANS)
    found = _Found()
    for index in chosen:
        scan = check_scan(readers[files[index]](), where=str(files[index]))
        found.add(scan.returns(), sensor)
    mean, spread = mean_and_std(found.sums, found.num_points)
    ids = np.flatnonzero(found.ids).tolist()
    labels = label_map or identity_map(ids, where=str(source))
    rings = found.num_rings()
    document = {
        "source": str(source),
        "scans": f"{len(chosen)} of {len(readers)} looked at",
        "points_per_id": {f"{raw} {labels.name_of(raw)}": int(found.ids[raw]) for raw in ids},
        "sensor": {
            "elevations_deg": list(found.fov_deg()),
            "azimuths_deg": list(found.azimuth_deg()),
            "rings": "none found" if rings is None else str(rings),
            "remission_high": round(found.high, 4),
        },
        "input_mean": list(mean),
        "input_std": list(spread),
    }
    num_beams, doubts = found.num_beams()
    view = sensor or Sensor(found.fov_deg(), found.azimuth_deg(), (), num_beams, max(1.0, found.high), None, None)
    if sensor is None:
        block = f"fov_deg: {list(view.fov_deg)}, azimuth_deg: {list(view.azimuth_deg)}, num_beams: {view.num_beams}"
        document["proposed"] = f"sensor: {{{block}, remission_max: {1 if found.high <= 1 else 255}}}"
        if doubts:
            document["doubts"] = doubts
    else:
        document["deviations_off"] = _deviations_off(sensor, mean)
        document["unlike"] = _unlike(sensor, found, mean)
    unknown = [raw for raw in ids if not labels.has_id(raw)]
    if unknown:
        labels = LabelMap(labels.tables_with(unknown), where=str(source))
        document["label_map"] = labels.tables_with(())
    scans = [readers[files[index]]().returns() for index in _spread(len(readers), _MOST_PROJECTED)]
    widths = [round(width * (view.azimuth_deg[0] - view.azimuth_deg[1]) / 360) for width in _WIDTHS]
    document["projected"] = {f"{view.num_beams} x {width}": _projected(scans, labels, view, width) for width in widths}
    return document


def _spread(count: int, most: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, min(most, count)).astype(np.int64)).tolist()


def _projected(scans: Sequence[RawScan], labels: LabelMap, sensor: Sensor, width: int) -> dict[str, float]:
    """Shares of points and pixels, and the figures of a network that is right in every pixel."""
    view = RangeView(sensor.num_beams, width, "pitch", sensor.fov_deg, sensor.azimuth_deg)
    summary = ProjectionSummary(view, labels.num_classes, labels.ignore_index)
    for scan in scans:
        label = torch.from_numpy(labels.classes(scan.ids, where="the survey"))
        points = torch.tensor(scan.points)
        summary.add(points, label=label, offsets=torch.tensor([0, len(points)]))
    return summary.figures()


def _deviations_off(sensor: Sensor, mean: tuple[float, ...]) -> dict[str, float]:
    """How many of the sensor's stated deviations the mean of each channel is off; empty where none are stated."""
    if sensor.input_mean is None or sensor.input_std is None:
        return {}
    stated = zip(_LOOKED_AT, mean, sensor.input_mean, sensor.input_std, strict=True)
    return {name: round((found - expected) / spread, 2) for name, found, expected, spread in stated}


def _unlike(sensor: Sensor, found: _Found, mean: tuple[float, ...]) -> list[str]:
    """What of the scans a network trained on the expected sensor would not know."""
    notes = []
    up, down = sensor.fov_deg
    outside = found.num_outside / max(1, found.num_points)
    if outside > _MOST_OUTSIDE:
        high, low = found.fov_deg()
        notes.append(
            f"{outside:.0%} of the points are outside the field of view from {up:g} to {down:g} degrees: they lie from "
            f"{high:g} to {low:g}"
        )
    left, right = found.azimuth_deg()
    if left - right < sensor.azimuth_deg[0] - sensor.azimuth_deg[1] - _LEAST_GAP_DEG:
        notes.append(f"azimuths run from {left:g} to {right:g} degrees: set sensor.azimuth_deg=[{left:g}, {right:g}]")
    if found.high > sensor.remission_max:
        notes.append(
            f"remissions run to {found.high:g}, to {sensor.remission_max:g} expected: set sensor.remission_max"
        )
    for name, off in _deviations_off(sensor, mean).items():
        if abs(off) > _MOST_SPREADS:
            place = _LOOKED_AT.index(name)
            notes.append(f"the mean {name} is {mean[place]:g}, {off:+.1f} deviations from that of the sensor's scans")
    return notes
