"""Sparse convolution: y[p] = sum over places o of x[table[p, o]] W[o], and its gradients, by a kernel map.

Outputs do not depend on one another, nor on rows that no place reads: the number of threads, clouds of the same batch
and rows that fill a table up change no bit. Sums are taken in the order of the places, then of the input channels; on
CPUs each product is added in one rounding. The gradient of the weights adds up the pairs of a place in their order,
`_PAIRS` at a time. Sources: Graham et al. 2018 (submanifold); Choy et al. 2019, equation 3 (generalised).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sightline.ops.lanes import add_product, load, store, zeros_like
from sightline.ops.numba_kernels import inlined_kernel, numba_kernel, run_parallel
from sightline.ops.operator import operator
from sightline.ops.segments.ordered_sums import ordered_sum
from sightline.ops.voxels.kernel_maps import KernelMap
from sightline.ops.waits import require

_WIDTH = 16
"""Channels of the output that a CPU's kernel holds in registers, two vectors."""
_ROWS = 256
"""Outputs that are computed while their sums are in the cache."""
_WIDE = 128 * 128
"""Channels of the input times those of the output from which on a CPU multiplies by torch's matrix product."""
_PRODUCT = 128
"""Pairs of one such product: libraries choose another order of sums for another number of rows."""
_PAIRS = 128
"""Pairs whose products are added before they are added to a weight's gradient."""


def sparse_convolution(values: Tensor, weight: Tensor, kernel_map: KernelMap, bias: Tensor | None = None) -> Tensor:
    """Convolve values (N, Cin) by `weight` (K, Cin, Cout) along a map of K places: (M, Cout), with gradients.

    Rows without a pair are 0, plus the bias (Cout,). Under autocast, values and weights are rounded to its format, and
    sums are in float32. Raises ValueError for shapes that do not go together.
    """
    table, reverse = kernel_map
    if values.ndim != 2 or weight.ndim != 3 or values.shape[1] != weight.shape[1]:
        raise ValueError(
            f"values {tuple(values.shape)}, weight {tuple(weight.shape)}: expected (N, Cin) and (places, Cin, Cout)"
        )
    if table.shape[1] != len(weight) or reverse.shape != (values.shape[0], len(weight)):
        raise ValueError(
            f"table {tuple(table.shape)} and reverse {tuple(reverse.shape)} for {values.shape[0]} voxels and a kernel "
            f"of {len(weight)} places; the map is of other voxels, or of another kernel"
        )
    kind = values.device.type
    is_rounded = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    if not is_rounded or values.dtype == torch.float64:
        weight, bias = weight.to(values.dtype), None if bias is None else bias.to(values.dtype)
        return _convolve_voxels(values, weight, bias, table, reverse)
    dtype = torch.get_autocast_dtype(kind)

    def round_off(tensor: Tensor) -> Tensor:
        rounded = tensor.to(dtype)
        return rounded.float() if kind == "cpu" else rounded  # its kernel takes float32, and rounds once, at the end

    with torch.autocast(kind, enabled=False):
        added = None if bias is None else round_off(bias)
        return _convolve_voxels(round_off(values), round_off(weight), added, table, reverse).to(dtype)


def _check(values: Tensor, weight: Tensor, bias: Tensor | None, table: Tensor, reverse: Tensor) -> None:
    _check_rows("table", table, values.shape[0])
    _check_rows("reverse", reverse, table.shape[0])


def _check_rows(name: str, rows: Tensor, limit: int) -> None:
    if rows.numel():
        require(
            (rows.amax() < limit) & (rows.amin() >= -1),
            lambda: ValueError(
                f"{name}: found rows {int(rows.min())} to {int(rows.max())}, expected -1 (none) to {limit - 1}"
            ),
        )


@operator(check=_check)
def _convolve_voxels(values: Tensor, weight: Tensor, bias: Tensor | None, table: Tensor, reverse: Tensor) -> Tensor:
    sums = torch.zeros((table.shape[0], weight.shape[2]), dtype=_sum_dtype(values), device=values.device)
    padded, columns = _pad_rows(values, table)
    for place in range(weight.shape[0]):
        sums = sums + (padded[columns[place]] @ weight[place]).to(sums.dtype)
    return (sums if bias is None else sums + bias).to(values.dtype)


