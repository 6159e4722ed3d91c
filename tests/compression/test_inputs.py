"""Quantised inputs of layers: against NumPy, their gradients, what is refused, copies and states."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.compression.inputs import calibrate_activations, quantise_inputs, quantised_activation
from sightline.compression.parametrised import apply_policy, bake_quantised_weights
from sightline.compression.policy import FP32, Activation, WeightFormat, choice_faults, policy_to_dict
from sightline.compression.weights import quantisable_weights
from sightline.contract.errors import UserError
from sightline.training.named_model import build_model
from tests.cases import run_each
from tests.compression.policies import parse_policy


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


class Fused(nn.Module):
    """Reads the weight of a layer that it calls in evaluation alone."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 32)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.linear.weight, self.linear.bias) if self.training else self.linear(input=x)


def calls(model: nn.Module, batches: Tensor) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad():
            for batch in batches:
                model(batch)

    return run


@run_each("bits", range(2, 9))
@run_each("is_signed", [False, True])
def test_numbers_are_those_of_numpy(bits: int, is_signed: bool) -> None:
    values = torch.linspace(-3, 3, 1001, dtype=torch.float64)
    steps = 2 ** (bits - 1) - 1 if is_signed else 2**bits - 1
    x = np.clip(values.numpy(), -1.7 if is_signed else 0, 1.7)
    expected = np.rint(x / (1.7 / steps)) * (1.7 / steps)
    found = quantised_activation(values, 1.7, bits=bits, is_signed=is_signed)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-15, atol=0)
    assert len(found.unique()) == steps * (2 if is_signed else 1) + 1


def test_gradients_pass_inside_the_range_alone() -> None:
    for is_signed, expected in ((False, [0, 0, 1, 1, 0]), (True, [0, 1, 1, 1, 0])):
        values = torch.tensor([-2.0, -0.5, 0.1, 1.0, 1.01], requires_grad=True)
        quantised_activation(values, 1.0, bits=3, is_signed=is_signed).sum().backward()
        assert values.grad is not None
        assert values.grad.tolist() == expected


def test_calibrated_entries_are_what_a_policy_holds() -> None:
    model, batches = network(), torch.randn(3, 50, 6)
    entries = calibrate_activations(model, calls(model, batches), ["4.weight", "0.weight"], bits=8)
    assert list(entries) == ["4.weight", "0.weight"]
    assert entries["0.weight"] == Activation(8, float(batches.abs().max()), True)
    assert entries["4.weight"].range == pytest.approx(model[:4](batches).max().item(), rel=1e-6)
    assert not entries["4.weight"].signed
    assert not any(layer._forward_pre_hooks for layer in model)
    few = calibrate_activations(model, calls(model, batches), ["0.weight"], bits=4, most=2.5)["0.weight"]
    assert 0 < few.range <= 2.5
    for each in (*entries.values(), few):
        policy = {"w": FP32._replace(activation=each)}
        assert parse_policy(json.loads(json.dumps(policy_to_dict(policy)))) == policy


def test_layers_of_a_model_compute_with_the_numbers_of_numpy() -> None:
    model, x = network().double(), torch.randn(40, 6, dtype=torch.float64)
    plain = {name: value.numpy() for name, value in model.state_dict().items()}
    names = list(model.state_dict())
    entries = calibrate_activations(model, calls(model, x[None]), ["0.weight", "2.weight"], bits=6)
    policy = {name: FP32._replace(activation=entry) for name, entry in entries.items()}
    apply_policy(model, {**policy, "4.weight": WeightFormat("linear", 4)})
    h = x.numpy()
    for layer in (0, 2):
        entry = entries[f"{layer}.weight"]
        steps = 2 ** (6 - entry.signed) - 1
        low = -entry.range if entry.signed else 0
        h = np.rint(np.clip(h, low, entry.range) * steps / entry.range) * entry.range / steps
        h = np.maximum(h @ plain[f"{layer}.weight"].T + plain[f"{layer}.bias"], 0)
    np.testing.assert_allclose(model[:4](x).detach().numpy(), h, rtol=1e-12, atol=1e-12)
    expected = model(x)
    copied = bake_quantised_weights(copy.deepcopy(model))
    assert list(copied.state_dict()) == names
    torch.testing.assert_close(copied(x), expected, rtol=0, atol=0)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    model.train()(x).sum().backward()
    assert model[0].weight.grad is not None
    assert model[0].weight.grad.abs().max() > 0


