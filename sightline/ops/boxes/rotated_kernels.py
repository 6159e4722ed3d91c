"""CPU kernels of turned boxes seen from above: what they share, and which of them others suppress.

A footprint is x, y, half of length and width, cosine and sine of the turn, in float64. Sums are taken in the order of
the plain form (rotated_overlaps.py), so that both have the same bits.
"""

from __future__ import annotations

import numpy as np

from sightline.ops.numba_kernels import inlined_kernel, numba_kernel

_SHORTEST = 1e-30
"""Length of an edge along an axis below which it does not run along it, in metres."""
_TINY = 2.0**-1022
"""The smallest normal number: an area below it is none."""


@numba_kernel
def overlap_all_pairs(first: int, last: int, rows: np.ndarray, columns: np.ndarray, areas: np.ndarray) -> None:
    """Write the areas (N, M) that footprints (N, 6) and (M, 6) share; most pairs are too far apart to share any."""
    reach = np.empty(len(columns))
    for column in range(len(columns)):
        reach[column] = _reach(columns[column])
    x, y = columns[:, 0].copy(), columns[:, 1].copy()
    for row in range(first, last):
        own, result = _reach(rows[row]), areas[row]
        centre_x, centre_y = rows[row, 0], rows[row, 1]
        for column in range(len(columns)):
            right, up, far = x[column] - centre_x, y[column] - centre_y, own + reach[column]
            result[column] = -1.0 if right * right + up * up <= far * far else 0.0
        for column in range(len(columns)):
            if result[column] < 0:
                result[column] = _share(rows[row], columns[column])


@numba_kernel
def overlap_rows(first: int, last: int, rows: np.ndarray, others: np.ndarray, areas: np.ndarray) -> None:
    """Write the areas (N,) that rows of footprints (N, 6) share."""
    for row in range(first, last):
        areas[row] = _share(rows[row], others[row])


@numba_kernel
def suppress_in_order(
    table: np.ndarray,
    labels: np.ndarray,
    is_candidate: np.ndarray,
    threshold: float,
    is_circle: bool,
    is_kept: np.ndarray,
) -> None:
    """Mark the kept ones (N,) of footprints (N, 6), which are sorted by label, then by falling score.

    Of turned boxes those are suppressed whose IoU with a kept one is above the threshold, of circles those whose
    squared distance is at most that.
    """
    kept, x = np.empty(len(table), dtype=np.int64), np.empty(len(table))
    y, reach = np.empty(len(table)), np.empty(len(table))
    first = count = 0
    for index in range(len(table)):
        if index and labels[index] != labels[index - 1]:
            first = count
        centre_x, centre_y = table[index, 0], table[index, 1]
        own, is_hit = 0.0 if is_circle else _reach(table[index]), not is_candidate[index]
        for other in range(first, count):
            if is_hit:
                break
            right, up, far = centre_x - x[other], centre_y - y[other], own + reach[other]
            squared = right * right + up * up
            if is_circle:
                is_hit = squared <= threshold
            elif squared <= far * far:
                is_hit = _exceeds(table[kept[other]], table[index], threshold)
        if not is_hit:
            x[count], y[count], reach[count], kept[count] = centre_x, centre_y, own, index
            is_kept[index] = True
            count += 1


@numba_kernel
def _exceeds(one: np.ndarray, other: np.ndarray, threshold: float) -> bool:
    """Return whether the IoU of two footprints is above a threshold."""
    area, other_area = 4 * one[2] * one[3], 4 * other[2] * other[3]
    shared = min(_share(one, other), min(area, other_area))
    union = area + other_area - shared
    return union >= _TINY and shared / union > threshold


@numba_kernel
def _reach(footprint: np.ndarray) -> float:
    """Return a little more than the distance of the corners from the centre."""
    return 1.001 * np.sqrt(footprint[2] * footprint[2] + footprint[3] * footprint[3])


@numba_kernel
def _share(one: np.ndarray, other: np.ndarray) -> float:
    """Return the area that two footprints share, 0 if they only touch."""
    half_x, half_y, half_l, half_w = one[2], one[3], other[2], other[3]
    cosine, sine = one[4] * other[4] + one[5] * other[5], one[4] * other[5] - one[5] * other[4]
    right, up = other[0] - one[0], other[1] - one[1]
    x, y = one[4] * right + one[5] * up, one[4] * up - one[5] * right
    length_x, length_y, width_x, width_y = half_l * cosine, half_l * sine, half_w * sine, half_w * cosine
    if abs(x) >= half_x + (abs(length_x) + abs(width_x)) or abs(y) >= half_y + (abs(length_y) + abs(width_y)):
        return 0.0
    if abs(cosine * x + sine * y) >= half_l + (abs(half_x * cosine) + abs(half_y * sine)):
        return 0.0
    if abs(cosine * y - sine * x) >= half_w + (abs(half_x * sine) + abs(half_y * cosine)):
        return 0.0
    ax, ay = x + (length_x - width_x), y + (length_y + width_y)
    bx, by = x - (length_x + width_x), y + (width_y - length_y)
    cx, cy = x - (length_x - width_x), y - (length_y + width_y)
    dx, dy = x + (length_x + width_x), y - (width_y - length_y)
    area = (_area_below(ax, ay, bx, by, half_x, half_y) + _area_below(bx, by, cx, cy, half_x, half_y)) + (
        _area_below(cx, cy, dx, dy, half_x, half_y) + _area_below(dx, dy, ax, ay, half_x, half_y)
    )
    return max(area, 0.0)


@inlined_kernel
def _area_below(x0: float, y0: float, x1: float, y1: float, half_x: float, half_y: float) -> float:
    """Return the area between the axis and an edge cut to a box around the origin, negative if it runs right."""
    u0, u1 = max(min(x0, half_x), -half_x), max(min(x1, half_x), -half_x)
    run, rise = x1 - x0, y1 - y0
    v0, v1 = y0, y1
    if abs(run) > _SHORTEST:
        v0 += (u0 - x0) / run * rise
        v1 += (u1 - x1) / run * rise
    w0, w1, rise = max(min(v0, half_y), -half_y), max(min(v1, half_y), -half_y), v1 - v0
    share = (w1 - w0) / rise if abs(rise) > _SHORTEST else 0.0
    return (u0 - u1) * (((w0 + w1) + share * ((v0 - w0) + (v1 - w1))) / 2.0)
