"""The reference's functions in float64: convolution of volumes against torch's, attention against its formula."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from sightline.instrument.float64 import Float64Functions, convolve


@pytest.mark.parametrize(
    ("channels", "kernel", "padding"),
    [
        ((3, 4), (3, 3, 3), (1, 1, 1)),
        ((2, 3), (3, 2, 1), (2, 0, 1)),
        ((1, 5), (5, 5, 5), (2, 2, 2)),
        ((4, 2), (1,) * 3, (0,) * 3),
    ],
)
def test_values_and_gradients_are_those_of_torch(
    channels: tuple[int, int], kernel: tuple[int, int, int], padding: tuple[int, int, int]
) -> None:
    values = torch.randn(2, channels[0], 6, 7, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(channels[1], channels[0], *kernel, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(channels[1], dtype=torch.float64, requires_grad=True)
    expected = F.conv3d(values, weight, bias, padding=padding)
    made = convolve(values, weight, bias, padding)
    torch.testing.assert_close(made, expected, rtol=1e-13, atol=1e-12)
    arriving = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, (values, weight, bias), arriving)
    for gradient, exact in zip(torch.autograd.grad(made, (values, weight, bias), arriving), wanted, strict=True):
        torch.testing.assert_close(gradient, exact, rtol=1e-12, atol=1e-11)


def test_only_what_it_suits_is_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    monkeypatch.setattr(
        "sightline.instrument.float64.convolve", lambda v, w, b, p: taken.append(p) or F.conv3d(v, w, b, padding=p)
    )
    values, weight = torch.randn(1, 2, 6, 6, 6), torch.randn(4, 2, 3, 3, 3)
    with Float64Functions():
        torch.nn.functional.conv3d(values.double(), weight.double(), padding=1)
        torch.nn.functional.conv3d(values, weight, padding=1)
        torch.nn.functional.conv3d(values.double(), weight.double(), stride=2)
        torch.nn.functional.conv3d(values.double(), weight[:, :1].double(), groups=2)
    assert taken == [(1, 1, 1)]


@pytest.mark.parametrize("num_keys", [5, 16, 40])
def test_a_float32_mask_of_attention_is_added_as_it_is(num_keys: int) -> None:
    query, key, value = (torch.randn(2, 3, num_keys, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    mask = torch.randn(num_keys, num_keys).masked_fill(torch.rand(num_keys, num_keys).tril() > 0.7, -torch.inf)
    expected = (query @ key.mT * 8**-0.5 + mask.double()).softmax(-1) @ value
    with Float64Functions():
        calls = (
            F.scaled_dot_product_attention(query, key, value, mask),
            F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=0.0, scale=8**-0.5),
        )
        keeps = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), mask > 0)
    exact = torch.autograd.grad(expected.square().sum(), (query, key, value))
    for made in calls:
        torch.testing.assert_close(made, expected, rtol=1e-12, atol=1e-12)
        gradients = torch.autograd.grad(made.square().sum(), (query, key, value))
        torch.testing.assert_close(gradients, exact, rtol=1e-10, atol=1e-11)
    assert torch.equal(keeps, F.scaled_dot_product_attention(query.float(), key.float(), value.float(), mask > 0))
