"""The exam that every registered model takes: found by the registry, built from facts, called by the names it takes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sightline.contract import registry
from sightline.contract.model import model_output_keys
from sightline.contract.schema import get_block_marker, signature_parameters
from sightline.engine.gradients import flatten_gradients, set_gradients
from sightline.engine.optimizers import SGD
from tests.marks import long_but
from tests.memory_order import ORDERS
from tests.models.small_models import LARGER, OURS, make_inputs, small_model, without_dropout


@pytest.fixture(params=long_but({*OURS} - LARGER, OURS))
def model(request: pytest.FixtureRequest) -> nn.Module:
    return small_model(request.param)


def call(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Any]:
    return dict(model(**inputs))


def test_outputs_are_those_declared_the_same_bits_each_time_and_inputs_are_left_alone(model: nn.Module) -> None:
    inputs = make_inputs(model, 2)
    before = {name: value.clone() for name, value in inputs.items()}
    first, second = call(model, inputs), call(model, inputs)
    assert set(first) == model_output_keys(model, owner="the model")
    assert all(torch.equal(first[name], second[name]) for name in first)
    call(model.train(), inputs)
    assert all(torch.equal(inputs[name], before[name]) for name in inputs)


def test_every_argument_has_a_default_or_is_a_fact_or_an_encoder(model: nn.Module) -> None:
    """Which encoder a model is made of is for its config to say."""
    required = [p for p in signature_parameters(type(model)).values() if p.is_required and p.name not in registry.FACTS]
    assert all(get_block_marker(parameter.annotation) is not None for parameter in required)


@pytest.mark.parametrize("name", [name for name in OURS if name.endswith(("_parts", "_scenes"))])
def test_no_clouds_have_no_logits(name: str) -> None:
    model = small_model(name)
    inputs = {name: value[:0] for name, value in make_inputs(model, 1).items()}
    assert call(model, inputs)["logits"].shape == (0, 32, 5)


def test_a_sample_a_million_times_as_large_changes_nothing_for_another(model: nn.Module) -> None:
    """Alone it is the same as in company, too. Shifts and sums over a batch would take the digits of the small sample.

    Matrix products of other shapes add in another order: float64 rounding, amplified tenfold or so by layer.
    """
    inputs = make_inputs(model, 2)
    for values in inputs.values():
        if values.is_floating_point():
            values[1] *= 1e6
    together = call(model, inputs)
    alone = call(model, {name: value[:1] for name, value in inputs.items()})
    for name, value in alone.items():
        torch.testing.assert_close(value, together[name][:1], rtol=1e-10, atol=1e-10)


def test_gradient_reaches_every_parameter(model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.ndim >= 2 and not parameter.any():
            nn.init.normal_(parameter, std=0.1)  # a matrix that starts at zero holds back the first gradient alone
    outputs = call(model.train(), make_inputs(model, 4)).values()
    sum((value * torch.randn_like(value)).sum() for value in outputs if value.is_floating_point()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name}: no gradient"
        assert parameter.grad.isfinite().all(), f"{name}: gradient not finite"
        # A vector may rightly get zero (a bias in front of a batch norm); a matrix of a used layer does not.
        assert parameter.ndim < 2 or parameter.grad.any(), f"{name}: gradient is zero everywhere"


@pytest.mark.parametrize("name", ["dgcnn", "pct", "point_transformer_dense", "pointnet_plain", "point_transformer"])
def test_gradients_by_torch_func_are_those_of_backward(name: str) -> None:
    model = small_model(name)
    inputs, weights = make_inputs(model, 2), dict(model.named_parameters())

    def loss(weights: dict[str, Tensor]) -> Tensor:
        logits: Tensor = torch.func.functional_call(model, weights, (), inputs)["logits"]
        return logits.square().sum()

    found = torch.func.grad(loss)({name: weight.detach() for name, weight in weights.items()})
    loss(weights).backward()
    for name, weight in weights.items():
        assert weight.grad is not None
        # Plain and fused forms add in another order.
        torch.testing.assert_close(found[name], weight.grad, rtol=1e-9, atol=1e-9, msg=name)


def trained(model: nn.Module, order: str) -> dict[str, Tensor]:
    """Weights after a step of SGD, gradients passed through the buckets that several processes add up."""
    model = without_dropout(ORDERS[order](copy.deepcopy(model)).train())  # masks are drawn in the order of memory
    optimizer = SGD(lr=1e-3).build(model)
    parameters = list(model.parameters())
    torch.manual_seed(1)
    outputs = [value for value in call(model, make_inputs(model, 4)).values() if value.is_floating_point()]
    sum((value * torch.randn(value.shape, dtype=value.dtype)).sum() for value in outputs).backward()
    set_gradients(parameters, flatten_gradients(parameters))
    optimizer.step()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def test_the_order_of_parameters_in_memory_changes_nothing(model: nn.Module) -> None:
    """To the rounding of sums in another order, through batch norms of few rows; a step moves weights by some 1e-3."""
    as_made, turned = trained(model, "as_made"), trained(model, "turned")
    for name, weight in as_made.items():
        torch.testing.assert_close(turned[name], weight, rtol=1e-9, atol=1e-9, msg=name)
