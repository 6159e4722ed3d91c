"""Layers of traced models: states against the authors' code, multiply-accumulates by hand, fused layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sightline.compression.policy import FP32, Activation, WeightFormat
from sightline.workbench.compress.layer_costs import LayerCost, bit_operations, layer_costs
from sightline.workbench.compress.search.ddpg import state_vectors
from sightline.workbench.describe.trace import trace
from tests.golden_parity import Golden, load_golden


def net_of(rows: list[list]) -> nn.Sequential:
    """Convolutions and linear layers as the golden file lists them, with ReLU and pooling where the places say."""
    parts: list[nn.Module] = []
    for kind, *numbers in rows:
        if kind == "conv":
            channels, filters, kernel, stride, groups = numbers
            parts.append(nn.Conv2d(channels, filters, kernel, stride, kernel // 2, groups=groups))
        else:
            if isinstance(parts[-1], nn.Conv2d):
                parts += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
            parts.append(nn.Linear(numbers[0], numbers[1]))
    return nn.Sequential(*parts)


def traced_layers(net: nn.Module, given: Tensor) -> tuple[LayerCost, ...]:
    names = [name for name, parameter in net.named_parameters() if parameter.ndim > 1]
    return layer_costs(net, trace(net, lambda model: model(given), num_samples=len(given)), names)


def test_states_by_hand() -> None:
    """A convolution, a depth-wise one and a linear layer: each column less its least, over its range."""
    rows = [["conv", 3, 8, 3, 2, 1], ["conv", 8, 8, 3, 1, 8], ["linear", 8, 10, 1, 0, 1]]
    layers = traced_layers(net_of(rows), torch.zeros(2, 3, 8, 8))
    assert [layer.num_weights for layer in layers] == [8 * 3 * 9, 8 * 9, 8 * 10]
    assert [layer.positions for layer in layers] == [64, 16, 1]
    found = state_vectors(layers)
    expected = [
        [0, 0, 0, 1, 1, 1, 1, 0],  # depth-wise, channels in and out, stride, kernel, weights, positions, place
        [1, 1, 0, 0.5, 1, 0, 15 / 63, 0.5],
        [0, 1, 1, 0, 0, 8 / 144, 0, 1],
    ]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15)


def test_states_are_the_authors(shared: Path) -> None:
    golden = load_golden(shared, "state_vectors", area="compress")
    for net in golden.info["nets"]:
        assert_states_are_recorded(golden, net)


def assert_states_are_recorded(golden: Golden, net: Mapping[str, Any]) -> None:
    """Theirs takes the length of a linear layer's input for its number of positions, and keeps constant columns raw."""
    rows, number = net["layers_type_cin_cout_kernel_stride_groups"], net["net"]
    layers = traced_layers(net_of(rows), torch.zeros(2, *net["input"]))
    for layer, (kind, channels, filters, kernel, stride, groups) in zip(layers, rows, strict=True):
        assert layer[2:6] == (channels, filters, kernel, stride)
        assert layer.is_depthwise == (kind == "conv" and groups == channels)
        if kind == "linear":
            assert layer.positions == 1
    theirs = [
        layer._replace(positions=layer.in_channels) if kind == "linear" else layer
        for layer, (kind, *_) in zip(layers, rows, strict=True)
    ]
    found = state_vectors(theirs)
    for mode, rest in (("size", [4.0]), ("linear", [1.0, 1.0])):
        expected = golden.arrays[f"net{number}/{mode}"]
        np.testing.assert_allclose(found, expected[:, :8], rtol=0, atol=1e-12)
        assert np.array_equal(expected[:, 8:], np.tile(rest, (len(rows), 1)))
    places = golden.arrays[f"net{number}/module_index"]  # of the authors' enumeration, which ours, by name, is not
    assert (np.diff(places) > 0).all()


def test_a_column_that_never_changes_is_0() -> None:
    layers = [LayerCost(f"l{place}", 64, 8, 8) for place in range(3)]
    assert state_vectors(layers)[:, :7].any() == 0
    assert state_vectors(layers)[:, 7].tolist() == [0, 0.5, 1]


def test_multiply_accumulates_and_bit_operations_by_hand() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 10))
    layers = traced_layers(net, torch.zeros(4, 3, 8, 8))
    macs = [8 * 4 * 4 * 3 * 9, 10 * 8 * 16]
    assert [layer.macs for layer in layers] == macs
    assert [layer.positions for layer in layers] == [64, 1]
    policy = {"0.weight": WeightFormat("codebook", 4), "3.weight": FP32}
    assert bit_operations(layers, policy, activation_bits=8) == 8 * (4 * macs[0] + 32 * macs[1])
    policy["3.weight"] = WeightFormat("linear", 5, activation=Activation(6, 1.0, True))
    assert bit_operations(layers, policy, activation_bits=8) == 8 * 4 * macs[0] + 6 * 5 * macs[1]


class Fused(nn.Module):
    """Reads the weights of its layers and calls neither."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.own = nn.Linear(6, 5), nn.Linear(5, 7), nn.Parameter(torch.ones(7, 2))

    def forward(self, rows: Tensor) -> Tensor:
        return rows @ self.first.weight.T @ self.second.weight.T @ self.own


def test_layers_that_are_never_called_share_what_ran_around_them() -> None:
    layers = traced_layers(nn.Sequential(nn.Linear(6, 6), Fused()), torch.zeros(3, 11, 6))
    assert [layer.name for layer in layers] == ["0.weight", "1.own", "1.first.weight", "1.second.weight"]
    assert [layer.macs for layer in layers] == [11 * 36, 11 * 14, 11 * 30, 11 * 35]
    assert [layer.positions for layer in layers] == [11, 11, 11, 11]
    assert all(math.isclose(layer.macs, layer.num_weights * layer.positions) for layer in layers)
