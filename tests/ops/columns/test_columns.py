"""The exam of all public functions in each way they are used: what passes, what fails, and that it finds faults."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sightline import ops
from tests.marks import long_but
from tests.ops.columns.checks import COLUMNS, GRAPHS, examine
from tests.ops.columns.exam import (
    FAILURES,
    MAX_FAILING,
    PAGE,
    ROWS,
    count_cells,
    find_undeclared,
    find_undeclared_reads,
    with_table,
    without_meaning,
)
from tests.ops.columns.rows import NUMPY, Row, normal

CHEAP = [column for column in COLUMNS if column not in GRAPHS]
DAILY = ["nearest_neighbours", "packed_nearest_neighbours", "farthest_points", "box_iou", "nms"]
"""Functions whose graphs are made in `make test`; the cells of the others take two minutes."""


def test_every_public_function_is_examined() -> None:
    values = {name: getattr(ops, name) for name in ops.__all__}
    functions = {name for name, f in values.items() if inspect.isfunction(f) and inspect.signature(f).parameters}
    assert {row.name for row in ROWS} == functions
    assert len({*map(str, ROWS)}) == len(ROWS)
    unknown = {(name, column) for name, column in FAILURES if name not in map(str, ROWS) or column not in COLUMNS}
    assert not unknown


@pytest.mark.parametrize("column", CHEAP)
def test_cells_are_as_declared(column: str) -> None:
    assert [*find_undeclared(ROWS, [column])] == []


@pytest.mark.parametrize("name", long_but(DAILY, sorted({row.name for row in ROWS})))
def test_cells_of_graphs_are_as_declared(name: str) -> None:
    assert [*find_undeclared([row for row in ROWS if row.name == name], GRAPHS)] == []


def test_reads_are_as_declared() -> None:
    assert [*find_undeclared_reads(ROWS)] == []


def test_few_cells_fail_and_no_column_does() -> None:
    passed, failed, _ = count_cells()
    assert failed <= MAX_FAILING * (passed + failed)
    for column in COLUMNS:
        passed, failed, _ = count_cells([column])
        assert passed > failed, column


def test_the_page_has_the_table() -> None:
    text = PAGE.read_text()
    assert with_table(text) == text, "run python -m tests.ops.columns"


def test_what_reads_numbers_of_a_device_says_so() -> None:
    texts = {row.name: inspect.getdoc(getattr(ops, row.name)) or "" for row in ROWS if row.reads}
    silent = [name for name, text in texts.items() if "read" not in text.lower()]
    assert silent == []


# --- the exam finds what is wrong -------------------------------------------------------------------------------------


class _NoFormula(torch.autograd.Function):
    """The square, with a gradient, and neither for transforms nor tangents."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * gradients[0]


def _in_memory_order(x: Tensor) -> Tensor:
    return torch.as_strided(x, x.shape, torch.empty(x.shape).stride())


FAULTS: dict[str, Callable[[Tensor], Tensor]] = {
    "compile": lambda x: x * (2 if x.sum() > 0 else 3),
    "export": lambda x: x * torch.arange(len(x))[:, None, None],
    "onnx": lambda x: x.sort(dim=1, stable=True).values,
    "onnx by torch": lambda x: torch.searchsorted(x, x) * x,
    "meta": lambda x: x * x.sum().item(),
    "vmap": lambda x: x * (2 if x.sum() > 0 else 3),
    "autograd": lambda x: x * x.detach(),
    "func.grad": _NoFormula.apply,
    "forward mode": _NoFormula.apply,
    "autocast": lambda x: x @ x.mT @ x,
    "float16": lambda x: (x + 1000) - 1000,
    "bfloat16": lambda x: (x + 1000) - 1000,
    "float64": lambda x: x.float(),
    "empty": lambda x: x - x.amax(dim=1, keepdim=True),
    "batch 0": lambda x: x - x[0],
    "not contiguous": _in_memory_order,
    "another device": lambda x: x.new_zeros(x.shape) if x.device.type == "cpu" else torch.zeros(x.shape),
}


def _toy(call: Callable[[Tensor], Tensor]) -> Row:
    return Row("toy", {"x": normal("B", "N", 3)}, call, (("B", "N", 3),), none="N", differentiable=frozenset({"x"}))


def test_a_function_without_faults_passes_every_column() -> None:
    assert {column: examine(_toy(lambda x: x.square() + 1), column) for column in COLUMNS} == dict.fromkeys(COLUMNS)


@pytest.mark.parametrize("column", COLUMNS)
def test_a_planted_fault_is_found(column: str) -> None:
    assert examine(_toy(FAULTS[column]), column) is not None


def test_a_cell_without_a_meaning_has_a_reason() -> None:
    numpy = next(row for row in ROWS if NUMPY in row.traits)
    assert without_meaning(numpy, "compile") == "takes arrays of NumPy"
    assert without_meaning(_toy(lambda x: x), "compile") is None
