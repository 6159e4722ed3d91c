"""Uniform quantisers against the published numbers of HAQ and HAWQ; quantised inputs against NumPy."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.contract.errors import UserError
from sightline.engine.run_loading import build_model
from sightline.parts.quantisation.activations import (
    activation_range,
    calibrate_activations,
    choice_faults,
    quantise_inputs,
    quantised_activation,
)
from sightline.parts.quantisation.linear import (
    affine_grid,
    kl_threshold,
    quantisable_weights,
    straight_through,
    symmetric_grid,
    weight_grid,
)
from sightline.parts.quantisation.parametrised import apply_policy, bake_quantised_weights
from tests.cases import run_each
from tests.golden_parity import Golden, load_golden

BOUND = 1e-12
"""Of functions in float64 (the golden files' own)."""
NUM_CASES = 28
"""Of layers in the golden file, which must have as many."""


@pytest.fixture(scope="module")
def haq(shared: Path) -> Golden:
    golden = load_golden(shared, "linear_quantisation", area="compress")
    assert len(golden.info["cases"]) == NUM_CASES
    return golden


@pytest.fixture(scope="module")
def hawq(shared: Path) -> Golden:
    return load_golden(shared, "hawq_quantisers", area="compress")


def same(found: object, expected: object) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=BOUND, atol=BOUND)


@pytest.mark.shared
@pytest.mark.parametrize("number", range(NUM_CASES))
def test_layers_with_quantised_weights_and_activations_are_those_of_haq(haq: Golden, number: int) -> None:
    case, info = f"case{number:02d}/", haq.info["cases"][number]
    given = {name: haq.tensor(case + name) for name in ("x", "weight")}
    bias = haq.tensor(case + "bias") if case + "bias" in haq.arrays else None
    weight, x = given["weight"].requires_grad_(), given["x"].requires_grad_()
    is_linear = info["layer"] == "linear"

    def layer(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.linear(x, weight, bias) if is_linear else F.conv2d(x, weight, bias, padding=1)

    bits, is_signed, reach = info["a_bit"], not info["half_wave"], torch.tensor([6.0], dtype=torch.float64)
    is_on = bits - is_signed > 0
    if is_on:
        reach[:] = activation_range(x, bits=bits, is_signed=is_signed, most=6.0)
        reach = reach.float().double()  # the reference keeps it in single precision
    reach.requires_grad_(info["trainable_activation_range"])
    at = reach if reach.requires_grad else float(reach)
    grid = weight_grid(weight, bits=info["w_bit"], name="weight")
    same(layer(x, weight).detach(), haq.arrays[case + "calibration_output"])
    same(reach.detach(), haq.arrays[case + "activation_range"])
    same(grid.step * grid.high, haq.arrays[case + "weight_range"].item())
    moved = straight_through(weight, grid(weight.detach()))
    quantised = quantised_activation(x, at, bits=bits, is_signed=is_signed) if is_on else x
    y = layer(quantised, moved)
    (y * torch.cos(torch.arange(y.numel(), dtype=torch.float64)).view(y.shape)).sum().backward()
    for name, found in {"x_q": quantised, "weight_q": moved, "y": y}.items():
        same(found.detach(), haq.arrays[case + name])
    same(x.grad, haq.arrays[case + "grad_x"])
    same(weight.grad, haq.arrays[case + "grad_weight"])
    to_range = haq.arrays[case + "grad_activation_range"]
    if np.isnan(to_range).all():
        assert reach.grad is None
    else:
        same(reach.grad, to_range)


@pytest.mark.shared
def test_thresholds_are_those_of_haq(haq: Golden) -> None:
    cases = [key.removesuffix("/threshold") for key in haq.arrays if key.endswith("/threshold")]
    assert cases
    for case in cases:
        data, bits = haq.arrays[f"{case}/data"], int(haq.arrays[f"{case}/bits"])
        same(kl_threshold(data, bits=bits), haq.arrays[f"{case}/threshold"])


@pytest.mark.shared
def test_grids_are_those_of_hawq(hawq: Golden) -> None:
    for number, case in enumerate(hawq.info["cases"]):
        bits, at = case["bits"], f"{number:02d}/"
        weight = hawq.tensor(f"sym{at}w")
        rows = weight.flatten(1) if case["per_channel"] else weight.reshape(1, -1)
        grid = symmetric_grid(rows.abs().amax(dim=1, keepdim=True), bits=bits, has_lowest=True)
        same(grid.step.flatten(), hawq.arrays[f"sym{at}scale"])
        assert (grid.codes(rows).view(weight.shape).numpy() == hawq.arrays[f"sym{at}q"]).all()
        x = hawq.tensor(f"asym{at}x")
        grid = affine_grid(x.min(), x.max(), bits=bits)
        same([float(grid.step), float(grid.zero)], hawq.arrays[f"asym{at}scale_zero"])
        assert (grid.codes(x).numpy() == hawq.arrays[f"asym{at}q"]).all()
        same(grid(x), hawq.arrays[f"asym{at}dequant"])


def test_grids_by_hand() -> None:
    grid = symmetric_grid(torch.tensor(3.0), bits=3)
    assert grid(torch.tensor([-9.0, -1.4, 0.5, 1.5, 2.6])).tolist() == [-3, -1, 0, 2, 3]  # halves to even
    moved = affine_grid(torch.tensor(-1.0), torch.tensor(2.0), bits=2)
    assert moved.codes(torch.tensor([-5.0, -1.0, 0.0, 1.2, 9.0])).tolist() == [0, 0, 1, 2, 3]
    assert moved(torch.tensor([-5.0, 0.0, 1.2])).tolist() == [-1, 0, 1]


@run_each("bits", range(2, 9))
@run_each("per_channel", [False, True])
def test_weights_move_by_half_a_step_and_stay_where_they_are_then(bits: int, per_channel: bool) -> None:
    weight = torch.randn(6, 5, 3) * torch.tensor([1e-3, 1, 2, 1e3, 0, 1])[:, None, None]
    grid = weight_grid(weight, bits=bits, name="weight", per_channel=per_channel)
    moved = grid(weight)
    assert grid.step.shape == ((6, 1, 1) if per_channel else ())
    is_inside = weight.abs() <= grid.step * grid.high
    assert ((moved - weight).abs()[is_inside] <= (grid.step / 2 * (1 + 1e-5)).expand_as(weight)[is_inside]).all()
    assert torch.equal(grid(moved), moved)
    assert len((moved[1] / grid.step.flatten()[-1]).unique()) <= 2**bits


def test_zeros_stay_zero_and_what_is_not_finite_is_refused_by_name() -> None:
    assert torch.equal(weight_grid(torch.zeros(3, 4), bits=2, name="w")(torch.zeros(3, 4)), torch.zeros(3, 4))
    with pytest.raises(
        UserError, match=r"^head\.weight: 1 of 12 weights are not finite, the first at \[1, 2\] \(nan\)"
    ):
        weight_grid(
            torch.zeros(3, 4).index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(torch.nan)),
            bits=4,
            name="head.weight",
        )


