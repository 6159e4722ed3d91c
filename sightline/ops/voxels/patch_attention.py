"""Attention inside of patches of voxels: softmax over the rows of a patch, by torch's fused attention.

Source: Wu et al. 2024 (Point Transformer V3), section 4.2; its published code for the table of relative positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from sightline.ops.segments.taken_rows import take_rows
from sightline.ops.voxels.patches import Patches

_MOST_SCORES = 2**25
"""Scores that a table of relative positions is added to at a time: 128 MB in float32."""


def relative_reach(size: int) -> int:
    """Return how many cells apart, along an axis, a table of relative positions of patches of `size` tells places.

    It is 2 (4 size)^(1/3), rounded down as floating-point numbers are: 7 for 16, 15 for 128, 31 for 1024. Source: the
    published code of Point Transformer V3.
    """
    return int((4 * size) ** (1 / 3) * 2)


def patch_attention(
    query_key_value: Tensor, patches: Patches, *, table: Tensor | None = None, cells: Tensor | None = None
) -> Tensor:
    """Attend inside of patches: `query_key_value` (N, 3, H, D) of N rows and H heads -> (N, H D), 0 in no patch.

    Scores are divided by the root of D. A `table` (3 (2 R + 1), H) adds to them what it has for the distance along each
    axis between the `cells` (N, 3) of two rows, at most R. On CPUs a patch does not depend on the other patches, bit
    for bit. Raises ValueError for shapes that do not go together.
    """
    if query_key_value.ndim != 4 or query_key_value.shape[1] != 3:
        raise ValueError(f"query_key_value: found {tuple(query_key_value.shape)}, expected (N, 3, heads, width)")
    num_rows, _, num_heads, width = query_key_value.shape
    if patches.slots.shape[0] != num_rows:
        raise ValueError(f"patches of {patches.slots.shape[0]} rows for {num_rows} rows; cut them for these rows")
    if (table is None) != (cells is None):
        raise ValueError("table and cells: one without the other; a table is read by the cells of rows")
    if not num_rows:
        return query_key_value.flatten(2)[:, 0]
    twice = torch.stack([patches.slots, patches.again], dim=1)
    slots = take_rows(query_key_value.flatten(1), patches.rows, twice)
    attended, first = [], 0
    for count, length in patches.runs:
        for chunk in _split(count, length, num_heads, has_table=table is not None):
            part = slice(first, first + chunk * length)
            query, key, value = slots[part].view(chunk, length, 3, num_heads, width).permute(2, 0, 3, 1, 4)
            bias = _make_bias(patches.rows[part].view(chunk, length), table, cells, has_gaps=patches.has_gaps)
            received = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
            attended.append(received.transpose(1, 2).reshape(chunk * length, num_heads * width))
            first = part.stop
    slot = torch.arange(first, device=slots.device)
    row = patches.rows.clamp(min=0)
    owner = torch.where((patches.slots[row] == slot) & (patches.rows >= 0), patches.rows, -1)
    return take_rows(torch.cat(attended), patches.slots, owner[:, None])


def _split(count: int, length: int, num_heads: int, *, has_table: bool) -> Sequence[int]:
    """Split `count` patches so that scores, which only a table of positions makes one by one, stay small."""
    most = max(1, _MOST_SCORES // (num_heads * length * length)) if has_table else count
    return [min(most, count - first) for first in range(0, count, most)]


def _make_bias(rows: Tensor, table: Tensor | None, cells: Tensor | None, *, has_gaps: bool) -> Tensor | None:
    """Return what is added to the scores of patches with `rows` (P, L): (P, H, L, L), or which keys count (P, 1, 1, L).

    A patch without rows counts all its keys, so that no score is divided by 0.
    """
    is_key = rows >= 0
    is_key = (is_key | ~is_key.any(dim=1, keepdim=True))[:, None, None]
    if table is None or cells is None:
        return is_key if has_gaps else None
    places = cells[rows.clamp(min=0)]
    reach = (table.shape[0] // 3 - 1) // 2
    apart = (places[:, :, None] - places[:, None]).clamp(-reach, reach) + reach
    of_axes = table.unflatten(0, (3, -1))
    bias = (of_axes[0][apart[..., 0]] + of_axes[1][apart[..., 1]] + of_axes[2][apart[..., 2]]).permute(0, 3, 1, 2)
    return bias.masked_fill(~is_key, -torch.inf) if has_gaps else bias
