"""One exam for all operators: kernels against plain forms, and what torch asks of an operator."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import sightline.ops  # registers all operators
from sightline.ops.operator import OPERATORS
from tests.cases import run_each
from tests.marks import long_but
from tests.ops.exam_cases import CASES, OperatorCase
from tests.ops.results import find_difference, tensors_of
from tests.ops.threads import with_one_and_three_threads

FIRST = [*{case.operator: case for case in reversed(CASES)}.values()]
each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_operator = pytest.mark.parametrize("case", long_but(FIRST, CASES), ids=str)
"""What torch asks of an operator takes no notice of which kernel computes it: one case of each in `make test`."""


def test_every_operator_is_examined() -> None:
    assert sightline.ops.__all__
    assert {case.operator for case in CASES} == OPERATORS.keys()
    with_gpu = {name for name, operator in OPERATORS.items() if operator.gpu is not None}
    assert with_gpu == {case.operator for case in CASES if case.table is not None}
    assert all(OPERATORS[name].launches is not None for name in with_gpu)


@each_case
@run_each("dtype", [torch.float32, torch.float64])
def test_kernels_of_a_cpu_are_the_plain_form(case: OperatorCase, dtype: torch.dtype) -> None:
    operator, arguments = OPERATORS[case.operator], case.make(dtype)
    expected = operator.plain(*arguments)
    one, three = with_one_and_three_threads(lambda: operator(*arguments))
    assert find_difference(one, expected, case.tolerance) is None
    assert find_difference(one, three, 0.0) is None
    assert find_difference(operator(*map(with_gaps, arguments)), one, 0.0) is None


def with_gaps(value: Any) -> Any:
    """The same numbers, not next to one another in memory."""
    return torch.stack([value, value], dim=-1)[..., 0] if isinstance(value, Tensor) else value


@each_operator
def test_torch_takes_it_for_an_operator(case: OperatorCase) -> None:
    operator = OPERATORS[case.operator]
    arguments = case.make(torch.float32)
    for place in case.differentiable:
        arguments[place].requires_grad_()
    torch.library.opcheck(operator.definition, arguments)


@each_operator
def test_a_compiled_graph_has_it_as_one_node(case: OperatorCase) -> None:
    operator, arguments = OPERATORS[case.operator], case.make(torch.float32)
    torch.compiler.reset()
    compiled = torch.compile(lambda *given: operator(*given), fullgraph=True, backend="aot_eager")
    assert find_difference(compiled(*arguments), operator(*arguments), 0.0) is None


@each_operator
def test_an_exported_graph_has_operations_of_torch_alone(case: OperatorCase) -> None:
    class Calling(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> Any:
            given = iter(tensors)
            return operator(*(next(given) if isinstance(value, Tensor) else value for value in arguments))

    operator, arguments = OPERATORS[case.operator], (case.export or case.make)(torch.float32)
    tensors = tuple(value for value in arguments if isinstance(value, Tensor))
    program = torch.export.export(Calling(), tensors)
    assert "sightline" not in str(program.graph)
    assert find_difference(program.module()(*tensors), operator(*arguments), case.tolerance) is None


@each_case
def test_tensors_without_numbers_get_the_shapes_and_the_device(case: OperatorCase) -> None:
    operator, arguments = OPERATORS[case.operator], case.make(torch.float32)
    with FakeTensorMode():
        fake = [
            torch.empty(value.shape, dtype=value.dtype, device="cuda") if isinstance(value, Tensor) else value
            for value in arguments
        ]
        promised = tensors_of(operator(*fake))
    for shown, real in zip(promised, tensors_of(operator(*arguments)), strict=True):
        assert (shown.device.type, shown.dtype) == ("cuda", real.dtype)
        assert all(not isinstance(size, int) or size == own for size, own in zip(shown.shape, real.shape, strict=True))


@pytest.mark.parametrize("case", [case for case in CASES if case.differentiable], ids=str)
def test_gradients_are_those_of_finite_differences(case: OperatorCase) -> None:
    operator, arguments = OPERATORS[case.operator], list(case.make(torch.float64))

    def call(*values: Tensor) -> list[Tensor]:
        for place, value in zip(case.differentiable, values, strict=True):
            arguments[place] = value
        return [result for result in tensors_of(operator(*arguments)) if result.is_floating_point()]

    assert torch.autograd.gradcheck(call, [arguments[place].requires_grad_() for place in case.differentiable])
