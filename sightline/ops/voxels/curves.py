"""Space-filling curves: whole numbers that order the cells of a grid so that near ones are near, and back to cells.

A curve of depth D walks through the 2^D cells along each axis of a cube; a number has 3 D bits. `z` interleaves the
bits of x, y and z (Morton 1966), `hilbert` moves by one cell at a time (Hilbert 1891, by Skilling 2004, Programming the
Hilbert curve); `z-trans` and `hilbert-trans` are the same with x and y exchanged. Cells of half the resolution have
the numbers shifted by three bits, at a depth less by one.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from sightline.ops.segments.offsets import assert_packed, offsets_to_batch
from sightline.ops.voxels.cells import sort_stably
from sightline.ops.waits import require

Curve = Literal["z", "z-trans", "hilbert", "hilbert-trans"]

CURVES: tuple[Curve, ...] = get_args(Curve)
MAX_DEPTH = 16
"""Bits of a cell along an axis: 65,536 cells."""


class CurveOrder(NamedTuple):
    """Voxels of packed clouds along O curves.

    `codes` (O, N) int64 are their numbers, with that of the cloud before the 3 D bits of the curve. `order` (O, N) are
    the voxels by rising number, cloud by cloud, and `inverse` (O, N) the place of each voxel there.
    """

    codes: Tensor
    order: Tensor
    inverse: Tensor


def curve_codes(cells: Tensor, *, curve: Curve, depth: int = MAX_DEPTH) -> Tensor:
    """Return the number (N,) int64 on a curve of each cell (N, 3), whole numbers from 0 to 2^depth - 1.

    Numbers of `z` do not depend on the depth; of `hilbert` they are equal at depths that differ by three. Raises
    ValueError for a depth outside of 1 to 16, for an unknown curve, and for cells outside of the cube.
    """
    _check_curve(curve, depth)
    if cells.ndim != 2 or cells.shape[1] != 3 or cells.is_floating_point() or cells.dtype == torch.bool:
        raise ValueError(f"cells: found {tuple(cells.shape)} {cells.dtype}, expected whole numbers (N, 3)")
    cells = cells.long()
    require(
        ((cells >= 0) & (cells < 2**depth)).all(),
        lambda: ValueError(
            f"cells: found {int(cells.min())} to {int(cells.max())}, a curve of depth {depth} has 0 to {2**depth - 1}: "
            "subtract the lowest cell of each cloud, as `group_cells` does; if they still are too many, raise the "
            f"side of the voxels {_ratio(cells, depth):.3g} times, or remove points that are far away"
        ),
    )
    x, y, z = cells.unbind(dim=1)
    if curve.endswith("trans"):
        x, y = y, x
    if curve.startswith("z"):
        return _interleave(x, y, z)
    codes = _interleave(*_to_hilbert(x, y, z, depth))
    for shift in (1, 2, 4, 8, 16, 32):
        codes = codes ^ (codes >> shift)
    return codes


def curve_cells(codes: Tensor, *, curve: Curve, depth: int = MAX_DEPTH) -> Tensor:
    """Return the cell (N, 3) int64 of each number (N,) on a curve: the inverse of `curve_codes`.

    Raises ValueError for a depth outside of 1 to 16, for an unknown curve, and for numbers of no cell.
    """
    _check_curve(curve, depth)
    if codes.ndim != 1 or codes.is_floating_point() or codes.dtype == torch.bool:
        raise ValueError(f"codes: found {tuple(codes.shape)} {codes.dtype}, expected whole numbers (N,)")
    codes = codes.long()
    require(
        ((codes >= 0) & (codes < 2 ** (3 * depth))).all(),
        lambda: ValueError(
            f"codes: found {int(codes.min())} to {int(codes.max())}, a curve of depth {depth} has numbers of "
            f"{3 * depth} bits; mask those of the cloud off"
        ),
    )
    if curve.startswith("z"):
        x, y, z = (_gather_bits(codes >> shift) for shift in (2, 1, 0))
    else:
        codes = codes ^ (codes >> 1)
        x, y, z = (_gather_bits(codes >> shift) for shift in (2, 1, 0))
        x, y, z = _from_hilbert(x, y, z, depth)
    return torch.stack([y, x, z] if curve.endswith("trans") else [x, y, z], dim=1)


def curve_order(
    cells: Tensor, offsets: Tensor, *, curves: tuple[Curve, ...] = CURVES, depth: int = MAX_DEPTH
) -> CurveOrder:
    """Order voxels `cells` (N, 3), at least 0, of packed clouds along each of O curves.

    Of voxels in one cell, the first comes first. A cloud's order does not depend on the others, unless the depth does.
    Raises ValueError as `curve_codes`, for offsets that do not fit, and for more clouds than fit into 63 bits beside
    the numbers.
    """
    assert_packed(cells, offsets, name="cells")
    if (offsets.shape[0] - 1).bit_length() + 3 * depth > 63:
        raise ValueError(
            f"depth: {offsets.shape[0] - 1} clouds and a curve of {depth} bits an axis do not fit into 63 bits; give "
            "fewer clouds at a time"
        )
    cloud = offsets_to_batch(offsets, cells.shape[0]) << (3 * depth)
    codes = torch.stack([cloud | curve_codes(cells, curve=curve, depth=depth) for curve in curves])
    order = torch.stack([sort_stably(numbers)[1] for numbers in codes.unbind()])
    place = torch.arange(cells.shape[0], device=cells.device).expand_as(order)
    return CurveOrder(codes, order, torch.empty_like(order).scatter(1, order, place))


def _check_curve(curve: str, depth: int) -> None:
    if curve not in CURVES:
        raise ValueError(f"curve: found '{curve}', expected one of {', '.join(CURVES)}")
    if not 1 <= depth <= MAX_DEPTH:
        raise ValueError(f"depth: found {depth}, expected 1 to {MAX_DEPTH} bits along each axis")


def _ratio(cells: Tensor, depth: int) -> float:
    return (int(cells.max()) - int(cells.min()) + 1) / 2**depth


_SPREADS = ((16, 0x1F0000FF0000FF), (8, 0x100F00F00F00F00F), (4, 0x10C30C30C30C30C3), (2, 0x1249249249249249))
"""Shifts, and what is kept after each, that leave two zeros before each bit of 16."""


def _interleave(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Interleave bits: bit i of x becomes bit 3 i + 2, of y 3 i + 1, of z 3 i."""
    spread = []
    for bits in (x, y, z):
        for shift, kept in _SPREADS:
            bits = (bits | (bits << shift)) & kept
        spread.append(bits)
    return (spread[0] << 2) | (spread[1] << 1) | spread[2]


