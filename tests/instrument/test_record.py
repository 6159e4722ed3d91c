"""Recorded calls against hand-worked numbers, and what may be changed or observed on the way."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sightline.instrument import ModuleCall, hang, record


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, values: Tensor) -> Tensor:
        return values * self.factor


class Twice(nn.Module):
    """Calls one module twice, and reads the second input of its own three times."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Scale(3.0)

    def forward(self, values: Tensor, *, other: Tensor) -> dict[str, Tensor]:
        first = self.inner(values)
        return {"sum": self.inner(first) + other * 3}


def tensors() -> tuple[Tensor, Tensor]:
    return torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([5.0, 7.0], requires_grad=True)


def test_calls_are_in_the_order_of_their_start() -> None:
    values, other = tensors()
    with record(Twice()) as tape:
        Twice()(values, other=other)  # another network's calls are not recorded
    assert tape.calls == []
    model = Twice()
    with record(model) as tape:
        model(values, other=other)
    assert [(call.path, call.call_index, call.parent, call.class_name) for call in tape.calls] == [
        ("", 0, None, "Twice"),
        ("inner", 0, 0, "Scale"),
        ("inner", 1, 0, "Scale"),
    ]
    assert [(call.began, call.ended) for call in tape.calls] == [(1, 6), (2, 3), (4, 5)]
    assert [call.name for call in tape.calls] == ["(model)", "inner", "inner (call 2)"]
    assert tape.innermost is None
    model(values, other=other)
    assert len(tape.calls) == 3  # the context is over


def test_gradients_are_those_of_one_call() -> None:
    """Of values v: the first call gives 3 v, the second 9 v; the sum's gradient is 1."""
    values, other = tensors()
    model = Twice()
    with record(model, keep=("inputs", "outputs", "gradients")) as tape:
        total = model(values, other=other)["sum"].sum() + values.sum()  # what reads `values` outside does not count
    total.backward()
    whole, first, second = tape.calls
    assert torch.equal(second.inputs[0][0], torch.tensor([3.0, 6.0]))
    assert torch.equal(second.outputs, torch.tensor([9.0, 18.0]))
    assert not second.outputs.requires_grad
    gradients = [
        (first.input_gradients["0.0"], 9.0),
        (first.output_gradients[""], 3.0),
        (second.input_gradients["0.0"], 3.0),
        (second.output_gradients[""], 1.0),
        (whole.input_gradients["0.0"], 9.0),
        (whole.input_gradients["1.other"], 3.0),
        (whole.output_gradients["sum"], 1.0),
    ]
    for gradient, expected in gradients:
        assert torch.equal(gradient, torch.full((2,), expected))
    assert values.grad is not None
    assert torch.equal(values.grad, torch.tensor([10.0, 10.0]))


def test_nothing_is_kept_unasked_and_each_tensor_may_be_reduced() -> None:
    values, other = tensors()
    model = Twice()
    with record({"inner": model.inner}, keep=("outputs",), convert=lambda tensor: float(tensor.detach().sum())) as tape:
        model(values, other=other)
    assert [(call.inputs, call.outputs) for call in tape.calls] == [(None, 9.0), (None, 27.0)]
    with record({"": model}, keep=("outputs",), convert=None) as tape:
        result = model(values, other=other)
    assert tape.outputs[0] is result
    with pytest.raises(AssertionError), record(model, keep=("output",)):
        pass


def test_inputs_and_outputs_may_be_replaced() -> None:
    """Ten is added before and a hundred after each call: ((1 + 10) * 3 + 100 + 10) * 3 + 100 + 15."""
    values, other = tensors()
    model = Twice()
    with record(
        {"inner": model.inner},
        enter=lambda call, module, inputs: ((inputs[0][0] + 10,), inputs[1]),
        leave=lambda call, module, inputs, outputs: outputs + 100,
    ):
        assert float(model(values, other=other)["sum"][0].detach()) == 544.0
    assert float(model(values, other=other)["sum"][0].detach()) == 24.0


def test_what_failed_is_still_running() -> None:
    model = Twice()
    with pytest.raises(TypeError), record(model) as tape:
        model("text", other=torch.ones(1))
    assert tape.innermost is not None
    assert (tape.innermost.path, tape.running) == ("inner", [0, 1])
    assert not model._forward_pre_hooks
    assert not model.inner._forward_hooks


def test_functions_and_operators_come_with_their_module() -> None:
    values, other = tensors()
    model = Twice()
    functions: list[tuple[str | None, str]] = []
    operators: list[tuple[str | None, str]] = []

    def path(call: ModuleCall | None) -> str | None:
        return None if call is None else call.path

    def note_function(call: ModuleCall | None, function: Any, args: Any, kwargs: Any, result: Any) -> None:
        functions.append((path(call), function.__name__))

    def note_operator(call: ModuleCall | None, operator: Any, args: Any, kwargs: Any, result: Any) -> None:
        operators.append((path(call), operator.overloadpacket.__name__))

    with record(model, functions=note_function, operators=note_operator):
        total = model(values, other=other)["sum"].sum()
    names = [("inner", "mul"), ("inner", "mul"), ("", "mul"), ("", "add"), (None, "sum")]
    assert [(at, name.strip("_").removesuffix("tensor")) for at, name in functions] == names
    assert operators == names
    assert total.requires_grad


def test_hooks_of_a_model_are_those_of_its_copies() -> None:
    model = Scale(2.0)
    hang(model, before=lambda module, args, kwargs: ((args[0] + 1,), kwargs))
    assert float(copy.deepcopy(model)(torch.tensor(3.0)).detach()) == 8.0
