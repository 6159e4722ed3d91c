"""Reductions by segment: NumPy's loops, documented examples by hand, out, NaN, threads, graphs, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sightline import ops
from sightline.ops.operator import OPERATORS
from sightline.ops.segments.sums import add_sorted_rows
from tests.cases import run_each
from tests.ops.results import find_difference
from tests.ops.threads import with_one_and_three_threads

Function = Callable[..., Any]
NAN, INF = torch.nan, torch.inf


def reduce_by_loop(src: np.ndarray, index: np.ndarray, dim: int, size: int, reduce: str) -> tuple[np.ndarray, ...]:
    """One number after the other, in Python: results and places."""
    shape = (*src.shape[:dim], size, *src.shape[dim + 1 :])
    found: dict[tuple[int, ...], list[tuple[int, Any]]] = {}
    for place in np.ndindex(src.shape):
        to = (*place[:dim], int(index[place]), *place[dim + 1 :])
        found.setdefault(to, []).append((place[dim], src[place]))
    result, rows = np.zeros(shape, src.dtype), np.full(shape, src.shape[dim])
    for to, pairs in found.items():
        values = [value for _, value in pairs]
        if reduce in ("max", "min"):
            result[to] = (max if reduce == "max" else min)(values)
            rows[to] = next(row for row, value in pairs if value == result[to])
            continue
        total = src.dtype.type(0)
        for value in values:
            total = total + value
        result[to] = (
            total if reduce == "sum" else total // len(values) if src.dtype.kind in "iu" else total / len(values)
        )
    return result, rows


SHAPES = [  # of src, of the index, dimension; the index as NumPy would align it with src
    ((7,), (7,), -1, (7,)),
    ((7, 3), (7,), 0, (7, 1)),
    ((7, 3), (7, 1), 0, (7, 1)),
    ((7, 3), (7, 3), 0, (7, 3)),
    ((3, 7), (7,), 1, (1, 7)),
    ((3, 7), (3, 7), -1, (3, 7)),
    ((2, 7, 3), (7,), -2, (1, 7, 1)),
    ((2, 7, 3), (2, 7), 1, (2, 7, 1)),
    ((2, 7, 3), (1, 7), 1, (1, 7, 1)),
    ((2, 3, 7), (1, 3, 7), 2, (1, 3, 7)),
    ((2, 7, 3), (1, 7, 3), 1, (1, 7, 3)),
    ((2, 3, 4, 2), (2, 1, 4, 2), 2, (2, 1, 4, 2)),
    ((7, 2), (1,), 0, (1, 1)),
    ((0, 2), (0,), 0, (0, 1)),
    ((2, 5, 0), (5,), 1, (1, 5, 1)),
]


@run_each("shape, of_index, dim, aligned", SHAPES)
def test_an_index_of_any_shape_is_what_a_loop_gives(
    shape: tuple[int, ...], of_index: tuple[int, ...], dim: int, aligned: tuple[int, ...]
) -> None:
    index = torch.randint(0, 4, of_index)
    whole = np.broadcast_to(index.numpy().reshape(aligned), shape)
    for dtype in (torch.float64, torch.uint8):
        src = torch.randint(0, 9, shape).to(dtype)
        for reduce in ("sum", "mean", "max", "min"):
            expected, places = reduce_by_loop(src.numpy(), whole, dim % len(shape), 5, reduce)
            found = ops.scatter(src, index, dim, dim_size=5, reduce=reduce)
            assert found.dtype == dtype
            np.testing.assert_array_equal(found.numpy(), expected)
            if reduce in ("max", "min"):
                function = ops.scatter_max if reduce == "max" else ops.scatter_min
                np.testing.assert_array_equal(function(src, index, dim, dim_size=5)[1].numpy(), places)
    if index.numel():
        assert ops.scatter_add(src, index, dim).shape[dim] == int(index.max()) + 1


def test_sums_are_those_of_numpy_in_the_order_of_rows() -> None:
    """np.add.at adds one row after the other, in float32: the same bits, for any number of threads."""
    src, index = torch.randn(5000, 5), torch.randint(0, 40, (5000,))
    expected, narrow = np.zeros((50, 5), np.float32), np.zeros(50, np.float32)
    np.add.at(expected, index.numpy(), src.numpy())
    np.add.at(narrow, index.numpy(), src[:, 0].numpy())
    for found in with_one_and_three_threads(lambda: ops.scatter_sum(src, index, 0, dim_size=50)):
        assert np.array_equal(found.numpy(), expected)
    assert np.array_equal(ops.scatter_sum(src[:, 0], index, dim_size=50).numpy(), narrow)
    on_device = add_sorted_rows(src, index, 50)  # the plain form of a GPU
    assert np.array_equal(on_device.numpy(), expected)
    one, three = with_one_and_three_threads(lambda: ops.scatter_max(src, index, 0, dim_size=50))
    assert find_difference(one, three, 0.0) is None


def test_whole_numbers_do_not_go_through_float32_on_a_gpu() -> None:
    src, index = torch.tensor([[[2**24], [1]]]), torch.zeros(1, 2, dtype=torch.int64)
    assert not OPERATORS["scatter_rows"].takes(src, index, 1, "any")
    assert not OPERATORS["scatter_extremes"].takes(src, index, 1, True, "any")
    assert ops.scatter_sum(src, index[0], 1).item() == 2**24 + 1


@run_each("reduce", ["sum", "mean", "min", "max"])
def test_sorted_rows_are_those_of_any_order(reduce: Any) -> None:
    indptr = torch.tensor([[0, 0, 4, 7, 7], [0, 3, 3, 6, 7]])
    index = torch.tensor([[1, 1, 1, 1, 2, 2, 2], [0, 0, 0, 2, 2, 2, 3]])
    src = torch.randn(2, 7, 3)
    expected = ops.scatter(src, index, 1, dim_size=4, reduce=reduce)
    assert torch.equal(ops.segment_csr(src, indptr, reduce=reduce), expected)
    assert torch.equal(ops.segment_coo(src, index, dim_size=4, reduce=reduce), expected)
    of_bounds = getattr(ops, f"segment_{reduce}_csr")(src[:, :, 0], indptr[:1])
    of_index = getattr(ops, f"segment_{reduce}_coo")(src[:, :, 0], index[:1], dim_size=4)
    assert find_difference(of_bounds, of_index, 0.0) is None
    named = of_bounds if reduce in ("sum", "mean") else of_bounds[0]
    assert torch.equal(named, ops.scatter(src[:, :, 0], index[0], dim_size=4, reduce=reduce))


def test_documented_examples_of_torch_scatter_by_hand() -> None:
    src, index = torch.tensor([[2, 0, 1, 4, 3], [0, 2, 1, 3, 4]]), torch.tensor([[4, 5, 4, 2, 3], [0, 0, 2, 2, 1]])
    out, place = ops.scatter_max(src, index, dim=-1)
    assert out.tolist() == [[0, 0, 4, 3, 2, 0], [2, 4, 3, 0, 0, 0]]
    assert place.tolist() == [[5, 5, 3, 4, 0, 1], [1, 4, 3, 5, 5, 5]]
    assert ops.scatter(torch.randn(10, 6, 64), torch.tensor([0, 1, 0, 1, 2, 1]), dim=1).shape == (10, 3, 64)
    assert ops.segment_coo(torch.randn(10, 6, 64), torch.tensor([[0, 0, 1, 1, 1, 2]])).shape == (10, 3, 64)
    assert ops.segment_csr(torch.randn(10, 6, 64), torch.tensor([[0, 2, 5, 6]])).shape == (10, 3, 64)
    pairs, rows = torch.tensor([[1, 2], [3, 4], [5, 6], [7, 8]]), [0, 0, 1, 1, 1, 3]
    assert ops.gather_csr(pairs, torch.tensor([0, 2, 5, 5, 6])).tolist() == pairs[rows].tolist()
    assert ops.gather_coo(pairs, torch.tensor(rows)).tolist() == pairs[rows].tolist()
    shares = ops.scatter_softmax(torch.ones(4), torch.tensor([0, 0, 1, 2]))
    assert shares.tolist() == [0.5, 0.5, 1, 1]


def test_out_is_changed_and_returned() -> None:
    src, index = torch.tensor([1.0, 5, 3, NAN]), torch.tensor([0, 0, 1, 3])

    def fill(function: Function, *given: Any, **named: Any) -> tuple[list[float], Any]:
        out = torch.tensor([4.0, 4, 4, 4, NAN])
        found = function(src, *given, out=out, **named)
        first, *further = found if isinstance(found, tuple) else (found,)
        assert first is out
        return out.nan_to_num(-1).tolist(), [each.tolist() for each in further]

    assert fill(ops.scatter_sum, index)[0] == [10, 7, 4, -1, -1]
    assert fill(ops.scatter_mean, index)[0] == [5, 7, 4, -1, -1], "(4 + 1 + 5) / 2"
    assert fill(ops.scatter_max, index) == ([5, 4, 4, -1, -1], [[1, 4, 4, 3, 4]])
    assert fill(ops.scatter_min, index) == ([1, 3, 4, -1, -1], [[0, 2, 4, 3, 4]])
    assert fill(ops.segment_coo, index)[0] == [10, 7, 4, -1, -1]
    assert fill(ops.segment_csr, torch.tensor([0, 2, 3, 3, 4, 4]))[0] == [6, 3, 0, -1, 0], "written, not added"
    assert fill(ops.segment_max_csr, torch.tensor([0, 2, 3, 3, 4, 4])) == ([5, 3, 0, -1, 0], [[1, 2, 4, 3, 4]])
    assert fill(ops.scatter_std, index)[0][:3] == [pytest.approx(12**0.5), 2, 2], "(4 + 8) / 1"
    out = torch.zeros(4)
    assert ops.gather_coo(torch.tensor([5.0, 6]), torch.tensor([1, 0, 0, 1]), out) is out
    assert out.tolist() == [6, 5, 5, 6]
    assert ops.gather_csr(torch.tensor([5.0, 6]), torch.tensor([0, 3, 4]), out).tolist() == [5, 5, 5, 6]
    sums = torch.tensor([0.0, 1])
    assert ops.scatter_logsumexp(torch.tensor([0.0, 0.0]), torch.tensor([0, 0]), out=sums) is sums
    torch.testing.assert_close(sums, torch.tensor([3.0, torch.e]).log())


def test_nan_and_infinite_numbers_pass_through() -> None:
    src = torch.tensor([1.0, NAN, 2, -INF, -INF, INF, NAN, -0.0, 0.0, 7])
    index = torch.tensor([0, 0, 0, 1, 1, 2, 2, 4, 4, 5])
    high, place = ops.scatter_max(src, index)
    assert high.nan_to_num(-1, neginf=-2).tolist() == [-1, -2, -1, 0, 0, 7]
    assert place.tolist() == [1, 3, 6, 10, 7, 9], "the first of equal ones"
    assert ops.scatter_min(src, index)[1].tolist() == [1, 3, 6, 10, 7, 9]
    assert ops.scatter_sum(src, index).isnan().tolist() == [True, False, True, False, False, False]
    sums = ops.scatter_logsumexp(src, index)
    assert sums.nan_to_num(-1, neginf=-2).tolist() == pytest.approx([-1, -2, -1, 0, np.log(2), 7])
    assert ops.scatter_logsumexp(torch.tensor([INF, 3]), torch.tensor([0, 0])).tolist() == [INF]


def test_softmax_is_that_of_torch_in_each_segment() -> None:
    src, index = torch.randn(3, 30, 2, dtype=torch.float64) * 300, torch.randint(0, 6, (30,))
    src[0, 3] = -INF
    for segment in index.unique():
        rows = index == segment
        own = src[:, rows]
        for function, expected in (
            (ops.scatter_softmax, own.softmax(1)),
            (ops.scatter_log_softmax, own.log_softmax(1)),
        ):
            torch.testing.assert_close(function(src, index, 1)[:, rows], expected, equal_nan=True)
        torch.testing.assert_close(ops.scatter_logsumexp(src, index, 1)[:, segment], own.logsumexp(1))
        torch.testing.assert_close(
            ops.scatter_std(src[1:], index, 1)[:, segment],
            torch.from_numpy(own[1:].numpy().std(1, ddof=min(1, int(rows.sum()) - 1))),
        )
        torch.testing.assert_close(
            ops.scatter_std(src[1:], index, 1, unbiased=False)[:, segment], torch.from_numpy(own[1:].numpy().std(1))
        )
    empty = torch.empty(0, 2)
    assert ops.scatter_softmax(empty, torch.empty(0, dtype=torch.int64), 0).shape == (0, 2)


@run_each("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_added_in_float32(dtype: torch.dtype) -> None:
    src, index = torch.randn(3000, 2).to(dtype), torch.randint(0, 3, (3000,))
    for name in ("sum", "mean", "max", "min", "std"):
        function = getattr(ops, f"scatter_{name}")
        found, wide = function(src, index, 0), function(src.float(), index, 0)
        found, wide = (found[0], wide[0]) if isinstance(found, tuple) else (found, wide)
        assert torch.equal(found, wide.to(dtype)), name


FUNCTIONS: dict[str, Function] = {
    "sum": lambda x, index: ops.scatter_sum(x, index, 0, dim_size=7),
    "mean": lambda x, index: ops.scatter_mean(x, index, 0, dim_size=7),
    "max": lambda x, index: ops.scatter_max(x, index, 0, dim_size=7)[0],
    "min": lambda x, index: ops.scatter_min(x, index, 0, dim_size=7)[0],
    "std": lambda x, index: ops.scatter_std(x, index, 0, dim_size=7),
    "softmax": lambda x, index: ops.scatter_softmax(x, index, 0, dim_size=7),
    "log_softmax": lambda x, index: ops.scatter_log_softmax(x, index, 0, dim_size=7),
    "logsumexp": lambda x, index: ops.scatter_logsumexp(x, index, 0, dim_size=7),
    "gather": lambda x, index: ops.gather_coo(x, index),
    "sorted": lambda x, index: ops.segment_coo(x, index.sort().values, dim_size=7),
    "bounds": lambda x, index: ops.segment_csr(x, torch.tensor([0, 2, 2, 9, 12]), reduce="mean"),
    "out": lambda x, index: ops.scatter_sum(x[3:], index[3:], 0, out=x[:7] * 2),
    "highest of out": lambda x, index: ops.scatter_max(x[3:], index[3:], 0, out=x[:7] * 2)[0],
}
INDEX = torch.tensor([0, 2, 2, 6, 0, 3, 5, 6, 6, 0, 2, 4])


@run_each("name", list(FUNCTIONS))
def test_gradients_are_those_of_finite_differences_twice(name: str) -> None:
    x = torch.randn(12, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: FUNCTIONS[name](x, INDEX), x)
    assert torch.autograd.gradgradcheck(lambda x: FUNCTIONS[name](x, INDEX), x)


def test_gradients_reach_one_row_of_equal_ones_and_none_of_a_single_deviation() -> None:
    x = torch.tensor([3.0, 3, 5], requires_grad=True)
    ops.scatter_max(x, torch.tensor([0, 0, 1]))[0].sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1, 0, 1]
    (to_x,) = torch.autograd.grad(ops.scatter_std(x, torch.tensor([0, 0, 1])).sum(), x)
    assert to_x.tolist() == [0, 0, 0]


@run_each("name", ["mean", "softmax", "gather", "sorted", "bounds", "highest of out"])
def test_graphs_and_transforms_have_the_numbers_of_eager_mode(name: str) -> None:
    function, x = FUNCTIONS[name], torch.randn(12, 2)
    expected = function(x, INDEX)
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, INDEX), expected)

    class Calling(torch.nn.Module):
        def forward(self, x: Tensor, index: Tensor) -> Tensor:
            found: Tensor = function(x, index)
            return found

    program = torch.export.export(Calling(), (x, INDEX))
    assert "sightline" not in str(program.graph)
    torch.testing.assert_close(program.module()(x, INDEX), expected)
    stacked = torch.vmap(lambda x: function(x, INDEX))(torch.stack([x, -x]))
    torch.testing.assert_close(stacked, torch.stack([expected, function(-x, INDEX)]))
    to_x = torch.func.grad(lambda x: function(x, INDEX).square().sum())(x)
    (expected,) = torch.autograd.grad(function(leaf := x.clone().requires_grad_(), INDEX).square().sum(), leaf)
    torch.testing.assert_close(to_x, expected)


ROWS = torch.arange(12.0).reshape(6, 2)
SIX = torch.tensor([0, 1, 2, 2, 1, 0])
OTHER: Any = "mul"


@run_each(
    "call, message",
    [
        (lambda: ops.scatter_sum(ROWS, SIX, 0, dim_size=2), r"index: segments 0..2 named, of 2; .*raise dim_size"),
        (lambda: ops.scatter_max(ROWS, SIX - 1, 0), r"index: segments -1..1 named, of 2"),
        (lambda: ops.scatter_sum(ROWS, SIX[:5], 0), r"index: found the shape \(5,\), expected that of src \(6, 2\)"),
        (lambda: ops.scatter_sum(ROWS, SIX.float(), 0), r"index: found torch.float32, expected whole numbers"),
        (lambda: ops.scatter_sum(ROWS, SIX, 2), r"dim: found 2, expected one of the dimensions of src \(6, 2\)"),
        (lambda: ops.scatter_sum(ROWS, SIX, 0, dim_size=-1), "dim_size: found -1, expected a number of segments"),
        (lambda: ops.scatter_sum(ROWS[:, :1], SIX, 0, ROWS), r"out: found the shape \(6, 2\), expected \(6, 1\)"),
        (lambda: ops.segment_csr(ROWS, SIX[[0, 0]] + 6, ROWS), r"indptr: found \[6, 6\]"),
        (
            lambda: ops.segment_csr(ROWS, torch.tensor([0, 6]), ROWS),
            r"out: found the shape \(6, 2\), expected \(1, 2\)",
        ),
        (lambda: ops.scatter(ROWS, SIX, 0, reduce=OTHER), "reduce: found 'mul', expected 'sum', 'add', 'mean'"),
        (lambda: ops.segment_coo(ROWS, SIX, reduce=OTHER), "reduce: found 'mul', expected 'sum', 'add', 'mean'"),
        (lambda: ops.scatter_softmax(SIX, SIX), "scatter_softmax: found torch.int64, expected floating-point numbers"),
        (lambda: ops.scatter_std(SIX, SIX), "scatter_std: found torch.int64, expected floating-point numbers"),
        (
            lambda: ops.segment_coo(ROWS, SIX),
            r"index: falls from 2 to 1 after row 3, expected segments in rising order",
        ),
        (lambda: ops.segment_csr(ROWS, torch.tensor([0, 4, 2, 6])), r"indptr: found \[0, 4, 2, 6\] ... 6 for 6 rows"),
        (lambda: ops.segment_csr(ROWS, torch.tensor([0, 4])), r"indptr: .*; bounds start at 0, never fall, and end at"),
        (lambda: ops.segment_csr(ROWS, torch.zeros(0, dtype=torch.int64)), "indptr: found no bounds"),
        (lambda: ops.segment_coo(ROWS, SIX.reshape(1, 6, 1)), r"index: found the shape \(1, 6, 1\) for src \(6, 2\)"),
        (lambda: ops.gather_csr(ROWS, torch.tensor([0, 4, 9])), r"indptr: 3 bounds for 6 segments"),
        (lambda: ops.gather_coo(ROWS, SIX + 5), r"index: segments 5..7 named, of 6"),
    ],
)
def test_what_is_refused_in_one_line(call: Function, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        call()
    assert "\n" not in str(refused.value)
