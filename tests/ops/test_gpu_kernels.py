"""GPU kernels on a machine without a GPU: their numbers in Triton's interpreter, their machine code, their launches."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from sightline.ops.gpu_kernels import gpu_kernel
from sightline.ops.operator import OPERATORS
from tests.cases import run_each
from tests.launches import Launches
from tests.marks import long_but
from tests.ops.exam_cases import CASES, FOUR, LARGE, LargeCall, OperatorCase, empty, indices
from tests.ops.gpu_builds import Build, Launch, build, find_variant, recorded_launches
from tests.processes import ROOT

TABLE = [case for case in CASES if case.table is not None]
ARCHITECTURES = (80, 86, 89, 90, 100)
MAX_REGISTERS = 144
FORMATS = (torch.float32, torch.float64)


def has_half(case: OperatorCase) -> bool:
    assert case.table is not None
    return any(isinstance(value, Tensor) and value.dtype == torch.bfloat16 for value in case.table())


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def interpreted() -> dict[str, str]:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.ops.interpreted"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return dict(line.rsplit(": ", 1) for line in done.stdout.splitlines())


def test_gpu_kernels_are_the_plain_form_in_the_interpreter(interpreted: dict[str, str]) -> None:
    """In float32 and float64, with indices outside of the clouds, in blocks and parts, with rows far apart."""
    assert {name: fault for name, fault in interpreted.items() if fault != "equal"} == {}
    for dtype in FORMATS:
        assert {case.operator for case in TABLE} == {name.split("-")[0] for name in interpreted if str(dtype) in name}


# --- machine code -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", long_but([80, 90], ARCHITECTURES))
@pytest.mark.parametrize("case", TABLE, ids=str)
def test_gpu_kernels_fit_every_architecture(case: OperatorCase, architecture: int) -> None:
    """No spills, few registers, and no fused multiply-add: each product is rounded before it is added."""
    assert case.table is not None
    launches = record(case.operator, case.table())
    assert len(launches) <= (OPERATORS[case.operator].launches or 0)
    assert_fits(launches, architecture)


@pytest.mark.parametrize("architecture", long_but([90], ARCHITECTURES))
@pytest.mark.parametrize("case", [case for case in TABLE if not has_half(case)], ids=str)
def test_gpu_kernels_fit_in_float64(case: OperatorCase, architecture: int) -> None:
    """Nothing is computed in float32 on the way."""
    assert case.table is not None
    for built in assert_fits(record(case.operator, map(in_float64, case.table())), architecture):
        assert ".f32" not in built.ptx


@pytest.mark.parametrize("architecture", long_but([90], ARCHITECTURES))
@pytest.mark.parametrize("call", LARGE, ids=str)
@run_each("dtype", FORMATS)
def test_forms_for_large_calls_fit(call: LargeCall, dtype: torch.dtype, architecture: int) -> None:
    launches = record(call.operator, call.make(dtype))
    assert len(launches) == call.launches
    assert_fits(launches, architecture)


def in_float64(value: Any) -> Any:
    """The argument in float64, if it is or names float32."""
    if isinstance(value, Tensor):
        return value.double() if value.dtype == torch.float32 else value
    return torch.float64 if value is torch.float32 else value


def record(operator: str, arguments: Iterable[Any]) -> list[Launch]:
    """Return the launches of an operator's kernel, which takes the arguments."""
    pytest.importorskip("triton")
    given, gpu = tuple(arguments), OPERATORS[operator].gpu
    assert gpu is not None
    assert OPERATORS[operator].takes(*given)
    with recorded_launches() as launches:
        gpu(*given)
    assert launches
    return launches


def assert_fits(launches: Sequence[Launch], architecture: int) -> list[Build]:
    builds = {find_variant(launch): build(launch, architecture) for launch in launches}
    for (name, *_), built in builds.items():
        assert built.registers <= MAX_REGISTERS, name
        assert built.stack == 0, name
        assert "fma.rn.f" not in built.ptx, name
    return [*builds.values()]


# --- launches ---------------------------------------------------------------------------------------------------------

