"""Fused pooling against its plain form, in float64: numbers, gradients, running statistics, ties and processes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from sightline.layers.batch_norm import synchronise
from sightline.layers.pooling import LinearNormPool
from tests.layers.test_batch_norm import Ranks

BOUND = 1e-9
WIDTH = 40


def pair_of_layers() -> tuple[LinearNormPool, LinearNormPool]:
    """One state, plain and fused; half of the norm's weights are negative, and one is exactly 0."""
    torch.manual_seed(0)
    layers = [
        LinearNormPool(in_channels=6, out_channels=WIDTH, negative_slope=0.2, fused=fused).double()
        for fused in (False, True)
    ]
    with torch.no_grad():
        layers[0].norm.weight.normal_()
        layers[0].norm.weight[3] = 0
        layers[0].norm.bias.normal_()
        layers[0].norm.running_mean.normal_()
        layers[0].norm.running_var.uniform_(0.5, 2)
    layers[1].load_state_dict(layers[0].state_dict())
    return layers[0], layers[1]


def run(layer: LinearNormPool, values: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """Everything that one forward and backward pass leaves behind."""
    own = values.clone().requires_grad_()
    output = layer(own)
    (output * weight).sum().backward()
    gradients = {f"gradient of {name}": parameter.grad for name, parameter in layer.named_parameters()}
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    return {"output": output.detach(), "gradient of values": own.grad} | gradients | state


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        largest = value.abs().max().item()
        torch.testing.assert_close(found[name], value, rtol=0, atol=BOUND * max(1.0, largest), msg=name)


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("num_points", [1, 7, 200])
def test_fused_form_agrees_with_the_plain_one(num_points: int, is_training: bool) -> None:
    plain, fused = (layer.train(is_training) for layer in pair_of_layers())
    values, weight = torch.randn(3, num_points, 6).double() + 30, torch.randn(3, 2 * WIDTH).double()
    assert_same(run(fused, values, weight), run(plain, values, weight))


def test_of_equal_maxima_the_first_takes_the_gradient() -> None:
    """Every point stands twice; torch's maximum gives its gradient to the first, too."""
    plain, fused = pair_of_layers()
    values, weight = torch.randn(2, 9, 6).double().repeat(1, 2, 1), torch.randn(2, 2 * WIDTH).double()
    assert_same(run(fused, values, weight), run(plain, values, weight))


@pytest.mark.parametrize("sizes", [(2, 2), (3, 1), (0, 2)])
def test_statistics_of_all_processes(sizes: tuple[int, ...]) -> None:
    plain, fused = pair_of_layers()
    values, weight = torch.randn(sum(sizes), 30, 6).double(), torch.randn(sum(sizes), 2 * WIDTH).double()
    expected = run(plain, values, weight)
    ranks = Ranks(len(sizes))
    layers = [synchronise(fused, ranks.reducer(rank)) for rank in range(ranks.size)]
    with ThreadPoolExecutor(ranks.size) as pool:
        passes = list(pool.map(run, layers, values.split(sizes), weight.split(sizes)))
    for one in passes:
        together = dict(one)
        for name in one:
            if name in ("output", "gradient of values"):
                together[name] = torch.cat([each[name] for each in passes])
            elif name.startswith("gradient"):
                together[name] = sum(each[name] for each in passes)
        assert_same(together, expected)


@pytest.mark.parametrize("is_training", [True, False])
def test_a_value_that_is_no_number_is_not_lost(is_training: bool) -> None:
    _, fused = pair_of_layers()
    values = torch.randn(2, 5, 6).double()
    values[1, 3, 2] = torch.nan
    assert fused.train(is_training)(values)[1].isnan().all()


def test_bfloat16_takes_the_fused_path_in_float32() -> None:
    """Autocast rounds the linear map alone: 2^-8 of a value, and what the norm makes of it."""
    plain, fused = (layer.float().eval() for layer in pair_of_layers())
    values = torch.randn(2, 20, 6)
    with torch.autocast("cpu", torch.bfloat16):
        found = fused(values)
    assert found.dtype == torch.float32
    largest = plain.norm.weight.abs().max() / plain.norm.running_var.min().sqrt() * plain.linear(values).abs().max()
    assert (found - plain(values)).abs().max() <= 2**-8 * 2 * largest
