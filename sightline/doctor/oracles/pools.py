"""NumPy references of pooling in float64, window by window; part of `references.py`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

__all__ = ["adaptive_pooling", "pooling"]


def pooling(module: Any, values: np.ndarray) -> np.ndarray:
    """Compute max or mean pooling (B, C, ...); padding is never the maximum, and counts in means if configured."""
    is_max = isinstance(module, nn.MaxPool1d | nn.MaxPool2d | nn.MaxPool3d)
    axes = values.ndim - 2
    kernel, stride, padding = (
        _expand(value, axes) for value in (module.kernel_size, module.stride or module.kernel_size, module.padding)
    )
    dilation = _expand(module.dilation, axes) if is_max else (1,) * axes
    borders = [
        (0, 0),
        (0, 0),
        *((p, p + s - 1 if module.ceil_mode else p) for p, s in zip(padding, stride, strict=True)),
    ]
    padded = np.pad(values, borders, constant_values=math.nan)
    sizes = [
        _pooled_size(module, *arguments)
        for arguments in zip(values.shape[2:], kernel, stride, padding, dilation, strict=True)
    ]
    out = np.zeros((*values.shape[:2], *sizes))
    for n, c, *position in np.ndindex(out.shape):
        window = tuple(
            slice(a * s, a * s + d * (k - 1) + 1, d)
            for a, s, k, d in zip(position, stride, kernel, dilation, strict=True)
        )
        window_values = padded[(n, c, *window)]
        if is_max:
            out[(n, c, *position)] = np.nanmax(window_values)
        else:
            out[(n, c, *position)] = np.nansum(window_values) / _count_averaged(
                module, position, values.shape[2:], kernel, stride, padding
            )
    return out


def adaptive_pooling(module: Any, values: np.ndarray) -> np.ndarray:
    """Compute adaptive pooling (B, C, ...): windows floor(i n / m) to ceil((i + 1) n / m) for n inputs, m outputs."""
    is_max = isinstance(module, nn.AdaptiveMaxPool1d | nn.AdaptiveMaxPool2d | nn.AdaptiveMaxPool3d)
    sizes = [
        n if requested is None else requested
        for requested, n in zip(_expand(module.output_size, values.ndim - 2), values.shape[2:], strict=True)
    ]
    out = np.zeros((*values.shape[:2], *sizes))
    for n, c, *position in np.ndindex(out.shape):
        window = tuple(
            slice(a * size // m, -(-(a + 1) * size // m))
            for a, m, size in zip(position, sizes, values.shape[2:], strict=True)
        )
        window_values = values[(n, c, *window)]
        out[(n, c, *position)] = (
            window_values.max() if is_max else math.fsum(window_values.ravel()) / window_values.size
        )
    return out


def _expand(value: int | Sequence[int], axes: int) -> Sequence[Any]:
    return (value,) * axes if isinstance(value, int) else tuple(value)


def _pooled_size(module: Any, size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    num_steps = size + 2 * padding - dilation * (kernel - 1) - 1
    count = (-(-num_steps // stride) if module.ceil_mode else num_steps // stride) + 1
    if module.ceil_mode and (count - 1) * stride >= size + padding:  # no window begins in the padding
        count -= 1
    return count


def _count_averaged(module: Any, position: Sequence[int], sizes: Any, kernel: Any, stride: Any, padding: Any) -> float:
    """Return the divisor of the mean over a window."""
    if getattr(module, "divisor_override", None):
        return float(module.divisor_override)
    count = 1
    for a, size, k, s, p in zip(position, sizes, kernel, stride, padding, strict=True):
        start = a * s - p
        end = min(start + k, size + p)
        count *= end - start if module.count_include_pad else min(end, size) - max(start, 0)
    return float(count)
