"""Fused pooling against its plain form, in float64: numbers, gradients, running statistics, ties and processes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sightline.layers.pooling import LinearNormMax, LinearNormPool
from tests.layers.passes import (
    BOUND,
    assert_bf16_errs_no_more,
    assert_passes_agree,
    assert_processes_agree,
    run,
    unsettle,
)

WIDTH = 40


Layer = LinearNormMax | LinearNormPool
MAKERS: dict[str, Callable[[bool], Layer]] = {
    "maximum": lambda fused: LinearNormMax(in_channels=6, out_channels=WIDTH, has_bias=True, fused=fused),
    "rectified": lambda fused: LinearNormMax(in_channels=6, out_channels=WIDTH, activation=nn.ReLU(), fused=fused),
    "both": lambda fused: LinearNormPool(in_channels=6, out_channels=WIDTH, negative_slope=0.2, fused=fused),
}
KINDS = pytest.mark.parametrize("kind", MAKERS)


def pair_of_layers(kind: str) -> tuple[Layer, Layer]:
    """One state, plain and fused; half of the norm's weights are negative, and one is exactly 0."""
    torch.manual_seed(0)
    plain, fused = (MAKERS[kind](fused).double() for fused in (False, True))
    unsettle(plain)
    fused.load_state_dict(plain.state_dict())
    return plain, fused


def weights(num_samples: int, kind: str) -> Tensor:
    """What each output counts in the loss."""
    return torch.randn(num_samples, WIDTH * (2 if kind == "both" else 1), dtype=torch.float64)


@KINDS
@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("num_points", [1, 7, 200])
def test_fused_form_agrees_with_the_plain_one(kind: str, num_points: int, is_training: bool) -> None:
    """17 samples are more than two of the parts in which the weight's gradient is added up."""
    plain, fused = (layer.train(is_training) for layer in pair_of_layers(kind))
    values, weight = torch.randn(17, num_points, 6, dtype=torch.float64) + 30, weights(17, kind)
    given = {"values": values}
    assert_passes_agree(run(fused, given, weight), run(plain, given, weight), BOUND)


@KINDS
def test_of_equal_maxima_the_first_takes_the_gradient(kind: str) -> None:
    """Every point stands twice; torch's maximum gives its gradient to the first, too."""
    plain, fused = pair_of_layers(kind)
    values, weight = torch.randn(2, 9, 6, dtype=torch.float64).repeat(1, 2, 1), weights(2, kind)
    given = {"values": values}
    assert_passes_agree(run(fused, given, weight), run(plain, given, weight), BOUND)


@KINDS
@pytest.mark.parametrize("sizes", [(2, 2), (3, 1), (0, 2)])
def test_statistics_of_all_processes(kind: str, sizes: tuple[int, ...]) -> None:
    plain, fused = pair_of_layers(kind)
    values, weight = torch.randn(sum(sizes), 30, 6, dtype=torch.float64), weights(sum(sizes), kind)
    given = {"values": values}
    assert_processes_agree(fused, given, weight, sizes, run(plain, given, weight))


@KINDS
@pytest.mark.parametrize("is_training", [True, False])
def test_a_value_that_is_no_number_is_not_lost(kind: str, is_training: bool) -> None:
    _, fused = pair_of_layers(kind)
    values = torch.randn(2, 5, 6, dtype=torch.float64)
    values[1, 3, 2] = torch.nan
    assert fused.train(is_training)(values)[1].isnan().all()


