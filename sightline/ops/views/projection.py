"""Spherical projection of LiDAR scans to range images: the pixel of every point, and the point of every pixel.

Scans follow one another in `points` (P, 3), metres in the sensor's frame (x forward, y left, z up), `offsets` (S+1,)
int64 saying where each starts. A full turn has forward in its middle column and the left side in its left half.
Arithmetic is that of the published code in the type of the points, float32 as a rule. Roots and angles alone are taken
in float64 and then rounded: libraries, devices and the loops of one library differ in the last bit of a float32 one.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Rows = Literal["pitch", "ring", "table", "scan"]


@dataclass(frozen=True, slots=True)
class RangeView:
    """Rows and columns of a range image; row 0 is the highest.

    `rows`: equal steps of elevation between the borders `fov_deg`, up and down (`pitch`); the point's ring index
    (`ring`); the nearest of the elevations `beams_deg`, highest first (`table`); or the order of the file, in which
    one beam follows another (`scan`). `azimuth_deg` are the azimuths atan2(y, x) of the left and right border.
    Raises ValueError for a view without area, and for a table that does not have one beam for each row.
    """

    height: int
    width: int
    rows: Rows = "pitch"
    fov_deg: tuple[float, float] = (3.0, -25.0)
    azimuth_deg: tuple[float, float] = (180.0, -180.0)
    beams_deg: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        up, down = self.fov_deg
        if self.rows == "pitch" and not 90 >= up > down >= -90:
            raise ValueError(f"fov_deg ({up:g}, {down:g}): the upper border, in degrees, must be above the lower one")
        if not 0 < abs(self.azimuth_deg[0] - self.azimuth_deg[1]) <= 360:
            raise ValueError(f"azimuth_deg {self.azimuth_deg}: the borders must be up to 360 degrees apart, not equal")
        if self.rows == "table" and len(self.beams_deg) != self.height:
            raise ValueError(
                f"beams_deg: {len(self.beams_deg)} beams for a height of {self.height} rows; rows: table needs one "
                "beam a row, rows: pitch needs none"
            )
        if any(low >= high for high, low in itertools.pairwise(self.beams_deg)):
            raise ValueError("beams_deg: elevations must fall from the first to the last; sort them, highest first")

    @property
    def num_pixels(self) -> int:
        """The number of pixels of the image."""
        return self.height * self.width

    @property
    def is_full_turn(self) -> bool:
        """True if the last column is next to the first."""
        return abs(self.azimuth_deg[0] - self.azimuth_deg[1]) == 360


class PointPixels(NamedTuple):
    """Pixel and range of each of the points (P,).

    `pixel` is row * W + column in its own scan's image, int64; `ranges` are metres; `is_seen` is True if the point may
    be drawn, `is_clamped` if it is above or below the view and drawn in the first or last row.
    """

    pixel: Tensor
    ranges: Tensor
    is_seen: Tensor
    is_clamped: Tensor


class Projection(NamedTuple):
    """Range images: `point_index` (S, H, W) int64, the row of `points` in each pixel, -1 if empty.

    Rest as `PointPixels`.
    """

    point_index: Tensor
    pixel: Tensor
    ranges: Tensor
    is_in_view: Tensor
    is_clamped: Tensor


@dataclass(frozen=True, slots=True)
class Coverage:
    """Counts of a projection: its points, those in the view, those drawn, and those above or below all rows."""

    num_points: int
    num_seen: int
    num_drawn: int
    num_clamped: int
    num_pixels: int

    @property
    def points_drawn(self) -> float:
        """Share of all points that a pixel shows."""
        return self.num_drawn / max(1, self.num_points)

    @property
    def pixels_filled(self) -> float:
        """Share of all pixels that show a point."""
        return self.num_drawn / max(1, self.num_pixels)

    @property
    def points_clamped(self) -> float:
        """Share of the points in the view that are drawn in the first or last row from outside of it."""
        return self.num_clamped / max(1, self.num_seen)


@torch.no_grad()
def project_scans(points: Tensor, *, view: RangeView, offsets: Tensor, ring: Tensor | None = None) -> Projection:
    """Project points (P, 3) to range images (S, H, W).

    Each pixel shows its nearest return, of equal ones the lowest row.
    Points at the origin (no return) and outside a partial azimuth are not drawn; their pixel is the closest one. Points
    above or below all rows are drawn in the first or last. `ring` (P,) int64 counts from the highest beam, row 0. The
    result is the same on every device.
    Raises ValueError for points that are not finite, and for rings that are missing or outside of the rows.
    Source: Milioto et al. 2019 (RangeNet++), eq. 1.
    """
    pixels = compute_pixels(points, view=view, offsets=offsets, ring=ring)
    ranges = pixels.ranges.masked_fill(~pixels.is_seen, torch.inf).float()
    flat_pixel, num_scans = pixels.pixel, len(offsets) - 1
    if num_scans > 1:
        flat_pixel = flat_pixel + scan_index(offsets) * view.num_pixels
    shown = nearest_returns(ranges, pixel=flat_pixel, num_pixels=num_scans * view.num_pixels)
    return Projection(shown.view(num_scans, view.height, view.width), *pixels)


@torch.no_grad()
def compute_pixels(points: Tensor, *, view: RangeView, offsets: Tensor, ring: Tensor | None = None) -> PointPixels:
    """Compute pixels and ranges (P,) of points (P, 3) as `project_scans`, without the images.

    Raises the same ValueError.
    """
    # Contiguous, since angles of strided numbers take ten times as long; and in place, here and below, on
    # tensors of our own: mapping memory for one number a point takes as long as computing it.
    x, y, z = (points[:, axis].contiguous() for axis in range(3))
    ranges = _ranges(x, y, z)
    _assert_finite(ranges, points, offsets)
    column, is_inside = _columns(x, y, view)
    row, is_clamped = _rows(points, z, ranges, view, offsets, ring)
    is_seen = ranges > 0 if is_inside is None else is_inside & (ranges > 0)
    return PointPixels(row * view.width + column, ranges, is_seen, is_clamped & is_seen)


def point_ranges(points: Tensor) -> Tensor:
    """Return the distance (P,) of points (P, 3) from the sensor, in their dtype: the bits of `compute_pixels`."""
    return _ranges(*(points[:, axis].contiguous() for axis in range(3)))


def _ranges(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return (x * x).add_(y * y).add_(z * z).double().sqrt_().to(x)


def nearest_returns(ranges: Tensor, *, pixel: Tensor, num_pixels: int) -> Tensor:
    """Return the row of the smallest finite range of each pixel, the lowest of equal ones; -1 if there is none.

    `ranges` (P,) float32, `pixel` (P,) int64; int64 (num_pixels,). One minimum of integers, the bits of the range above
    those of the row: bits of floats that are not negative rise with them, and no order of threads changes a minimum.
    """
    keys = ranges.view(torch.int32).long().bitwise_left_shift_(32)
    keys |= torch.arange(len(ranges), device=ranges.device)
    nearest = keys.new_full((num_pixels,), _NO_RETURN).scatter_reduce_(0, pixel, keys, "amin")
    is_empty = nearest == _NO_RETURN
    return nearest.bitwise_and_(0xFFFFFFFF).masked_fill_(is_empty, -1)


_NO_RETURN = 0x7F800000 << 32
"""Key of an empty pixel: the bits of an infinite range above those of row 0."""


def gather_to_image(shown: Tensor, values: Tensor, *, empty: float | Tensor) -> Tensor:
    """Gather `values` (P, ...) of the points `shown` (S, H, W), with `empty` for the index -1: (S, H, W, ...)."""
    last = torch.as_tensor(empty, dtype=values.dtype, device=values.device).expand(1, *values.shape[1:])
    return torch.cat((values, last))[shown]  # row -1 is the last one


def scan_index(offsets: Tensor) -> Tensor:
    """Return the scan index (P,) int64 of each point."""
    scans = torch.arange(len(offsets) - 1, device=offsets.device)
    return scans.repeat_interleave(offsets.diff())


def count_coverage(projection: Projection) -> Coverage:
    """Count how much of scans and images a projection covers. Waits for the device."""
    return Coverage(
        num_points=len(projection.pixel),
        num_seen=int(projection.is_in_view.sum()),
        num_drawn=int((projection.point_index >= 0).sum()),
        num_clamped=int(projection.is_clamped.sum()),
        num_pixels=projection.point_index.numel(),
    )


def rows_by_file_order(points: Tensor) -> Tensor:
    """Return the beam (N,) int64, from 0, of each point (N, 3) of a scan whose file lists beam after beam.

    A beam ends where the azimuth passes straight ahead, so the scan must be as it was measured; it may be mirrored
    left to right. Points without azimuth belong to the beam before them. Source: Triess et al. 2020, scan unfolding.
    """
    row = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    measured = (points[:, :2] != 0).any(dim=1).nonzero()[:, 0]
    turns = torch.atan2(points[measured, 1], points[measured, 0]) / (2 * math.pi)
    steps = turns.diff()
    is_clockwise = (steps - steps.round()).sign().sum() < 0
    share = torch.remainder(torch.where(is_clockwise, -turns, turns), 1)
    row[measured[1:]] = ((share[:-1] > _TURN_ENDS) & (share[1:] < 1 - _TURN_ENDS)).long()
    return row.cumsum(0)


_TURN_ENDS = 0.8
"""Share of a turn from which a beam may end; gaps of up to a fifth of a turn, on both sides, end none."""


def _columns(x: Tensor, y: Tensor, view: RangeView) -> tuple[Tensor, Tensor | None]:
    """Return the column (P,) of each point, the closest if it is outside.

    And a mask of those inside, None if all are.
    """
    first, last = (math.radians(azimuth) for azimuth in view.azimuth_deg)
    centre, half = (first + last) / 2, (first - last) / 2
    yaw = torch.atan2(y.double(), x.double()).neg_().to(x)
    if centre:
        yaw += centre
        yaw -= 2 * math.pi * (yaw / (2 * math.pi)).round()
    is_inside = None if view.is_full_turn else yaw.abs() <= abs(half)
    column = yaw.div_(x.new_tensor(half)).add_(1.0).mul_(0.5)  # a tensor: GPUs multiply by the inverse of a number
    return column.mul_(view.width).floor_().clamp_(0, view.width - 1).long(), is_inside


def _rows(
    points: Tensor, z: Tensor, ranges: Tensor, view: RangeView, offsets: Tensor, ring: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the row (P,) of each point, and a mask (P,) of those above the first or below the last."""
    if view.rows == "ring":
        row = _check_rings(ring, view, offsets)
        return row, torch.zeros_like(row, dtype=torch.bool)
    if view.rows == "scan":
        bounds = offsets.tolist()
        scans = [rows_by_file_order(points[a:b]) for a, b in itertools.pairwise(bounds)]
        row = torch.cat(scans) if scans else offsets.new_empty(0)
        return row.clamp(max=view.height - 1), row >= view.height
    sine = (z / ranges.clamp(min=torch.finfo(ranges.dtype).tiny)).clamp_(-1, 1)  # where squares underflow, r < |z|
    pitch = sine.double().asin_().to(sine)
    if view.rows == "table":
        return _nearest_beams(pitch, view)
    up, down = (math.radians(border) for border in view.fov_deg)
    position = pitch.sub_(down).div_(points.new_tensor(up - down)).neg_().add_(1.0).mul_(view.height).floor_()
    is_clamped = (position < 0) | (position >= view.height)
    return position.clamp_(0, view.height - 1).long(), is_clamped


