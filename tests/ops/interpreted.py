"""`python -m tests.ops.interpreted`: every GPU kernel in Triton's interpreter against its plain form, on the CPU.

The interpreter is chosen when Triton is imported: it has a process of its own.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch import Tensor
from triton.runtime.interpreter import GridExecutor

from sightline.ops.boxes import suppression
from sightline.ops.operator import OPERATORS
from sightline.ops.points import neighbour_gpu_kernels
from tests.ops.exam_cases import CASES, OperatorCase, clouds
from tests.ops.results import find_difference

OUTSIDE = {
    "farthest_points-all": 1,
    "packed_farthest_points-ragged": 2,
    "edge_extremes-ties": 1,
    "edge_gradients-float": 1,
    "inverse_distance_weights-of distances": 2,
}
"""Cases of kernels that read where an index says, and the index's place among the arguments."""

SLOW = {f"nearest_neighbours-{label}" for label in ("in space", "of other features", "many")}
"""Cases whose form in float64 others have, too, with fewer points."""

SMALLER: dict[str, Callable[..., tuple[Any, ...]]] = {
    "nearest_neighbours-in space": lambda points, queries, count: (points[:, :37], queries, count),
    "nearest_neighbours-of features": lambda points, _, count: (points, points[:, :21], count),
    "nearest_neighbours-of other features": lambda points, queries, count: (points, queries[:, :9], count),
    "nearest_neighbours-many": lambda points, queries, count: (points, queries[:, :1], count),
    "packed_nearest_neighbours-ragged": lambda points, offsets, *rest: (points[:40], offsets // 2, *rest),
}
"""Cases with more queries than the interpreter needs: still several blocks of points, and queries beside a block's.

Kernels of a CPU need them all: trees of several leaves, and more points than their candidates.
"""


def main() -> None:
    for case, dtype in itertools.product(CASES, (torch.float32, torch.float64)):
        if dtype == torch.float32 or str(case) not in SLOW:
            report(f"{case}, {dtype}", compare(case, dtype))
    for case in CASES:
        if str(case) in OUTSIDE:
            report(f"{case}, outside", read_outside(case, OUTSIDE[str(case)]))
        if case.operator == "keep_greedily":
            with mock.patch.object(suppression, "_MOST_AT_ONCE", 32):
                report(f"{case}, in blocks", compare(case, torch.float32))
    with mock.patch.dict(neighbour_gpu_kernels._SLOTS_OF_A_WARP, {torch.float32: 16, torch.float64: 16}):
        for dtype in (torch.float32, torch.float64):
            report(f"packed_nearest_neighbours-in parts, {dtype}", search_in_parts(dtype))
    with far_points() as points:
        for name, rest in {
            "nearest_neighbours": (None, 2),
            "points_in_balls": (points[:, :2], 2.0, 3, True, True),
        }.items():
            gpu, plain = OPERATORS[name].gpu, OPERATORS[name].plain
            assert gpu is not None
            report(f"{name}-far", find_difference(gpu(points, *rest), plain(points, *rest), 0.0))


def report(name: str, fault: str | None) -> None:
    """Print what is wrong; nothing for a case that no kernel takes."""
    if fault != "":
        sys.stdout.write(f"{name}: {fault or 'equal'}\n")


def compare(case: OperatorCase, dtype: torch.dtype) -> str | None:
    """Compare kernel and plain form; float64 is held to its own precision."""
    operator, arguments = OPERATORS[case.operator], case.make(dtype)
    if str(case) in SMALLER:
        arguments = SMALLER[str(case)](*arguments)
    if operator.gpu is None or not operator.takes(*arguments):
        return ""
    tolerance = case.tolerance * (torch.finfo(dtype).eps / torch.finfo(torch.float32).eps)
    return find_difference(operator.gpu(*arguments), operator.plain(*arguments), tolerance)


def read_outside(case: OperatorCase, place: int) -> str | None:
    """Give indices far outside, of which a kernel may not read: they are the nearest inside, or their weights NaN."""
    operator, arguments = OPERATORS[case.operator], list(case.make(torch.float32))
    assert operator.gpu is not None
    index = arguments[place].clone()
    highest = int(index.max())
    index.view(-1)[[0, -1]] = torch.tensor([2**40, -(2**40)])
    arguments[place] = index.clamp(0, highest)
    expected = operator.plain(*arguments)
    arguments[place] = index
    found = operator.gpu(*arguments)
    if case.operator == "inverse_distance_weights":
        expected = expected.where(((index >= 0) & (index <= highest)).all(dim=-1, keepdim=True), torch.nan)
        return None if torch.equal(found.isnan(), expected.isnan()) else "weights that are not NaN"
    return find_difference(found, expected, case.tolerance)


def search_in_parts(dtype: torch.dtype) -> str | None:
    """Look for 35 neighbours, 16 at a time, among 30 and among 9 points."""
    operator, (points, queries) = OPERATORS["packed_nearest_neighbours"], clouds(dtype, 2, 39, 3)
    arguments = points, torch.tensor([0, 30, 39]), queries[:2], torch.tensor([0, 1, 2]), 35
    assert operator.gpu is not None
    return find_difference(operator.gpu(*arguments), operator.plain(*arguments), 0.0)


@contextlib.contextmanager
def far_points() -> Iterator[Tensor]:
    """Points (1, 3, 3) of which the last is 2^31 numbers behind the first, in a file with a hole."""
    step: Any = 2**30
    with (
        tempfile.NamedTemporaryFile() as file,
        mock.patch.object(GridExecutor, "_restore_args_dev"),  # copies all that lies between
    ):
        memory = torch.from_file(file.name, shared=True, size=2 * step + 64)
        points = memory.as_strided((1, 3, 3), (0, step, 1))
        points.copy_(torch.tensor([[[0.0, 0, 0], [3, 0, 0], [1, 0, 0]]]))
        yield points


if __name__ == "__main__":
    main()