# --- Quantised inputs of layers: against NumPy, their gradients, what is refused, copies and states. HAQ: test_linear


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
    assert entries["0.weight"] == {"bits": 8, "range": float(batches.abs().max()), "signed": True}
    assert entries["4.weight"]["range"] == pytest.approx(model[:4](batches).max().item(), rel=1e-6)
    assert not entries["4.weight"]["signed"]
    assert not any(layer._forward_pre_hooks for layer in model)
    few = calibrate_activations(model, calls(model, batches), ["0.weight"], bits=4, most=2.5)["0.weight"]
    assert 0 < few["range"] <= 2.5
    for each in (*entries.values(), few):
        choice = json.loads(json.dumps({"kind": "fp32", "activation": each}))
        assert choice_faults(choice) == []
        assert choice["activation"]["range"] == each["range"]


def test_layers_of_a_model_compute_with_the_numbers_of_numpy() -> None:
    model, x = network().double(), torch.randn(40, 6, dtype=torch.float64)
    plain = {name: value.numpy() for name, value in model.state_dict().items()}
    names = list(model.state_dict())
    entries = calibrate_activations(model, calls(model, x[None]), ["0.weight", "2.weight"], bits=6)
    policy = {name: {"kind": "fp32", "activation": entry} for name, entry in entries.items()}
    apply_policy(model, {**policy, "4.weight": {"kind": "linear", "bits": 4}})
    h = x.numpy()
    for layer in (0, 2):
        entry = entries[f"{layer}.weight"]
        steps = 2 ** (6 - entry["signed"]) - 1
        low = -entry["range"] if entry["signed"] else 0
        h = np.rint(np.clip(h, low, entry["range"]) * steps / entry["range"]) * entry["range"] / steps
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
    quantise_inputs(model, {"linear.weight": {"bits": 4, "range": 1.0, "signed": True}})
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
    quantise_inputs(fused, {"linear.weight": {"bits": 4, "range": 1.0, "signed": True}})
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
            quantise_inputs(model, {name: {"bits": 8, "range": 1.0, "signed": True} for name in names})
            with pytest.raises(UserError, match="not called in evaluation, "):
                run()
        else:
            plain = model(points=points[0])["logits"]
            quantise_inputs(model, calibrate_activations(model, run, names, bits=8))
            rounded = model(points=points[0])["logits"]
            assert 0 < (rounded - plain).abs().max() < 0.2 * plain.abs().max()


def test_what_cannot_be_quantised_is_refused_by_name() -> None:
    model, entry = network(), {"bits": 4, "range": 1.0, "signed": True}
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