def _nearest_beams(pitch: Tensor, view: RangeView) -> tuple[Tensor, Tensor]:
    beams = torch.deg2rad(torch.tensor(view.beams_deg, dtype=torch.float64)).to(pitch)
    between = (beams[:-1] + beams[1:]) / 2
    row = torch.searchsorted(-between, -pitch)
    if len(beams) == 1:
        return row, torch.zeros_like(row, dtype=torch.bool)
    above, below = beams[0] + (beams[0] - between[0]), beams[-1] - (between[-1] - beams[-1])
    return row, (pitch > above) | (pitch < below)


def _check_rings(ring: Tensor | None, view: RangeView, offsets: Tensor) -> Tensor:
    if ring is None:
        raise ValueError("rows: ring needs the ring of every point, and there is none; use rows: pitch, table or scan")
    is_wrong = (ring < 0) | (ring >= view.height)
    if bool(is_wrong.any()):  # waits for the device, once a batch: an index outside would end the process there
        point = int(is_wrong.nonzero()[0])
        raise ValueError(
            f"ring[{point}], {_describe_point(point, offsets)}, is {int(ring[point])}; the image has the rows 0 to "
            f"{view.height - 1}: set height to the number of rings"
        )
    return ring.long()


def _assert_finite(ranges: Tensor, points: Tensor, offsets: Tensor) -> None:
    if bool(torch.isfinite(ranges.sum())):  # waits for the device, once a batch
        return
    is_finite = torch.isfinite(ranges)
    if bool(is_finite.all()):  # the sum alone was too large
        return
    point = int((~is_finite).nonzero()[0])
    raise ValueError(
        f"points[{point}], {_describe_point(point, offsets)}, is {points[point].tolist()}; a projection needs finite "
        "coordinates: remove such points"
    )


def _describe_point(point: int, offsets: Tensor) -> str:
    scan = int((offsets <= point).sum()) - 1
    return f"point {point - int(offsets[scan])} of scan {scan}"
