"""Survey of unprepared scans: ids, an estimate of the sensor, and the range images that would fit."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sightline.areas.scans.projection_summary import ProjectionSummary
from sightline.areas.scans.sets.scan_preparation import guess_remission_max
from sightline.ops.views.projection import RangeView, rows_by_file_order
from sightline.store.files.scan_samples import RawScan, channel_sums, check_scan, mean_and_std
from sightline.store.label_maps import LabelMap, identity_map

_MAX_SCANS = 200
"""Maximum number of surveyed scans, evenly spaced over all."""
_MAX_PROJECTED = 16
"""Maximum number of scans that are also projected: with kNN voting a full scan takes a second."""
_WIDTHS = (2048, 1024, 512)
"""Widths of range images in columns of a full turn."""
_WIDTH_STEP = 32
"""Widths are multiples of it, as networks halve them up to five times."""
_MIN_SHOWN = 0.95
"""Share of points that an image of the proposed width shows; if none does, about the best share."""
_SAME_SHARE = 0.005
"""A wider image is not proposed for a gain of this share or less."""
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
    high: float = 0.0

    def add(self, scan: RawScan) -> None:
        """Add the returns of a scan to the statistics."""
        self.ids += np.bincount(scan.ids, minlength=2**16)
        self.sums += channel_sums(scan.points, scan.remission[:, None])
        distance = np.maximum(np.linalg.norm(scan.points, axis=1), 1e-6)
        elevation = np.degrees(np.arcsin(np.clip(scan.points[:, 2] / distance, -1, 1)))
        azimuth = np.degrees(np.arctan2(scan.points[:, 1], scan.points[:, 0]))
        self.elevations += np.histogram(elevation, bins=1800, range=(-90, 90))[0]
        self.azimuths += np.histogram(azimuth, bins=360, range=(-180, 180))[0]
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
    id_names: Mapping[int, str],
    num_beams: int | None = None,
) -> dict[str, Any]:
    """Survey scans for `data info NAME --from PATH`: ids, statistics, and the sensor and range images that would fit.

    `readers` maps files to functions that read them, `id_names` ids to names. If `num_beams` is stated, rings are read,
    and are the rows of the proposed image. Raises as the readers, and DataError for
    a scan that cannot be prepared.
    """
    files = list(readers)
    chosen = _choose_evenly(len(readers), _MAX_SCANS)
    statistics = _SurveyStatistics()
    for index in chosen:
        statistics.add(check_scan(readers[files[index]](), where=str(files[index])).returns())
    mean, std = mean_and_std(statistics.sums, statistics.num_points)
    ids = np.flatnonzero(statistics.ids).tolist()
    labels = identity_map(ids, id_names, where=str(source))
    rings = statistics.num_rings()
    has_rings = num_beams is not None
    num_beams, doubts = (num_beams, []) if num_beams is not None else statistics.num_beams()
    fov_deg, azimuth_deg = statistics.fov_deg(), statistics.azimuth_deg()
    scans = [readers[files[index]]().returns() for index in _choose_evenly(len(readers), _MAX_PROJECTED)]
    turn = (azimuth_deg[0] - azimuth_deg[1]) / 360
    widths = [max(1, round(width * turn / _WIDTH_STEP)) * _WIDTH_STEP for width in _WIDTHS]
    figures = {
        width: _measure_projection(scans, labels, RangeView(num_beams, width, "pitch", fov_deg, azimuth_deg))
        for width in widths
    }
    shown = {width: shares["points_shown"] for width, shares in figures.items()}
    fit = min(width for width in widths if shown[width] >= min(_MIN_SHOWN, max(shown.values()) - _SAME_SHARE))
    block = (
        f"{{fov_deg: {list(fov_deg)}, azimuth_deg: {list(azimuth_deg)}, num_beams: {num_beams}, "
        f"remission_max: {guess_remission_max(statistics.high)}}}"
    )
    size: dict[str, Any] = {"height": num_beams, "width": fit}
    size |= {"rows": "ring"} if has_rings else {}
    words = [f"transforms.evaluate.0.{key}={value}" for key, value in size.items()]
    if turn == 1:
        words += [f"transforms.train.2.{key}={value}" for key, value in size.items()]
    else:  # turned scans would leave the image
        project = ", ".join(f"{key}: {value}" for key, value in ({"name": "project"} | size).items())
        words += [f"transforms.train=[{{name: flip, axes: [y]}}, {{{project}}}]", "model.circular=false"]
    return {
        "source": str(source),
        "scans": f"{len(chosen)} of {len(readers)} looked at",
        "points_per_id": {f"{raw} {labels.label_name(raw)}": int(statistics.ids[raw]) for raw in ids},
        "sensor": {
            "elevations_deg": list(fov_deg),
            "azimuths_deg": list(azimuth_deg),
            "rings": "none found" if rings is None else str(rings),
            "remission_high": round(statistics.high, 4),
        },
        "input_mean": list(mean),
        "input_std": list(std),
        "proposed": f"sensor: {block}",
        **({"doubts": doubts} if doubts else {}),
        "projected": {f"{num_beams} x {width}": shares for width, shares in figures.items()},
        "for_config": shlex.join([f"data.sensor={block}", *words]),
        "proposed_projection": f"{{name: project, height: {num_beams}, width: {fit}}} shows "
        f"{figures[fit]['points_shown']:.0%} of points",
    }


def _choose_evenly(count: int, max_chosen: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, min(max_chosen, count)).astype(np.int64)).tolist()


def _measure_projection(scans: Sequence[RawScan], labels: LabelMap, view: RangeView) -> dict[str, float]:
    """Compute the coverage of a range projection, and the metrics of a network that is right in every pixel."""
    summary = ProjectionSummary(view, labels.num_classes, labels.ignore_index)
    for scan in scans:
        label = torch.from_numpy(labels.classes(scan.ids, where="the survey"))
        points = torch.tensor(scan.points)
        summary.add(points, label=label, offsets=torch.tensor([0, len(points)]))
    return summary.figures()
