"""A look at scans before they are prepared: a label map for the ids found, and what is unlike the expected sensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sightline.data.scans.label_maps import LabelMap
from sightline.data.scans.samples import RawScan, mean_and_spread, sums_of
from sightline.data.scans.sensors import Sensor

__all__ = ["MOST_SCANS", "survey_scans"]

MOST_SCANS = 200
"""Scans that are looked at, evenly spread over those there are."""
_LOOKED_AT = ("range", "x", "y", "z", "remission")
_MOST_OUTSIDE = 0.05
"""Share of points outside the field of view: real scans of KITTI have up to 0.044."""
_MOST_SPREADS = 3.0


def survey_scans(
    readers: Sequence[Callable[[], RawScan]], *, source: Path, label_map: LabelMap, sensor: Sensor
) -> dict[str, Any]:
    """What `data info NAME --from PATH` prints: ids, `label_map` where the map lacks some, statistics, and `unlike`.

    The proposed map has the classes of `label_map`, and each further id as a class of its own.
    """
    chosen = np.unique(np.linspace(0, len(readers) - 1, min(MOST_SCANS, len(readers))).astype(np.int64))
    counts, sums, num_points, num_outside, high = np.zeros(2**16, dtype=np.int64), np.zeros((2, 5)), 0, 0, 0.0
    low_rad, high_rad = np.deg2rad(sensor.fov_deg[1]), np.deg2rad(sensor.fov_deg[0])
    for index in chosen:
        scan = readers[index]()
        counts += np.bincount(scan.ids, minlength=2**16)
        sums += sums_of(scan.points, scan.remission[:, None])
        distance = np.maximum(np.linalg.norm(scan.points, axis=1), 1e-6)
        elevation = np.arcsin(np.clip(scan.points[:, 2] / distance, -1, 1))
        num_outside += int(((elevation < low_rad) | (elevation > high_rad)).sum())
        num_points += len(scan.points)
        high = max(high, float(scan.remission.max(initial=0.0)))
    mean, spread = mean_and_spread(sums, num_points)
    ids = np.flatnonzero(counts)
    document = {
        "source": str(source),
        "scans": f"{len(chosen)} of {len(readers)} looked at",
        "points_per_id": {f"{raw} {label_map.name_of(raw)}": int(counts[raw]) for raw in ids.tolist()},
        "input_mean": list(mean),
        "input_std": list(spread),
        "unlike": _unlike(sensor, mean, num_outside / max(num_points, 1), high),
    }
    unknown = [raw for raw in ids.tolist() if not label_map.has_id(raw)]
    return {**document, "label_map": label_map.tables_with(unknown)} if unknown else document


def _unlike(sensor: Sensor, mean: tuple[float, ...], share_outside: float, high: float) -> list[str]:
    """What of the scans a network trained on the expected sensor would not know."""
    notes = []
    if share_outside > _MOST_OUTSIDE:
        up, down = sensor.fov_deg
        notes.append(f"{share_outside:.0%} of the points are outside the field of view from {up:g} to {down:g} degrees")
    if high > sensor.remission_max:
        notes.append(f"remissions run to {high:g}, to {sensor.remission_max:g} expected: set sensor.remission_max")
    if sensor.input_mean is not None and sensor.input_std is not None:
        for name, found, expected, spread in zip(_LOOKED_AT, mean, sensor.input_mean, sensor.input_std, strict=True):
            if abs(found - expected) > _MOST_SPREADS * spread:
                notes.append(f"the mean {name} is {found:g}, {expected:g} with a spread of {spread:g} expected")
    return notes