def test_bfloat16_takes_the_fused_path_in_float32() -> None:
    """Autocast rounds the linear map alone: 2^-8 of a value, and what the norm makes of it."""
    plain, fused = (layer.float().eval() for layer in pair_of_layers("both"))
    values = torch.randn(2, 20, 6)
    with torch.autocast("cpu", torch.bfloat16):
        found = fused(values)
    assert found.dtype == torch.float32
    largest = plain.norm.weight.abs().max() / plain.norm.running_var.min().sqrt() * plain.linear(values).abs().max()
    assert (found - plain(values)).abs().max() <= 2**-8 * 2 * largest


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("kind", ["maximum", "rectified"])
@pytest.mark.parametrize("layout", [(0, 1, 2), (1, 0, 2), (0, 2, 1)])
def test_bfloat16_errs_no_more_than_the_plain_form(kind: str, is_training: bool, layout: tuple[int, ...]) -> None:
    """`layout` is the order of the axes in memory; samples are far off the origin, where bfloat16 has few digits."""
    plain, fused = (layer.train(is_training) for layer in pair_of_layers(kind))
    values = torch.randn(17, 50, 6).permute(layout).contiguous().permute(*torch.tensor(layout).argsort()) + 3
    assert_bf16_errs_no_more(plain, fused, {"values": values}, weights(17, kind))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_samples_in_bfloat16(dtype: torch.dtype) -> None:
    """A part without samples has no output, and gradients of zero; running statistics are in use."""
    fused = pair_of_layers("maximum")[1].float().eval()
    values = torch.zeros(0, 5, 6, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = fused(values)
    output.sum().backward()
    assert output.shape == (0, WIDTH)
    assert values.grad is not None
    assert values.grad.dtype == dtype
    assert not fused.linear.weight.grad.any()


def test_half_precision_other_than_bfloat16_takes_the_plain_form() -> None:
    plain, fused = (layer.float() for layer in pair_of_layers("maximum"))
    values = torch.randn(3, 9, 6)
    with torch.autocast("cpu", torch.float16):
        assert torch.equal(fused(values), plain(values))


def test_a_channel_of_little_variance_keeps_its_digits() -> None:
    """Inputs of deviation 1 that a channel's weights cancel to 1e-4 of it: the plain form in float64 is the truth."""
    torch.manual_seed(0)
    values = torch.randn(8, 300, 2, dtype=torch.float64)
    values[..., 1] = values[..., 0] + 1e-4 * values[..., 1]
    values = values.float().double()
    plain = LinearNormMax(in_channels=2, out_channels=1, fused=False).double()
    with torch.no_grad():
        plain.linear.weight.copy_(torch.tensor([[1.0, -1.0]]))
    fused = LinearNormMax(in_channels=2, out_channels=1).float()
    fused.load_state_dict(plain.state_dict())
    # The product of the two equal halves is rounded at 1e-7 of 4, which is 4e-3 of the channel's deviation.
    torch.testing.assert_close(fused(values.float()).double(), plain(values), rtol=4e-3, atol=4e-3)
    torch.testing.assert_close(fused.norm.running_var.double(), plain.norm.running_var, rtol=1e-6, atol=0)


@KINDS
def test_gradients_are_those_of_the_weights_that_were_used(kind: str) -> None:
    """Weights that stand in for the layer's own during the forward pass alone, as meta-learning has them."""
    layers, values, weight = pair_of_layers(kind), torch.randn(3, 9, 6, dtype=torch.float64), weights(3, kind)
    given = {name: torch.randn_like(value).requires_grad_() for name, value in layers[0].named_parameters()}
    plain, fused = (
        torch.autograd.grad((torch.func.functional_call(layer, given, (values,)) * weight).sum(), list(given.values()))
        for layer in layers
    )
    for found, expected in zip(fused, plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=BOUND * max(1.0, expected.abs().max().item()))


@KINDS
def test_a_weight_changed_between_the_passes_is_noticed(kind: str) -> None:
    _, fused = pair_of_layers(kind)
    output = fused(torch.randn(3, 9, 6, dtype=torch.float64))
    with torch.no_grad():
        fused.norm.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@KINDS
def test_a_layer_in_half_precision_takes_the_plain_form(kind: str) -> None:
    plain, fused = (layer.bfloat16() for layer in pair_of_layers(kind))
    values = torch.randn(3, 9, 6).bfloat16()
    assert torch.equal(fused(values), plain(values))
