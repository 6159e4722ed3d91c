"""Linear maps by convolution: the numbers of torch's products, and where they may not be taken."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from sightline.ops import products
from sightline.ops.products import linear_map, linear_map_gradients

BOUND = 1e-6
"""Of the largest number: sums of 40 and of 512 float32 products."""


@pytest.mark.parametrize(("shape", "width"), [((2, 256, 40), 24), ((512, 3), 8), ((7, 40), 24), ((3, 171, 40), 24)])
def test_the_numbers_and_gradients_of_torch(shape: tuple[int, ...], width: int) -> None:
    torch.manual_seed(0)
    values = torch.randn(shape, requires_grad=True)
    weight, bias = torch.randn(width, shape[-1], requires_grad=True), torch.randn(width, requires_grad=True)
    found, expected = linear_map(values, weight, bias), F.linear(*(t.double() for t in (values, weight, bias)))
    assert found.is_contiguous()
    gradient = torch.randn_like(found)
    pairs = [(found, expected)]
    leaves = (values, weight, bias)
    pairs += zip(
        torch.autograd.grad(found, leaves, gradient),
        torch.autograd.grad(expected, leaves, gradient.double()),
        strict=True,
    )
    rows = (gradient.flatten(0, -2), values.detach().flatten(0, -2), weight.detach())
    pairs += zip(linear_map_gradients(*rows), (pairs[1][1].flatten(0, -2), pairs[2][1]), strict=True)
    for actual, exact in pairs:
        assert actual.shape == exact.shape
        assert (actual.double() - exact.double()).abs().max() <= BOUND * exact.abs().max()


@pytest.mark.parametrize(
    "reason", ["a number of rows that makes no images", "few rows", "float64", "autocast", "no oneDNN"]
)
def test_convolutions_are_taken_where_they_are_exact_alone(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    calls: list[object] = []
    monkeypatch.setattr(products.F, "conv2d", lambda *arguments: calls.append(arguments))
    num_rows = {"a number of rows that makes no images": 520, "few rows": 16}.get(reason, 512)
    values, weight = torch.randn(num_rows, 8), torch.randn(4, 8)
    if reason == "float64":
        values, weight = values.double(), weight.double()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: reason != "no oneDNN")
    with torch.autocast("cpu", enabled=reason == "autocast"):
        linear_map(values, weight)
    assert not calls
