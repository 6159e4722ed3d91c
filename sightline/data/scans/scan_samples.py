"""The sample of every set of LiDAR scans: what a file gives, its fields, and the statistics of a range image."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sightline.errors import DataError
from sightline.types import Field

__all__ = ["FEATURES", "RawScan", "channel_sums", "check_scan", "count_others", "mean_and_std", "scan_fields"]

FEATURES = ("remission",)
"""What a network is given of a point beside its coordinates."""
_LEAST_SPREAD = 1e-3
"""Of a channel that hardly varies, such as the heights of one beam: nothing is divided by less."""
_MAX_REACH_M = 1e4
_MAX_REACH_RATIO = 100.0
"""A point this far away, and this many times as far as 99 % of its scan, is not a return: echoes of an earlier pulse
lie within ten times the others."""
_MAX_WORLD_M = 1e6
"""Beyond this all points are in coordinates of the world."""


class RawScan(NamedTuple):
    """A scan as its files hold it, in their order.

    `points` (N, 3) float32 metres, x forward, y left, z up; `remission` (N,) float32 on the files' scale; `ids` (N,)
    int64, those of a label map; `ring` (N,) int64, 0 the highest beam, and `column` (N,) int64 of the sensor's image,
    where files know them. `is_return` (N,) bool, where files mark points without a return: those lie at the origin.
    """

    points: np.ndarray
    remission: np.ndarray
    ids: np.ndarray
    ring: np.ndarray | None = None
    column: np.ndarray | None = None
    is_return: np.ndarray | None = None

    def returns(self) -> RawScan:
        """The scan without its points that have no return."""
        if self.is_return is None:
            return self
        ring, column = (None if each is None else each[self.is_return] for each in (self.ring, self.column))
        points, remission, ids = (each[self.is_return] for each in (self.points, self.remission, self.ids))
        return RawScan(points, remission, ids, ring, column)


def check_scan(scan: RawScan, *, where: str) -> RawScan:
    """The scan itself.

    Raises DataError, led by `where`, for a number that is not finite, a negative remission, and a point that lies so
    far beyond all others that no sensor measured it.
    """
    is_wrong = ~(np.isfinite(scan.points).all(axis=1) & np.isfinite(scan.remission) & (scan.remission >= 0))
    if is_wrong.any():
        place = int(is_wrong.argmax())
        values = ", ".join(f"{each:g}" for each in (*scan.points[place], scan.remission[place]))
        raise DataError(
            f"{where}: point {place} is {values} (x, y, z, remission){count_others(is_wrong, 'so are')}; "
            "coordinates must be finite and remissions not negative: take these points out, or get the file again"
        )
    _check_reach(scan.points, where)
    return scan


def count_others(is_found: np.ndarray, verb: str) -> str:
    """The words for all but the first that is found, such as `, and so are 3 more`; empty where there is one."""
    num_others = int(is_found.sum()) - 1
    return f", and {verb} {num_others} more" if num_others > 0 else ""


def _check_reach(points: np.ndarray, where: str) -> None:
    reach = np.abs(points).max(axis=1, initial=0.0)
    if reach.max(initial=0.0) <= _MAX_REACH_M:
        return
    most = float(np.quantile(reach, 0.99, method="lower"))
    if most > _MAX_WORLD_M:
        raise DataError(
            f"{where}: 99 % of its points lie up to {most:.4g} m away, as in coordinates of the world; scans are in "
            "metres from the sensor: subtract its place"
        )
    is_stray = reach > max(_MAX_REACH_M, _MAX_REACH_RATIO * most)
    if is_stray.any():
        place = int(is_stray.argmax())
        raise DataError(
            f"{where}: point {place} lies {reach[place]:.4g} m away{count_others(is_stray, 'so far do')}, "
            f"99 % of the {len(points)} points within {most:.4g} m; no sensor measures that: take these points out, or "
            "get the file again"
        )


def scan_fields(
    *, num_classes: int, reach_m: float, num_beams: int | None, ignore_index: int = 0, has_columns: bool = False
) -> dict[str, Field]:
    """The fields of a scan; `ring` where beams are numbered, 0 the highest, `column` where the image's columns are."""
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
    """Sums (2, 5) float64 of range, x, y, z and remission over points (N, 3) and (N, 1), and of their squares."""
    x, y, z = points.T.astype(np.float64)
    channels = (np.sqrt(x * x + y * y + z * z), x, y, z, remission[:, 0].astype(np.float64))
    return np.array([[each.sum() for each in channels], [each @ each for each in channels]])


def mean_and_std(sums: np.ndarray, count: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of five channels from sums (2, 5) over `count` points, to four decimals."""
    mean, square = sums / max(count, 1)
    spread = np.sqrt(np.maximum(square - mean**2, _LEAST_SPREAD**2))
    return tuple(mean.round(4).tolist()), tuple(spread.round(4).tolist())