def test_copies_look_after_themselves() -> None:
    model = Fused().eval()
    quantise_inputs(model, {"linear.weight": Activation(4, 1.0, True)})
    copied, x = copy.deepcopy(model), torch.randn(5, 6)
    assert torch.equal(copied(x), model.linear(quantised_activation(x, 1.0, bits=4, is_signed=True)))
    with pytest.raises(UserError, match=r"linear.weight: .* not called in training, .* `fused: false`"):
        copied.train()(x)
    assert list(model.state_dict()) == ["linear.weight", "linear.bias"]


@pytest.mark.filterwarnings("ignore")
def test_compiled_models_round_and_refuse() -> None:
    model, x = network(), torch.randn(4, 6)
    entries = calibrate_activations(model, calls(model, x[None]), ["0.weight", "2.weight"], bits=4)
    quantise_inputs(model, entries)
    compiled = torch.compile(copy.deepcopy(model), backend="eager")
    for _ in range(3):
        assert torch.equal(compiled(x), model(x))
    fused = Fused().train()
    quantise_inputs(fused, {"linear.weight": Activation(4, 1.0, True)})
    with pytest.raises(UserError, match="not called in training"):
        torch.compile(fused, backend="eager")(x)


def test_the_layers_of_a_fused_network_are_refused_and_those_of_its_plain_form_are_not() -> None:
    points = torch.randn(1, 2, 256, 3)
    for fused in (True, False):
        model = build_model(
            "pct", in_channels=3, num_classes=4, num_centres=[64, 32], num_neighbours=8, fused=fused
        ).eval()
        names = [weight.name for weight in quantisable_weights(model)]

        def run(model: nn.Module = model) -> None:
            with torch.no_grad():
                model(points=points[0])

        if fused:
            with pytest.raises(
                UserError, match=r"^groups.*\.weight: activation: the layer is not called, .* `fused: false`"
            ):
                calibrate_activations(model, run, names, bits=8)
            quantise_inputs(model, dict.fromkeys(names, Activation(8, 1.0, True)))
            with pytest.raises(UserError, match="not called in evaluation, "):
                run()
        else:
            plain = model(points=points[0])["logits"]
            quantise_inputs(model, calibrate_activations(model, run, names, bits=8))
            rounded = model(points=points[0])["logits"]
            assert 0 < (rounded - plain).abs().max() < 0.2 * plain.abs().max()


def test_what_cannot_be_quantised_is_refused_by_name() -> None:
    model, entry = network(), Activation(4, 1.0, True)
    with pytest.raises(UserError, match=r"no parameter '3.weight'; did you mean"):
        quantise_inputs(model, {"3.weight": entry})
    with pytest.raises(UserError, match=r"^0.bias: activation: belongs to no linear layer"):
        quantise_inputs(model, {"0.bias": entry})
    with pytest.raises(UserError, match=r"^0.weight: activation: .* is 0 on all"):
        calibrate_activations(model, calls(model, torch.zeros(1, 2, 6)), ["0.weight"], bits=8)
    with pytest.raises(UserError, match=r"^0.weight: activation: .* not finite"):
        calibrate_activations(model, calls(model, torch.full((1, 2, 6), torch.nan)), ["0.weight"], bits=8)
    quantise_inputs(model, {"0.weight": entry})
    with pytest.raises(UserError, match="quantised already"):
        quantise_inputs(model, {"0.weight": entry})
    tied = network()
    tied.append(nn.Linear(32, 16))
    tied[5].weight = tied[2].weight
    with pytest.raises(UserError, match=r"^2.weight: activation: is shared with 5.weight"):
        quantise_inputs(tied, {"2.weight": entry})


@run_each(
    "activation, at",
    [
        ({"bits": 1, "range": 1.0, "signed": True}, "activation.bits"),
        ({"bits": 8, "range": 0.0, "signed": True}, "activation.range"),
        ({"bits": 8, "range": float("nan"), "signed": True}, "activation.range"),
        ({"bits": 8, "range": 1.0}, "activation.signed"),
        ({"bits": 8, "range": 1.0, "signed": True, "zero": 1}, "activation.zero"),
        (8, "activation"),
    ],
)
def test_faults_of_an_entry_are_placed(activation: object, at: str) -> None:
    assert [each[0] for each in choice_faults({"kind": "fp32", "activation": activation})] == [at]
