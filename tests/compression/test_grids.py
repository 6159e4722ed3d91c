"""Uniform quantisers against the published numbers of HAQ and HAWQ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sightline.compression.grids import kl_threshold, symmetric_grid, weight_grid
from sightline.compression.inputs import activation_range, quantised_activation
from sightline.compression.quantiser import straight_through
from sightline.contract.errors import UserError
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
    same(grid.step * grid.most, haq.arrays[case + "weight_range"].item())
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
        grid = symmetric_grid(rows.abs().amax(dim=1, keepdim=True), bits=bits)
        same(grid.step.flatten(), hawq.arrays[f"sym{at}scale"])
        assert (grid.codes(rows).view(weight.shape).numpy() == hawq.arrays[f"sym{at}q"]).all()


def test_grids_by_hand() -> None:
    grid = symmetric_grid(torch.tensor(3.0), bits=3)
    assert grid(torch.tensor([-9.0, -1.4, 0.5, 1.5, 2.6])).tolist() == [-3, -1, 0, 2, 3]  # halves to even


@run_each("bits", range(2, 9))
@run_each("per_channel", [False, True])
def test_weights_move_by_half_a_step_and_stay_where_they_are_then(bits: int, per_channel: bool) -> None:
    weight = torch.randn(6, 5, 3) * torch.tensor([1e-3, 1, 2, 1e3, 0, 1])[:, None, None]
    grid = weight_grid(weight, bits=bits, name="weight", per_channel=per_channel)
    moved = grid(weight)
    assert grid.step.shape == ((6, 1, 1) if per_channel else ())
    is_inside = weight.abs() <= grid.step * grid.most
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
