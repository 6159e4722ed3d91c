"""One exam for all operators: kernels against plain forms, and what torch asks of an operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

import sightline.ops  # registers all operators
from sightline.ops.operator import OPERATORS
from tests.cases import run_each
from tests.marks import long_but
from tests.ops.exam_cases import CASES, OperatorCase, clouds
from tests.ops.results import find_difference, tensors_of
from tests.ops.threads import with_one_and_three_threads

FIRST = [*{case.operator: case for case in reversed(CASES)}.values()]
OF_FLOATS = [case for case in FIRST if case.make(torch.float64)[0].is_floating_point()]
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


@pytest.mark.parametrize("case", long_but(FIRST, [case for case in CASES if case.label != "NaN and -inf"]), ids=str)
def test_torch_takes_it_for_an_operator(case: OperatorCase) -> None:
    """Without the results that are NaN: torch's own comparison takes them for unequal."""
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
    on_meta = tensors_of(operator(*(v.to("meta") if isinstance(v, Tensor) else v for v in arguments)))
    for device, results in (("cuda", promised), ("meta", on_meta)):
        for shown, real in zip(results, tensors_of(operator(*arguments)), strict=True):
            assert (shown.device.type, shown.dtype) == (device, real.dtype)
            sizes = zip(shown.shape, real.shape, strict=True)
            assert all(not isinstance(size, int) or size == own for size, own in sizes)


@pytest.mark.parametrize("case", [case for case in CASES if case.differentiable], ids=str)
def test_gradients_are_those_of_finite_differences(case: OperatorCase) -> None:
    operator, arguments = OPERATORS[case.operator], list(case.make(torch.float64))

    def call(*values: Tensor) -> list[Tensor]:
        for place, value in zip(case.differentiable, values, strict=True):
            arguments[place] = value
        return [result for result in tensors_of(operator(*arguments)) if result.is_floating_point()]

    values = [arguments[place].requires_grad_() for place in case.differentiable]
    assert torch.autograd.gradcheck(call, values)
    assert torch.autograd.gradgradcheck(call, values, fast_mode=True)


def tensors_and_call(case: OperatorCase, dtype: torch.dtype) -> tuple[list[Tensor], Callable[..., list[Tensor]]]:
    """The tensors among the arguments, and a function of those that stand in their places."""
    arguments = case.make(dtype)
    places = [place for place, value in enumerate(arguments) if isinstance(value, Tensor)]

    def call(*tensors: Tensor) -> list[Tensor]:
        given = list(arguments)
        for place, tensor in zip(places, tensors, strict=True):
            given[place] = tensor
        return tensors_of(OPERATORS[case.operator](*given))

    return [arguments[place] for place in places], call


@each_case
def test_vmap_is_one_call_for_each(case: OperatorCase) -> None:
    (first, *others), call = tensors_and_call(case, torch.float32)
    other = first.flip(-2) if first.ndim > 1 else first
    along = torch.vmap(lambda values: tuple(call(values, *others)), in_dims=1)(torch.stack([first, other], dim=1))
    pairs = [torch.stack([values, values]) for values in (other, *others)]
    of_all = torch.vmap(lambda *values: tuple(call(*values)))(*pairs)
    assert find_difference([result[0] for result in along], call(first, *others), case.tolerance) is None
    twice = torch.vmap(torch.vmap(lambda *values: tuple(call(*values))))(*(pair[None] for pair in pairs))
    assert find_difference([result[0] for result in twice], of_all, 0.0) is None
    of_none = torch.vmap(lambda *values: tuple(call(*values)))(*(pair[:0] for pair in pairs))
    assert [result.shape for result in of_none] == [result[:0].shape for result in of_all]
    for results in ([result[1] for result in along], [result[1] for result in of_all]):
        assert find_difference(results, call(other, *others), case.tolerance) is None


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, in its rules of forward mode
@pytest.mark.parametrize("case", OF_FLOATS, ids=str)
def test_transforms_and_tangents_are_those_of_the_backward_pass(case: OperatorCase) -> None:
    """Of all results with a gradient; indices have none, and let the gradient of what is beside them through."""
    (first, *others), call = tensors_and_call(case, torch.float64)

    def loss(values: Tensor) -> Tensor:
        results = call(values, *others) if OPERATORS[case.operator].differentiable else []
        call(values, *others)
        return values.square().sum() + sum(result.square().sum() for result in results if result.is_floating_point())

    values = first.clone().requires_grad_()
    loss(values).backward()
    gradient = values.grad
    assert gradient is not None
    assert find_difference(torch.func.grad(loss)(first), gradient, 1e-9) is None
    assert find_difference(torch.vmap(torch.func.grad(loss))(first[None])[0], gradient, 1e-9) is None
    assert find_difference(torch.func.grad(lambda v: torch.vmap(loss)(v[None]).sum())(first), gradient, 1e-9) is None
    direction = clouds(torch.float64, *first.shape, seed=9)
    expected = (gradient * direction).sum()
    assert find_difference(torch.func.jvp(loss, (first,), (direction,))[1], expected, 1e-9) is None
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(loss(forward_ad.make_dual(first, direction))).tangent
    assert find_difference(tangent, expected, 1e-9) is None


DIFFERENTIABLE = [case for case in FIRST if OPERATORS[case.operator].differentiable]


@pytest.mark.parametrize("case", long_but(DIFFERENTIABLE[:1] + DIFFERENTIABLE[-1:], DIFFERENTIABLE), ids=str)
def test_a_compiled_graph_has_the_same_gradient(case: OperatorCase) -> None:
    (first, *others), call = tensors_and_call(case, torch.float64)

    def loss(values: Tensor) -> Tensor:
        return sum((result.square().sum() for result in call(values, *others) if result.is_floating_point()), values[0])

    gradients = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        torch.compiler.reset()
        values = first.clone().requires_grad_()
        function(values).sum().backward()
        gradients.append(values.grad)
    assert find_difference(*gradients, 1e-9) is None
