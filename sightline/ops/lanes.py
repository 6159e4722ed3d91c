"""Lanes: eight numbers side by side, which a kernel loads, computes with and stores as one vector of the processor.

A compiler makes vectors of plain loops only where they are long. The rows of narrow layers hold 16 to 64 numbers, and
most of them would be left to the remainder of such a loop. A kernel that goes through a row eight channels at a time
keeps them, and the sums over neighbours, in registers. Every number is computed on its own, as in a plain loop: the
bits are the same. `+`, `-` and `*` take lanes and lanes, or lanes and a number.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from sightline.ops.numba_kernels import LANES, NumbaKernel


class LaneOperation(NumbaKernel):
    """Operation on lanes inside kernels: in machine code the function of the same name in `lane_types`.

    Here it computes with NumPy arrays of eight numbers, and the plain forms of the kernels run on them. Nothing checks
    that all eight lie within an array.
    """

    def __call__(self, *arguments: Any) -> Any:
        return self.plain(*arguments)

    @property
    def machine_code(self) -> Callable[..., Any]:
        """The function that a compiled kernel calls instead."""
        if importlib.import_module("numba").config.DISABLE_JIT:
            return self.plain
        module = importlib.import_module("sightline.ops.lane_types")
        operation: Callable[..., Any] = getattr(module, self.plain.__name__)
        return operation


@LaneOperation
def load(array: np.ndarray, index: tuple[int, ...]) -> np.ndarray:
    """Read eight numbers of a contiguous array from `index` on."""
    *row, start = index
    return array[tuple(row)][start : start + LANES].copy()


@LaneOperation
def store(values: np.ndarray, array: np.ndarray, index: tuple[int, ...]) -> None:
    """Write lanes into a contiguous array from `index` on."""
    *row, start = index
    array[tuple(row)][start : start + LANES] = values


@LaneOperation
def zeros_like(array: np.ndarray) -> np.ndarray:
    """Return lanes of zeros in the format of an array."""
    return np.zeros(LANES, array.dtype)


@LaneOperation
def rectify(values: np.ndarray) -> np.ndarray:
    """Return 0 in place of numbers below 0; NaN stays."""
    return np.where(values < 0, values.dtype.type(0), values)


@LaneOperation
def where_positive(values: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Return the values whose height is above 0, and 0 in place of the others."""
    return np.where(heights > 0, values, values.dtype.type(0))


@LaneOperation
def add_lanes(total: Any, values: np.ndarray) -> Any:
    """Add the eight numbers to a total, from the first to the last."""
    for value in values:
        total = total + value
    return total


@LaneOperation
def add_product(total: np.ndarray, number: Any, values: np.ndarray) -> np.ndarray:
    """Return `total + number * values`, rounded once, on every processor to the same bits."""
    exact = np.longdouble if total.dtype == np.float64 else np.float64
    return (total.astype(exact) + np.asarray(number, exact) * values.astype(exact)).astype(total.dtype)


@LaneOperation
def widen(values: np.ndarray) -> np.ndarray:
    """Return lanes in float64."""
    return values.astype(np.float64)
