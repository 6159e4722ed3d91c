"""Range images of which scans fill a part: another field of view, degrees in radians, axes or rows exchanged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from sightline.doctor.checks.data.range_images import PartImages, images_by_part
from sightline.doctor.context import Context, check
from sightline.doctor.core.finding import Finding
from sightline.geometry.scans.projection import RangeView, compute_pixels

__all__ = ["projection_coverage"]

_MOST_CLAMPED = 0.1
"""Points above or below the image; of real scans of KITTI up to 0.044."""
_MOST_BESIDE = 0.1
_MOST_EMPTY_ROWS = 0.5
"""The camera of KITTI shows nothing of the lowest 23 of 64 rows."""
_MOST_EMPTY_COLUMNS = 0.25
"""Columns side by side: what the camera of KITTI does not show of 90 degrees is 0.1."""
_LEAST_ORDER = -0.5
"""Correlation of rows with elevations: -1 where rows have equal pitch."""
_FEWEST = 100
_RADIANS_DEG = 2.0
"""No field of view in degrees is as narrow; in radians that would be all there is."""


class _Fault(NamedTuple):
    """What is wrong with a projection, what was measured, what is usual, and what to do."""

    summary: str
    measured: str
    expected: str
    action: str


@check(
    "G3",
    "projection-coverage",
    "preflight",
    severity="warning",
    causes=("data.projection", "cfg.axis_swap", "data.layout"),
    config_path="data.sensor",
)
def projection_coverage(context: Context) -> list[Finding]:
    """Points lie within the image, rows fall from the highest beam, and no half of the rows is always empty."""
    findings = []
    for images in images_by_part(context):
        fault = next(_faults(images), None)
        if fault is not None:
            findings.append(
                projection_coverage.finding(
                    context,
                    fault.summary,
                    split=images.part.split,
                    measured=f"{fault.measured} in {images.num_scans} scans",
                    expected=fault.expected,
                    action=fault.action,
                    evidence={
                        "field": "range_image",
                        "pixels_filled": float((images.range_image >= 0).double().mean()),
                    },
                )
            )
    return findings


def _faults(images: PartImages) -> Iterator[_Fault]:
    view = images.view
    row, elevation, beside, clamped = _measured(images)
    if len(row) < _FEWEST:
        return
    if clamped > _MOST_CLAMPED:
        yield _of_clamped(view, elevation, clamped)
    if beside > _MOST_BESIDE:
        yield _Fault(
            f"{beside:.0%} of the points are beside the image, and are still scored",
            f"{beside:.1%} of the points outside of the azimuths {view.azimuth_deg[0]:g} to {view.azimuth_deg[1]:g}",
            f"at most {_MOST_BESIDE:.0%}",
            "widen data.sensor.azimuth_deg, or crop the scans to it when they are read",
        )
    order = float(torch.corrcoef(torch.stack([row.double(), elevation]))[0, 1])
    if order > _LEAST_ORDER:  # not where it is NaN, of one beam
        yield _Fault(
            "rows of the image do not fall with the elevation of their points",
            f"a correlation of {order:.2f} between row and elevation",
            f"-1, as the highest beam is row 0; above {_LEAST_ORDER:g} rows are mixed",
            "look at the order of x, y and z (z is up) and at ring_order; rows: scan needs points in the order "
            "in which they were measured",
        )
    yield from _of_empty(images)


def _measured(images: PartImages) -> tuple[Tensor, Tensor, float, float]:
    """Row and elevation (rad) of every point, and the shares of points beside and above or below the image."""
    rows, elevations, num_seen, num_clamped, num_points = [], [], 0, 0, 0
    for batch in images.batches:
        points, offsets = batch["points"], batch["whole_offsets"]
        if len(points) != int(offsets[-1]):
            continue  # what follows the projection thinned them
        found = compute_pixels(points, view=images.view, offsets=offsets, ring=batch.get("ring"))
        is_point = found.ranges > 0
        rows.append((batch["nearest"] // images.view.width)[is_point].cpu())
        elevations.append((points[is_point, 2] / found.ranges[is_point]).double().clamp(-1, 1).asin().cpu())
        num_seen += int(found.is_seen.sum())
        num_clamped += int(found.is_clamped.sum())
        num_points += int(is_point.sum())
    empty = torch.empty(0)
    beside, clamped = 1 - num_seen / max(1, num_points), num_clamped / max(1, num_seen)
    return torch.cat([empty.long(), *rows]), torch.cat([empty.double(), *elevations]), beside, clamped


def _of_clamped(view: RangeView, elevation: Tensor, clamped: float) -> _Fault:
    low, high = (
        float(each)
        for each in torch.rad2deg(elevation.sort().values[[len(elevation) // 50, -1 - len(elevation) // 50]])
    )
    up, down = view.fov_deg
    is_radians = up - down < _RADIANS_DEG
    return _Fault(
        f"{clamped:.0%} of the points are above or below the image"
        + (", whose borders look like radians" * is_radians),
        f"borders at {up:g} and {down:g} degrees, 96 % of the points between {high:.1f} and {low:.1f}",
        f"at most {_MOST_CLAMPED:.0%} of the points outside",
        "give data.sensor.fov_deg in degrees, highest first"
        + (
            ""
            if is_radians
            else f", such as [{high + 1:.0f}, {low - 1:.0f}]; or mend the order of x, y and z (z is up)"
        ),
    )


def _of_empty(images: PartImages) -> Iterator[_Fault]:
    is_filled = images.range_image >= 0
    rows, columns = (is_filled.any(dim=0).any(dim=axis) for axis in (1, 0))
    empty = int((~rows).sum())
    if empty > _MOST_EMPTY_ROWS * len(rows):
        yield _Fault(
            f"{empty} of {len(rows)} rows of the image are always empty",
            f"no point in {empty} of {len(rows)} rows",
            f"at most {_MOST_EMPTY_ROWS:.0%} of the rows",
            "set the height of `project` to the number of beams, and data.sensor.fov_deg to their elevations",
        )
    gap = _longest_gap(columns)
    if gap > _MOST_EMPTY_COLUMNS * len(columns):
        degrees = abs(images.view.azimuth_deg[0] - images.view.azimuth_deg[1]) * gap / len(columns)
        yield _Fault(
            f"{gap} of {len(columns)} columns of the image, side by side, are always empty",
            f"no point within {degrees:.0f} degrees",
            f"at most {_MOST_EMPTY_COLUMNS:.0%} of the columns",
            "set data.sensor.azimuth_deg to the left and right border of what the sensor sees, as in [50, -50]",
        )


def _longest_gap(is_filled: Tensor) -> int:
    """The most columns side by side that are empty, the last beside the first."""
    places = is_filled.nonzero()[:, 0]
    if not len(places):
        return len(is_filled)
    return int(torch.cat([places.diff(), places[:1] + len(is_filled) - places[-1:]]).max()) - 1