SIZES = (1, 16, 33, 250, 256)
VARIED: dict[str, Callable[[int], tuple[Any, ...]]] = {
    "nearest_neighbours": lambda size: (empty(size, size + 5, 3), empty(size, size, 3), 5),
    "packed_nearest_neighbours": lambda size: (empty(4 * size, 64), size * FOUR, None, None, 16),
    "points_in_balls": lambda size: (empty(size, size, 3), empty(size, size, 3), size / 2, size, True, True),
    "packed_points_in_balls": lambda size: (
        *(empty(4 * size, 3), size * FOUR, empty(4, 3), FOUR, 0.1, size, True, True),
    ),
    "inverse_distance_weights": lambda size: (empty(2, size, 3), empty(2, size, 3), indices(2, size, 3), None, ""),
    "farthest_points": lambda size: (empty(size, size, 3), indices(size), size, float(size), 0.0),
    "packed_farthest_points": lambda size: (
        *(empty(4 * size, 3), indices(5), indices(4), indices(5), [size] * 4, [1] * 4, torch.inf),
    ),
    "edge_extremes": lambda size: (empty(1, size, 12), indices(1, size, size), empty(6), empty(6), None),
    "edge_gradients": lambda size: (
        *(empty(1, size, 12), indices(1, size, size), empty(1, size, 6, dtype=torch.uint8), empty(1, size, 6)),
        *(empty(6), empty(6), empty(6), None),
    ),
    "batch_statistics": lambda size: (
        *(empty(size), *(empty(size, dtype=torch.float64) for _ in range(2)), empty(size), empty(size)),
        *(size, 1 / size, 1e-5, torch.float32),
    ),
    "statistics_gradients": lambda size: (*(empty(size) for _ in range(4)), size),
    "box_iou": lambda size: (empty(size, 4), empty(size + 1, 4)),
    "box_ioa": lambda size: (empty(size, 4), empty(size + 1, 4)),
    "keep_greedily": lambda size: (empty(size, 4), empty(size), indices(size), empty(size), indices(0)),
    "scatter_rows": lambda size: (empty(1, size, 3), indices(1, size), size, "any"),
    "scatter_extremes": lambda size: (empty(1, size, 3), indices(1, size), size, True, "any"),
    "points_in_boxes": lambda size: (empty(size, 3), empty(size, 8), float(size), 1.0),
}
"""Calls of a size of which nothing but the size varies."""


@pytest.mark.parametrize("operator", sorted({case.operator for case in TABLE}))
def test_sizes_do_not_multiply_the_compiled_variants(operator: str) -> None:
    """Triton compiles anew for a 1 and for multiples of 16 unless told not to: an epoch of packed clouds has many."""
    recorded = [record(operator, VARIED[operator](size)) for size in SIZES]
    assert len({find_variant(launch) for launches in recorded for launch in launches}) == len(recorded[-1])


MANY = 2**27
HUGE: dict[str, tuple[Any, ...]] = {
    "packed_nearest_neighbours": (empty(MANY, 3), MANY // 4 * FOUR, None, None, 16),
    "packed_points_in_balls": (
        *(empty(MANY, 3), MANY // 4 * FOUR, empty(MANY, 3), MANY // 4 * FOUR, 0.1, 32, True, True),
    ),
    "farthest_points": (empty(MANY // 64, 64, 3), indices(MANY // 64), 8, torch.inf, -1.0),
    "inverse_distance_weights": (empty(1, MANY, 3), empty(1, MANY, 3), indices(1, MANY, 3), None, "inverse"),
    "edge_extremes": (empty(1, MANY, 256), indices(1, MANY, 20), empty(128), empty(128), None),
    "edge_gradients": (
        *(empty(1, MANY, 256), indices(1, MANY, 20), empty(1, MANY, 128, dtype=torch.uint8), empty(1, MANY, 128)),
        *(empty(128), empty(128), empty(128), None),
    ),
    "box_iou": (empty(MANY, 4), empty(100, 4)),
    "scatter_rows": (empty(1, MANY, 3), indices(1, MANY), MANY // 4, "any"),
    "scatter_extremes": (empty(1, MANY, 3), indices(1, MANY), MANY // 4, True, "any"),
    "points_in_boxes": (empty(MANY, 3), empty(50, 8), 0.1, 0.0),
}


@run_each("operator", HUGE)
def test_a_launch_numbers_the_programs_of_2_27_points(operator: str) -> None:
    """A GPU has room for 65,535 blocks along the other axes, and 31 bits along the first."""
    launches = record(operator, HUGE[operator])
    assert all(65_535 < launch.num_programs < 2**31 for launch in launches)


def test_a_launch_of_more_programs_than_a_gpu_numbers_is_refused() -> None:
    @gpu_kernel
    def fill(values):  # type: ignore[no-untyped-def]
        raise AssertionError(values)

    with pytest.raises(ValueError, match=r"fill: 2147483648 programs are needed.*at most 2147483647"):
        fill.launch(2**31, empty(1))


@run_each(
    "operator, arguments, most",
    [
        ("inverse_distance_weights", (empty(2, 9, 3), empty(2, 5, 3), indices(2, 5, 1100), None, "inverse"), 25),
        ("box_iou", (empty(9, 4), empty(5, 4, dtype=torch.float64)), 25),
    ],
)
def test_what_no_kernel_takes_is_a_few_operations_of_torch(
    operator: str, arguments: tuple[Any, ...], most: int
) -> None:
    assert not OPERATORS[operator].takes(*arguments)
    with Launches() as launches:
        OPERATORS[operator].plain(*arguments)
    assert 1 <= launches.count.total() <= most