def _sum_dtype(values: Tensor) -> torch.dtype:
    return torch.float32 if values.dtype in (torch.float16, torch.bfloat16) else values.dtype


def _pad_rows(values: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Return values (N + 1, C) with zeros in the last row, which is that of -1, and the rows of each place (K, M)."""
    return functional.pad(values, (0, 0, 0, 1)), table.T.long().contiguous()


@_convolve_voxels.fake
def _(values: Tensor, weight: Tensor, bias: Tensor | None, table: Tensor, reverse: Tensor) -> Tensor:
    return values.new_empty((table.shape[0], weight.shape[2]))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    values, weight, _, table, reverse = inputs
    ctx.save_for_backward(values, weight, table, reverse)


@_convolve_voxels.gradient(_save)
def _(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    values, weight, table, reverse = ctx.saved_tensors
    gradient = gradient.contiguous()
    needs_values, needs_weight, needs_bias = ctx.needs_input_grad[1:4]
    to_values = _convolve_voxels(gradient, weight.transpose(1, 2), None, reverse, table) if needs_values else None
    to_weight = _correlate_voxels(values, gradient, table) if needs_weight else None
    to_bias = ordered_sum(gradient, gradient.shape[0]).to(gradient.dtype) if needs_bias else None
    return to_values, to_weight, to_bias, None, None


def _check_correlation(values: Tensor, gradient: Tensor, table: Tensor) -> None:
    _check_rows("table", table, values.shape[0])


@operator(check=_check_correlation)
def _correlate_voxels(values: Tensor, gradient: Tensor, table: Tensor) -> Tensor:
    """Return the gradient (K, Cin, Cout) of the weights, from values (N, Cin) and that of the outputs (M, Cout)."""
    wide = gradient.to(_sum_dtype(values))
    padded, columns = _pad_rows(values, table)
    sums = [padded[columns[place]].to(wide.dtype).mT @ wide for place in range(table.shape[1])]
    return torch.stack(sums).to(values.dtype)


@_correlate_voxels.fake
def _(values: Tensor, gradient: Tensor, table: Tensor) -> Tensor:
    return values.new_empty((table.shape[1], values.shape[1], gradient.shape[1]))


# --- CPU: four outputs at a time, with the sums of `_WIDTH` channels of each in registers -----------------------------


@_convolve_voxels.cpu_kernel
def _(values: Tensor, weight: Tensor, bias: Tensor | None, table: Tensor, reverse: Tensor) -> Tensor:
    num_places, num_inputs, num_channels = weight.shape
    if num_inputs * num_channels >= _WIDE:
        return _convolve_wide(values, weight, bias, table)
    parts = -(-num_channels // _WIDTH)
    packed = weight.new_zeros((num_places, num_inputs, parts * _WIDTH))
    packed[..., :num_channels] = weight
    packed = packed.view(num_places, num_inputs, parts, _WIDTH).transpose(1, 2).contiguous()
    sums = np.empty((len(table), parts * _WIDTH), packed.numpy().dtype)
    arrays = values.contiguous().numpy(), packed.numpy(), table.contiguous().numpy(), sums
    run_parallel(_add_products, len(table), *arrays)
    result = torch.from_numpy(sums if sums.shape[1] == num_channels else sums[:, :num_channels].copy())
    return result if bias is None else result.add_(bias)


def _convolve_wide(values: Tensor, weight: Tensor, bias: Tensor | None, table: Tensor) -> Tensor:
    """Convolve as the operator does, with a matrix product for `_PRODUCT` pairs of a place at a time."""
    starts, inputs, outputs = _list_pairs(table.T.contiguous().numpy())
    result = values.new_zeros((table.shape[0], weight.shape[2]))
    block = values.new_zeros(
        (_PRODUCT, values.shape[1])
    )  # a short block keeps rows of the one before, which nobody reads
    product = values.new_empty((_PRODUCT, weight.shape[2]))
    rows, sums = (torch.from_numpy(pairs.view(np.int64)) for pairs in (inputs, outputs))
    for place, (first, last) in enumerate(pairwise(starts.tolist())):
        if first == last:
            continue
        matrix = weight[place].contiguous()
        for read, added in zip(rows[first:last].split(_PRODUCT), sums[first:last].split(_PRODUCT), strict=True):
            torch.index_select(values, 0, read, out=block[: len(read)])
            torch.mm(block, matrix, out=product)
            result.index_add_(0, added, product[: len(read)])
    return result if bias is None else result.add_(bias)


@numba_kernel
def _add_products(
    first: int, last: int, values: np.ndarray, weight: np.ndarray, table: np.ndarray, sums: np.ndarray
) -> None:
    """Compute the outputs first to last; `weight` is (places, parts, Cin, _WIDTH)."""
    num_places, num_parts, num_inputs, width = weight.shape
    outputs, inputs = np.empty(_ROWS, np.uint64), np.empty(_ROWS, np.uint64)  # unsigned: no index counts from the end
    for start in range(first, last, _ROWS):
        end = min(start + _ROWS, last)
        for row in range(start, end):
            for channel in range(sums.shape[1]):
                sums[row, channel] = 0
        for place in range(num_places):
            count = 0
            for row in range(start, end):
                read = table[row, place]
                if read >= 0:
                    outputs[count], inputs[count] = row, read
                    count += 1
            whole = count - count % 4
            for part in range(num_parts):
                low = part * width
                high = low + width // 2
                for pair in range(0, whole, 4):
                    a, b, c, d = outputs[pair], outputs[pair + 1], outputs[pair + 2], outputs[pair + 3]
                    e, f, g, h = inputs[pair], inputs[pair + 1], inputs[pair + 2], inputs[pair + 3]
                    a0, a1 = load(sums, (a, low)), load(sums, (a, high))
                    b0, b1 = load(sums, (b, low)), load(sums, (b, high))
                    c0, c1 = load(sums, (c, low)), load(sums, (c, high))
                    d0, d1 = load(sums, (d, low)), load(sums, (d, high))
                    for channel in range(num_inputs):
                        w0, w1 = load(weight, (place, part, channel, 0)), load(weight, (place, part, channel, 8))
                        x, y, z, w = values[e, channel], values[f, channel], values[g, channel], values[h, channel]
                        a0, a1 = add_product(a0, x, w0), add_product(a1, x, w1)
                        b0, b1 = add_product(b0, y, w0), add_product(b1, y, w1)
                        c0, c1 = add_product(c0, z, w0), add_product(c1, z, w1)
                        d0, d1 = add_product(d0, w, w0), add_product(d1, w, w1)
                    store(a0, sums, (a, low)), store(a1, sums, (a, high))
                    store(b0, sums, (b, low)), store(b1, sums, (b, high))
                    store(c0, sums, (c, low)), store(c1, sums, (c, high))
                    store(d0, sums, (d, low)), store(d1, sums, (d, high))
                for pair in range(whole, count):
                    a, e = outputs[pair], inputs[pair]
                    a0, a1 = load(sums, (a, low)), load(sums, (a, high))
                    for channel in range(num_inputs):
                        x = values[e, channel]
                        a0 = add_product(a0, x, load(weight, (place, part, channel, 0)))
                        a1 = add_product(a1, x, load(weight, (place, part, channel, 8)))
                    store(a0, sums, (a, low)), store(a1, sums, (a, high))


_INPUTS = 16
"""Input channels of a weight's gradient that one thread computes at a time."""


@_correlate_voxels.cpu_kernel
def _(values: Tensor, gradient: Tensor, table: Tensor) -> Tensor:
    num_inputs, num_channels, num_places = values.shape[1], gradient.shape[1], table.shape[1]
    wide = -(-num_channels // _WIDTH) * _WIDTH
    padded = gradient if wide == num_channels else functional.pad(gradient, (0, wide - num_channels))
    columns = table.T.contiguous().numpy()
    starts, inputs, outputs = _list_pairs(columns)
    sums = np.zeros((num_places, num_inputs, wide), padded.numpy().dtype)
    parts = -(-num_inputs // _INPUTS)
    arrays = values.contiguous().numpy(), padded.contiguous().numpy(), starts, inputs, outputs, sums
    run_parallel(_add_pairs, num_places * parts, *arrays)
    return torch.from_numpy(sums if wide == num_channels else sums[:, :, :num_channels].copy())


@numba_kernel
def _list_pairs(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return where the pairs of each place begin (K+1,), and input and output (P,) of each pair, of a table (K, M)."""
    num_places, num_rows = columns.shape
    starts = np.zeros(num_places + 1, np.int64)
    for place in range(num_places):
        count = 0
        for row in range(num_rows):
            count += columns[place, row] >= 0
        starts[place + 1] = starts[place] + count
    inputs, outputs = np.empty(starts[num_places], np.uint64), np.empty(starts[num_places], np.uint64)
    for place in range(num_places):
        pair = starts[place]
        for row in range(num_rows):
            if columns[place, row] >= 0:
                inputs[pair], outputs[pair] = columns[place, row], row
                pair += 1
    return starts, inputs, outputs


@inlined_kernel
def _add_to(sums: np.ndarray, place: int, row: int, low: int, part: np.ndarray, further: np.ndarray) -> None:
    store(load(sums, (place, row, low)) + part, sums, (place, row, low))
    store(load(sums, (place, row, low + 8)) + further, sums, (place, row, low + 8))


@numba_kernel
def _add_pairs(
    first: int,
    last: int,
    values: np.ndarray,
    gradient: np.ndarray,
    starts: np.ndarray,
    inputs: np.ndarray,
    outputs: np.ndarray,
    sums: np.ndarray,
) -> None:
    """Add up the gradients of `_INPUTS` rows of a place's weights at a time; `sums` (K, Cin, width) is 0."""
    num_inputs, width = sums.shape[1], sums.shape[2]
    num_parts = (num_inputs + _INPUTS - 1) // _INPUTS
    for number in range(first, last):
        place, begin = number // num_parts, number % num_parts * _INPUTS
        end = min(begin + _INPUTS, num_inputs)
        whole = end - (end - begin) % 4
        for start in range(starts[place], starts[place + 1], _PAIRS):
            stop = min(start + _PAIRS, starts[place + 1])
            for low in range(0, width, _WIDTH):
                high = low + _WIDTH // 2
                for row in range(begin, whole, 4):
                    a0, a1 = zeros_like(sums), zeros_like(sums)
                    b0, b1 = zeros_like(sums), zeros_like(sums)
                    c0, c1 = zeros_like(sums), zeros_like(sums)
                    d0, d1 = zeros_like(sums), zeros_like(sums)
                    for pair in range(start, stop):
                        read, written = inputs[pair], outputs[pair]
                        g0, g1 = load(gradient, (written, low)), load(gradient, (written, high))
                        x, y = values[read, row], values[read, row + 1]
                        z, w = values[read, row + 2], values[read, row + 3]
                        a0, a1 = add_product(a0, x, g0), add_product(a1, x, g1)
                        b0, b1 = add_product(b0, y, g0), add_product(b1, y, g1)
                        c0, c1 = add_product(c0, z, g0), add_product(c1, z, g1)
                        d0, d1 = add_product(d0, w, g0), add_product(d1, w, g1)
                    _add_to(sums, place, row, low, a0, a1)
                    _add_to(sums, place, row + 1, low, b0, b1)
                    _add_to(sums, place, row + 2, low, c0, c1)
                    _add_to(sums, place, row + 3, low, d0, d1)
                for row in range(whole, end):
                    a0, a1 = zeros_like(sums), zeros_like(sums)
                    for pair in range(start, stop):
                        read, written = inputs[pair], outputs[pair]
                        x = values[read, row]
                        a0 = add_product(a0, x, load(gradient, (written, low)))
                        a1 = add_product(a1, x, load(gradient, (written, high)))
                    _add_to(sums, place, row, low, a0, a1)
