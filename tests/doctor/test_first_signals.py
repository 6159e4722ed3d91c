"""Schemes of initial weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sightline.workbench.check.checks.weights import find_scheme
from tests.cases import run_each


@run_each(
    "draw, told",
    [
        (lambda w: nn.init.kaiming_uniform_(w, a=5**0.5), "torch's default"),
        (lambda w: nn.init.kaiming_normal_(w), "He, sqrt(2/fan_in)"),
        (lambda w: nn.init.kaiming_uniform_(w, mode="fan_out", nonlinearity="relu"), "He, sqrt(2/fan_out)"),
        (lambda w: nn.init.xavier_normal_(w), "Glorot"),
        (lambda w: nn.init.normal_(w, std=1e-3), "N(0, 0.001)"),
        (lambda w: nn.init.trunc_normal_(w, std=0.02), "N(0, 0.02)"),
        (lambda w: nn.init.zeros_(w), "constant"),
    ],
)
def test_schemes_are_told_by_the_deviations(draw: Any, told: str) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        start = find_scheme("layer", draw(torch.empty(96, 400)))
        assert start.scheme is not None, start
        assert start.scheme.startswith(told), start
        assert start.std <= 3 * start.largest


def test_orthogonal_maps_to_more_channels() -> None:
    torch.manual_seed(0)
    start = find_scheme("layer", nn.init.orthogonal_(torch.empty(400, 96)))
    assert start.scheme is not None
    assert start.scheme.startswith("orthogonal")


def test_of_transposed_convolutions_the_first_axis_goes_in() -> None:
    torch.manual_seed(0)
    weight = nn.init.normal_(torch.empty(64, 4, 2, 2, 2), std=(2 / (64 * 8)) ** 0.5)
    start = find_scheme("layer", weight, is_transposed=True)
    assert start.scheme is not None
    assert start.scheme.startswith("He, sqrt(2/fan_in)")