def _gather_bits(bits: Tensor) -> Tensor:
    """Gather every third bit, from the lowest on: what `_interleave` did to its last argument."""
    bits = bits & _SPREADS[-1][1]
    shifts = [shift for shift, _ in _SPREADS[::-1]]
    kept = [mask for _, mask in _SPREADS[-2::-1]] + [2**MAX_DEPTH - 1]
    for shift, mask in zip(shifts, kept, strict=True):
        bits = (bits | (bits >> shift)) & mask
    return bits


def _to_hilbert(x: Tensor, y: Tensor, z: Tensor, depth: int) -> tuple[Tensor, Tensor, Tensor]:
    """Turn coordinates to those whose interleaved bits are the Gray code of the number. Source: Skilling 2004."""
    for bit in range(depth - 1, 0, -1):
        x = _invert_low(x, bit)
        x, y = _exchange_low(x, y, bit)
        x, z = _exchange_low(x, z, bit)
    return x, y, z


def _from_hilbert(x: Tensor, y: Tensor, z: Tensor, depth: int) -> tuple[Tensor, Tensor, Tensor]:
    """Undo `_to_hilbert`: each of its steps undoes itself."""
    for bit in range(1, depth):
        x, z = _exchange_low(x, z, bit)
        x, y = _exchange_low(x, y, bit)
        x = _invert_low(x, bit)
    return x, y, z


def _invert_low(x: Tensor, bit: int) -> Tensor:
    """Invert the bits below `bit` where it is set."""
    return x ^ (-((x >> bit) & 1) & (2**bit - 1))


def _exchange_low(x: Tensor, other: Tensor, bit: int) -> tuple[Tensor, Tensor]:
    """Invert the bits of x below `bit` where it is set in `other`; elsewhere exchange those of both."""
    low = 2**bit - 1
    is_set = -((other >> bit) & 1)
    changed = (x ^ other) & low & ~is_set
    return x ^ changed ^ (is_set & low), other ^ changed
