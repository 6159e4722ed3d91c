"""Pooling in NumPy and float64, window by window: the references of `references.py` that take windows alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

__all__ = ["adaptive_pooling", "pooling"]


def pooling(module: Any, values: np.ndarray) -> np.ndarray:
    """The largest value, or the mean, of each window; padding is never the largest, and counts in means if it shall."""
    is_max = isinstance(module, nn.MaxPool1d | nn.MaxPool2d | nn.MaxPool3d)
    axes = values.ndim - 2
    kernel, stride, padding = (
        _each(value, axes) for value in (module.kernel_size, module.stride or module.kernel_size, module.padding)
    )
    dilation = _each(module.dilation, axes) if is_max else (1,) * axes
    borders = [
        (0, 0),
        (0, 0),
        *((p, p + s - 1 if module.ceil_mode else p) for p, s in zip(padding, stride, strict=True)),
    ]
    padded = np.pad(values, borders, constant_values=math.nan)
    sizes = [
        _pooled_size(module, *each) for each in zip(values.shape[2:], kernel, stride, padding, dilation, strict=True)
    ]
    out = np.zeros((*values.shape[:2], *sizes))
    for n, c, *at in np.ndindex(out.shape):
        window = tuple(
            slice(a * s, a * s + d * (k - 1) + 1, d) for a, s, k, d in zip(at, stride, kernel, dilation, strict=True)
        )
        part = padded[(n, c, *window)]
        if is_max:
            out[(n, c, *at)] = np.nanmax(part)
        else:
            out[(n, c, *at)] = np.nansum(part) / _counted(module, at, values.shape[2:], kernel, stride, padding)
    return out


def adaptive_pooling(module: Any, values: np.ndarray) -> np.ndarray:
    """Windows from floor(i n / m) to ceil((i + 1) n / m) for m outputs of n inputs."""
    is_max = isinstance(module, nn.AdaptiveMaxPool1d | nn.AdaptiveMaxPool2d | nn.AdaptiveMaxPool3d)
    sizes = [
        n if asked is None else asked
        for asked, n in zip(_each(module.output_size, values.ndim - 2), values.shape[2:], strict=True)
    ]
    out = np.zeros((*values.shape[:2], *sizes))
    for n, c, *at in np.ndindex(out.shape):
        window = tuple(
            slice(a * size // m, -(-(a + 1) * size // m))
            for a, m, size in zip(at, sizes, values.shape[2:], strict=True)
        )
        part = values[(n, c, *window)]
        out[(n, c, *at)] = part.max() if is_max else math.fsum(part.ravel()) / part.size
    return out


def _each(value: int | Sequence[int], axes: int) -> Sequence[Any]:
    return (value,) * axes if isinstance(value, int) else tuple(value)


def _pooled_size(module: Any, size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    count = (-(-room // stride) if module.ceil_mode else room // stride) + 1
    if module.ceil_mode and (count - 1) * stride >= size + padding:  # a window that would begin in the padding
        count -= 1
    return count


def _counted(module: Any, at: Sequence[int], sizes: Any, kernel: Any, stride: Any, padding: Any) -> float:
    """How many values a mean is over."""
    if getattr(module, "divisor_override", None):
        return float(module.divisor_override)
    count = 1
    for a, size, k, s, p in zip(at, sizes, kernel, stride, padding, strict=True):
        start = a * s - p
        end = min(start + k, size + p)
        count *= end - start if module.count_include_pad else min(end, size) - max(start, 0)
    return float(count)
