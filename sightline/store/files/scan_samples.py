"""Samples of all sets of LiDAR scans: raw scans, fields, and the statistics of range images."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sightline.contract.errors import DataError
from sightline.contract.types import Field

FEATURES = ("remission",)
"""Features of a point in addition to its coordinates."""
_MIN_STD = 1e-3
"""Lower bound of standard deviations, for channels that hardly vary, such as the heights of one beam."""
_MAX_REACH_M = 1e4
_MAX_REACH_RATIO = 100.0
"""Largest distance of a return, absolute or relative to the distance of 99 % of the scan. Echoes of an earlier pulse
are within ten times that distance."""
_MAX_WORLD_M = 1e6
"""Distance from which a scan is taken to be in world coordinates."""


class RawScan(NamedTuple):
    """Scan as stored in its files, in file order.

    `points` (N, 3) float32 metres, x forward, y left, z up; `remission` (N,) float32 on the files' scale; `ids` (N,)
    int64 of a label map; `ring` (N,) int64, 0 the highest beam, and `column` (N,) int64 of the sensor's image, if files
    have them. `is_return` (N,) bool, if files mark points without a return, which are at the origin. `notes` state how
    the file was read where that is not plain.
    """

    points: np.ndarray
    remission: np.ndarray
    ids: np.ndarray
    ring: np.ndarray | None = None
    column: np.ndarray | None = None
    is_return: np.ndarray | None = None
    notes: tuple[str, ...] = ()

    def returns(self) -> RawScan:
        """Return the scan without points that have no return."""
        if self.is_return is None:
            return self
        arrays = (self.points, self.remission, self.ids, self.ring, self.column)
        return RawScan(*(None if array is None else array[self.is_return] for array in arrays))  # type: ignore[arg-type]


def check_scan(scan: RawScan, *, where: str) -> RawScan:
    """Check a scan and return it unchanged.

    Raises DataError, led by `where`, for a number that is not finite, a negative remission, and a point that is too far
    beyond all others to be a return.
    """
    is_wrong = ~(np.isfinite(scan.points).all(axis=1) & np.isfinite(scan.remission) & (scan.remission >= 0))
    if is_wrong.any():
        index = int(is_wrong.argmax())
        values = ", ".join(f"{value:g}" for value in (*scan.points[index], scan.remission[index]))
        raise DataError(
            f"{where}: point {index} is {values} (x, y, z, remission){count_more(is_wrong, 'so are')}; "
            "coordinates must be finite and remissions not negative: take these points out, or get the file again"
        )
    _check_reach(scan.points, where)
    return scan


def count_more(mask: np.ndarray, verb: str) -> str:
    """Format the number of True entries after the first, as in `, and so are 3 more`; "" if there is only one."""
    num_others = int(mask.sum()) - 1
    return f", and {verb} {num_others} more" if num_others > 0 else ""


def _check_reach(points: np.ndarray, where: str) -> None:
    reach = np.abs(points).max(axis=1, initial=0.0)
    if reach.max(initial=0.0) <= _MAX_REACH_M:
        return
    typical_reach = float(np.quantile(reach, 0.99, method="lower"))
    if typical_reach > _MAX_WORLD_M:
        raise DataError(
            f"{where}: 99 % of its points lie up to {typical_reach:.4g} m away, as in coordinates of the world; scans "
            "are in metres from the sensor: subtract its position"
        )
    is_stray = reach > max(_MAX_REACH_M, _MAX_REACH_RATIO * typical_reach)
    if is_stray.any():
        index = int(is_stray.argmax())
        raise DataError(
            f"{where}: point {index} lies {reach[index]:.4g} m away{count_more(is_stray, 'so far do')}, "
            f"99 % of the {len(points)} points within {typical_reach:.4g} m; no sensor measures that: take these "
            "points out, or get the file again"
        )


def scan_fields(
    *, num_classes: int, reach_m: float, num_beams: int | None, ignore_index: int = 0, has_columns: bool = False
) -> dict[str, Field]:
    """Return the fields of a scan; `ring` with `num_beams` (0 is the highest), `column` with `has_columns`."""
    frame = "sensor: x forward, y left, z up"
    fields = {
        "points": Field("points 3", "float32", "m", frame, -reach_m, reach_m, "concatenate"),
        "remission": Field("points 1", "float32", "share of what was sent", "", 0.0, 1.0, "concatenate"),
        "label": Field("points", "int64", "class", "", 0, max(num_classes - 1, ignore_index), "concatenate"),
    }
    if num_beams is not None:
        fields["ring"] = Field("points", "int64", "beam, 0 the highest", "", 0, num_beams - 1, "concatenate")
    if has_columns:
        fields["column"] = Field("points", "int64", "column of the image", "", 0, None, "concatenate")
    return fields


def channel_sums(points: np.ndarray, remission: np.ndarray) -> np.ndarray:
    """Sum range, x, y, z, remission and their squares: points (N, 3), remission (N, 1) -> (2, 5) float64."""
    x, y, z = points.T.astype(np.float64)
    channels = (np.sqrt(x * x + y * y + z * z), x, y, z, remission[:, 0].astype(np.float64))
    return np.array([[channel.sum() for channel in channels], [channel @ channel for channel in channels]])


def mean_and_std(sums: np.ndarray, count: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Compute mean and standard deviation of five channels from sums (2, 5) over `count` points, to four decimals."""
    mean, square = sums / max(count, 1)
    std = np.sqrt(np.maximum(square - mean**2, _MIN_STD**2))
    return tuple(mean.round(4).tolist()), tuple(std.round(4).tolist())
