"""Lanes: machine code against the plain forms, bit by bit, with the numbers that are easily lost."""

from __future__ import annotations

import numpy as np
import pytest

from sightline.ops.lanes import add_lanes, load, rectify, store, where_positive, widen, zeros_like
from sightline.ops.numba_kernels import LANES, numba_kernel


@numba_kernel
def compute_all(values, others, factor, result, wide, total):  # type: ignore[no-untyped-def]
    for row in range(len(values)):
        left, right = load(values, (row, 1)), load(others, (row, 0, 2))
        store(rectify(left), result, (row, 0, 0))
        store(where_positive(right, left), result, (row, 1, 1))
        store(left + right * left - factor * right, result, (row, 3, 3))
        store(zeros_like(values) + factor - right, result, (row, 4, 4))
        store(widen(left) + widen(right), wide, (row, 0))
        total[row] = add_lanes(total[row], left)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_machine_code_gives_the_bits_of_the_plain_forms(dtype: type) -> None:
    """NaN, infinity, both zeros and denormal numbers among ordinary ones; places that are not aligned."""
    pytest.importorskip("numba")
    generator = np.random.default_rng(0)
    rare = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, -1e-40, 3.0], dtype)
    values, others = generator.normal(size=(64, LANES + 1)), generator.normal(size=(64, 1, LANES + 2))
    values, others = values.astype(dtype), others.astype(dtype)
    values[:8, 1:] = rare
    others[:8, 0, 2:] = rare[:, None]
    found = []
    with np.errstate(invalid="ignore"):
        for kernel in (compute_all, compute_all.plain):
            result, wide = np.full((64, 5, LANES + 4), 7, dtype), np.zeros((64, LANES))
            total = np.ones(64, dtype)
            kernel(values, others, dtype(200), result, wide, total)
            found.append((result, wide, total))
    for compiled, plain in zip(*found, strict=True):
        np.testing.assert_array_equal(compiled, plain)  # NaN is equal to NaN here
        assert (np.signbit(compiled) == np.signbit(plain))[~np.isnan(plain)].all()


def test_what_lies_beside_lanes_is_left_alone() -> None:
    array = np.arange(20, dtype=np.float32)
    store(load(array, (0,)) + 100, array, (6,))
    np.testing.assert_array_equal(array, [*range(6), *range(100, 108), *range(14, 20)])
