"""Patches of consecutive rows of packed clouds: what voxels in the order of a curve are cut into for attention.

A cloud of n rows has one patch of n if it has no more than the size K of a patch, else n / K of them, rounded up. The
last one begins with the rows that are left and is filled up by those that end the patch before it, which are attended
to again, and whose second result is left out. A cloud's patches do not depend on the others. Source: Wu et al. 2024
(Point Transformer V3), section 4.2, and the patches of its published code with flash attention.
"""

from __future__ import annotations

from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from sightline.ops.segments.offsets import offsets_to_batch, read_sizes


class Patches(NamedTuple):
    """Patches of N rows: E slots, patch by patch.

    `rows` (E,) int64 is the row in each slot, -1 for none; `slots` (N,) the slot of each row, and `again` (N,) that
    into which the last patch of its cloud borrows it, -1 for none. `runs` are the numbers of patches of one length, and
    that length, one after another; `has_gaps` tells whether slots may be empty.
    """

    rows: Tensor
    slots: Tensor
    again: Tensor
    runs: tuple[tuple[int, int], ...]
    has_gaps: bool = False

    @property
    def bounds(self) -> Tensor:
        """The first slot (P+1,) of each patch, and after the last the number of slots."""
        lengths = [length for count, length in self.runs for _ in range(count)]
        return torch.tensor([0, *lengths], device=self.rows.device).cumsum(0)

    def along(self, order: Tensor, inverse: Tensor) -> Patches:
        """Return the patches of rows that are taken in an `order` (N,), whose `inverse` (N,) is the place of each."""
        rows = torch.where(self.rows >= 0, order[self.rows.clamp(min=0)], -1)
        return self._replace(rows=rows, slots=self.slots[inverse], again=self.again[inverse])


def cut_patches(offsets: Tensor, num_rows: int, *, size: int, num_patches: int | None = None) -> Patches:
    """Cut packed clouds of `num_rows` rows with `offsets` (S+1,) into patches of up to `size` rows.

    The sizes of clouds are read, which waits for a GPU. With `num_patches`, at least num_rows / size rounded down plus
    S, nothing is: there are so many patches of `size` slots, those of small clouds partly empty, and rows after the
    last offset are in none. Raises ValueError for a size below 1, too few patches, and offsets that do not fit.
    """
    if size < 1:
        raise ValueError(f"size: found {size}, expected at least 1 row in a patch")
    num_clouds = offsets.shape[0] - 1
    if num_patches is None:
        rows = torch.empty(num_rows, 0, device="meta")
        sizes = read_sizes(rows, offsets, name="offsets")
        lengths = [min(count, size) for count in sizes for _ in range(-(-count // size))]
        runs = tuple((len([*run]), length) for length, run in groupby(lengths))
        widths = torch.tensor([count if count <= size else -(-count // size) * size for count in sizes])
        widths, num_slots = widths.to(offsets.device), sum(lengths)
    else:
        if num_patches < num_rows // size + num_clouds:
            raise ValueError(
                f"num_patches: found {num_patches} for {num_rows} rows of {num_clouds} clouds in patches of {size}; "
                f"give at least {num_rows // size + num_clouds}"
            )
        runs, num_slots = ((num_patches, size),), num_patches * size
        widths = -(-offsets.diff() // size) * size
    rows, slots, again = _place_rows(offsets, num_rows, size, widths, num_slots)
    return Patches(rows, slots, again, runs, has_gaps=num_patches is not None)


def _place_rows(
    offsets: Tensor, num_rows: int, size: int, widths: Tensor, num_slots: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Place rows in slots, of which each cloud has `widths` (S,): `rows`, `slots` and `again` of the patches."""
    counts = offsets.diff()
    bounds = functional.pad(widths.cumsum(0), (1, 0))
    first_slots, last_cloud = bounds[:-1], max(0, counts.shape[0] - 1)
    cloud = offsets_to_batch(offsets, num_rows).clamp(max=last_cloud)
    place = torch.arange(num_rows, device=offsets.device) - offsets[cloud]  # in its cloud
    slots = torch.where(place < counts[cloud], first_slots[cloud] + place, -1)
    is_borrowed = (place >= counts[cloud] - size) & (place + size < widths[cloud]) & (counts[cloud] > size)
    again = torch.where(is_borrowed, slots + size, -1)
    slot = torch.arange(num_slots, device=offsets.device)
    cloud = offsets_to_batch(bounds, num_slots)
    is_used = cloud < counts.shape[0]
    cloud = cloud.clamp(max=last_cloud)
    place = slot - first_slots[cloud]
    is_own = place < counts[cloud]
    place = torch.where(is_own, place, place - size)
    rows = torch.where(is_used & (is_own | (counts[cloud] > size)), offsets[cloud] + place, -1)
    return rows, slots, again
