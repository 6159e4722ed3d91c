"""Survey of unprepared scans: ids, an estimate of the sensor, and the range images and the voxels that would fit."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sightline.areas.scans.models.salsanext import SalsaNext
from sightline.areas.scans.projection_summary import ProjectionSummary
from sightline.areas.scans.sets.azimuth_step import AzimuthStep, choose_width, measure_step, ring_differences
from sightline.areas.scans.sets.scan_preparation import guess_remission_max
from sightline.ops.views.projection import RangeView, Rows, rows_by_file_order
from sightline.parts.voxels.grids import GridSummary
from sightline.store.files.scan_samples import RawScan, channel_sums, check_scan, mean_and_std
from sightline.store.files.sensors import MAX_RINGS, MIN_RING_CORRELATION, next_number_of_beams
from sightline.store.label_maps import LabelMap, identity_map, make_label_map

_MAX_SCANS = 200
"""Maximum number of surveyed scans, evenly spaced over all."""
_MAX_PROJECTED, _MAX_IN_VOXELS = 16, 4
"""Maximum number of scans that are also projected, with kNN voting in a second each, and grouped to voxels."""
_FINEST_M, _COARSEST_M = 0.05, 0.2
"""Range of the side of sparse voxels: the published networks for scans have 5 cm."""
_WIDTHS = (2048, 1024, 512)
"""Widths of range images, in columns of a full turn, that are tried where the azimuths have no step."""
_MIN_SHOWN = 0.95
"""Share of points that the narrowest of these widths must show to be proposed; if none does, about the best share."""
_SAME_SHARE = 0.005
"""A wider image is not proposed for a gain of this share or less."""
_TAIL = 0.001
"""Share of points left out at either end of the elevations."""
_GUESSED_BEAMS = 64
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
    differences: list[np.ndarray] = field(default_factory=list)
    ring_source: str = ""
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
        for source, find in _RING_SOURCES.items():
            ring = find(scan, elevation)
            if len(ring) and ring.min() < ring.max() and -np.corrcoef(ring, elevation)[0, 1] >= MIN_RING_CORRELATION:
                self.rings.append(int(ring.max()) + 1)
                self.differences.append(ring_differences(scan.points, ring))
                self.ring_source = source
                break

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
        counts = [count for count in self.rings if count <= MAX_RINGS]
        return max(set(counts), key=counts.count) if counts else None

    def num_beams(self) -> tuple[int, list[str]]:
        """Propose a number of beams, with doubts: a beam without a return leaves no ring."""
        rings, hint = self.num_rings(), "look at the sensor's data sheet"
        if rings is None:
            return _GUESSED_BEAMS, [
                f"num_beams: {_GUESSED_BEAMS} is a guess, there are no rings by a column, the order of files or groups "
                f"of elevations; {hint}"
            ]
        proposed = next_number_of_beams(rings)
        source = self.ring_source
        if proposed != rings:
            return proposed, [
                f"num_beams: there are {rings} rings by {source}, and beams without a return leave none; "
                f"{proposed} is the next number that sensors have: {hint}"
            ]
        if (largest := max(self.rings)) > proposed:
            return proposed, [f"num_beams: scans have up to {largest} rings by {source}, most have {rings}; {hint}"]
        return proposed, []


def _rings_of_column(scan: RawScan, elevation: np.ndarray) -> np.ndarray:
    return np.zeros(0) if scan.ring is None else scan.ring


def _rings_of_order(scan: RawScan, elevation: np.ndarray) -> np.ndarray:
    return rows_by_file_order(torch.tensor(scan.points)).numpy()


def _rings_of_elevations(scan: RawScan, elevation: np.ndarray) -> np.ndarray:
    """Return the group (N,) of each elevation in degrees, the highest 0; empty if no gaps divide narrow groups."""
    order = np.argsort(-elevation)
    is_gap = -np.diff(elevation[order]) > _MIN_BEAM_GAP_DEG
    ring = np.zeros(len(elevation), dtype=np.int64)
    ring[order[1:]] = is_gap.cumsum()
    if not 1 < ring.max(initial=0) + 1 <= MAX_RINGS:
        return np.zeros(0)
    bounds = np.flatnonzero(np.concatenate([[True], is_gap, [True]]))
    spans = elevation[order[bounds[:-1]]] - elevation[order[bounds[1:] - 1]]
    is_beam = np.median(spans) <= _MIN_BEAM_GAP_DEG and np.median(np.diff(bounds)) >= _MIN_BEAM_POINTS
    return ring if is_beam else np.zeros(0)


_MIN_BEAM_GAP_DEG = 0.1
"""Minimum gap between the elevations of two beams, and the largest span of those of one, by the median over beams."""
_MIN_BEAM_POINTS = 16
"""Minimum number of points of a group of elevations, by the median over groups, at which groups count as beams."""
_RING_SOURCES: Mapping[str, Callable[[RawScan, np.ndarray], np.ndarray]] = {
    "a column": _rings_of_column,
    "groups of elevations": _rings_of_elevations,
    "the order of the files": _rings_of_order,
}
"""Functions that number the rings of a scan with these elevations (N,) in degrees, in the order of trust."""


def survey_scans(
    readers: Mapping[Path, Callable[[], RawScan]],
    *,
    source: Path,
    names: Sequence[str | None] | None = None,
    num_beams: int | None = None,
    about_rings: str = "",
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Survey scans for `data info NAME --from PATH`: ids, statistics, sensor, range images and voxels that fit.

    `readers` maps files to functions that read them; `names`, if stated, are those of the ids 0, 1, 2 and so on. With
    `num_beams` rings are read, and are the rows of the proposed image; `about_rings` describes how they were
    recognised, `notes` what to look at. Raises as the readers, and DataError for a scan that cannot be prepared.
    """
    files = list(readers)
    chosen = choose_evenly(len(readers), _MAX_SCANS)
    statistics = _SurveyStatistics()
    for index in chosen:
        statistics.add(check_scan(readers[files[index]](), where=str(files[index])).returns())
    mean, std = mean_and_std(statistics.sums, statistics.num_points)
    ids = np.flatnonzero(statistics.ids).tolist()
    labels = identity_map(ids, {}, where=str(source)) if names is None else make_label_map(names, where="names")
    has_rings, doubts = num_beams is not None, [*notes]
    if num_beams is None:
        num_beams, more = statistics.num_beams()
        doubts += more
    fov_deg, azimuth_deg = statistics.fov_deg(), statistics.azimuth_deg()
    scans = [readers[files[index]]().returns() for index in choose_evenly(len(readers), _MAX_PROJECTED)]
    turn = (azimuth_deg[0] - azimuth_deg[1]) / 360
    height = -(-num_beams // _ROWS) * _ROWS
    rows: Rows = "ring" if has_rings else "pitch"
    step = measure_step(statistics.differences)
    figures = {
        width: _measure_projection(scans, labels, RangeView(height, width, rows, fov_deg, azimuth_deg))
        for width in _list_widths(step, turn)
    }
    shown = {width: shares["points_shown"] for width, shares in figures.items()}
    enough = min(_MIN_SHOWN, max(shown.values()) - _SAME_SHARE)
    fit = max(figures) if step is not None else min(width for width in figures if shown[width] >= enough)
    block = (
        f"{{fov_deg: {list(fov_deg)}, azimuth_deg: {list(azimuth_deg)}, num_beams: {num_beams}, "
        f"remission_max: {guess_remission_max(statistics.high)}}}"
    )
    voxels = _measure_voxels(scans, labels, _choose_voxel(scans, fov_deg, num_beams))
    size: dict[str, Any] = {"height": height, "width": fit, **({"rows": "ring"} if has_rings else {})}
    rings = statistics.num_rings()
    return {
        "source": str(source),
        "scans": f"{len(chosen)} of {len(readers)} looked at",
        "points_per_id": {f"{raw} {labels.label_name(raw)}": int(statistics.ids[raw]) for raw in ids},
        "sensor": {
            "elevations_deg": list(fov_deg),
            "azimuths_deg": list(azimuth_deg),
            "rings": about_rings or ("none found" if rings is None else str(rings)),
            "columns_per_turn": _describe_step(step),
            "remission_high": round(statistics.high, 4),
        },
        "input_mean": list(mean),
        "input_std": list(std),
        "proposed": f"sensor: {block}",
        **({"doubts": doubts} if doubts else {}),
        "projected": {f"{height} x {width}": shares for width, shares in figures.items()},
        "for_config": shlex.join([f"data.sensor={block}", *_list_words(size, is_full_turn=turn == 1)]),
        "proposed_projection": f"{{{_format_block({'name': 'project', **size})}}} shows "
        f"{figures[fit]['points_shown']:.0%} of points",
        "voxels": {
            **voxels,
            "for_config": shlex.join([f"data.sensor={block}", f"model.grid_m={voxels['grid_m']}"]),
        },
    }


_ROWS, _COLUMNS = SalsaNext.size_divisors
"""Multiples that the rows and columns of an image must be: those of the network of `segment/own_scans`."""


def _list_widths(step: AzimuthStep | None, turn: float) -> list[int]:
    """List the widths to measure for a share of a turn, widest first: by the step, and half and a quarter of that."""
    widths = [width * turn for width in _WIDTHS]
    if step is not None:
        full = choose_width(step.columns_per_turn, turn, multiple=_COLUMNS)
        widths = [full, full / 2, full / 4]
    return [max(1, math.ceil(width / _COLUMNS)) * _COLUMNS for width in widths]


def _describe_step(step: AzimuthStep | None) -> str:
    if step is None:
        return "not found: azimuths within a ring have no step, or there are no rings"
    return f"{step.columns_per_turn:.1f}, by the step of the azimuth within a ring (jitter {step.jitter:.2f} steps)"


def _list_words(size: Mapping[str, Any], *, is_full_turn: bool) -> list[str]:
    """List the `key=value` words that give `segment/own_scans` images of this size."""
    words = [f"transforms.evaluate.0.{key}={value}" for key, value in size.items()]
    if is_full_turn:
        return [*words, *(f"transforms.train.2.{key}={value}" for key, value in size.items())]
    project = _format_block({"name": "project", **size})  # turned scans would leave the image
    return [*words, f"transforms.train=[{{name: flip, axes: [y]}}, {{{project}}}]", "model.circular=false"]


def _format_block(block: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in block.items())


def choose_evenly(count: int, max_chosen: int) -> list[int]:
    """Choose at most `max_chosen` of the indices below `count`, evenly spaced, the first and last among them."""
    return np.unique(np.linspace(0, count - 1, min(max_chosen, count)).astype(np.int64)).tolist()


def _measure_projection(scans: Sequence[RawScan], labels: LabelMap, view: RangeView) -> dict[str, float]:
    """Compute the coverage of a range projection, and the metrics of a network that is right in every pixel."""
    summary = ProjectionSummary(view, labels.num_classes, labels.ignore_index)
    for scan in scans:
        label = torch.from_numpy(labels.classes(scan.ids, where="the survey"))
        points, ring = torch.tensor(scan.points), None if scan.ring is None else torch.tensor(scan.ring)
        summary.add(points, label=label, offsets=torch.tensor([0, len(points)]), ring=ring)
    return summary.figures()


def _choose_voxel(scans: Sequence[RawScan], fov_deg: tuple[float, float], num_beams: int) -> float:
    """Choose the side of sparse voxels in m: the distance of two beams at the median range of the points.

    Half of the points then have a neighbour of the next beam in a voxel beside theirs. It is between 5 and 20 cm, and
    has two digits.
    """
    ranges = np.concatenate([np.linalg.norm(scan.points, axis=1) for scan in scans])
    step = math.radians(fov_deg[0] - fov_deg[1]) / max(1, num_beams - 1)
    spacing = step * float(np.median(ranges)) if len(ranges) else _FINEST_M
    return float(f"{min(max(spacing, _FINEST_M), _COARSEST_M):.2g}")


def _measure_voxels(scans: Sequence[RawScan], labels: LabelMap, grid_m: float) -> dict[str, Any]:
    """Compute what voxels of this side make of some of the scans."""
    grid = GridSummary(grid_m, labels.num_classes, labels.ignore_index)
    for index in choose_evenly(len(scans), _MAX_IN_VOXELS):
        scan = scans[index]
        label = torch.from_numpy(labels.classes(scan.ids, where="the survey"))
        grid.add(torch.tensor(scan.points), label=label.long())
    return grid.figures()
