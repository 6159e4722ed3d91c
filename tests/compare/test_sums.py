"""Gradients of convolutions by plain sums in float32, against autograd, and where they explain what rounding does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sightline.instrument.formats import FORMATS
from sightline.instrument.plain_forms import run_plain_form
from tests.cases import run_each


def plain(conv: Any, given: Tensor, arriving: Tensor) -> dict[str, Tensor] | None:
    """The plain gradients of a convolution's parameters, by name."""
    call = SimpleNamespace(inputs=((given,), {}), output_gradients={"": arriving}, format=FORMATS[torch.float32])
    unit: Any = SimpleNamespace(owner=conv, prefix="conv", call=call)
    found = run_plain_form(unit, {"to parameter.conv.weight"})
    return None if found is None else {n.removeprefix("parameter.conv."): g for n, g in found.gradients.items()}


@run_each(
    "conv, size",
    [
        (nn.Conv1d(3, 5, 3, stride=2, padding=1), (11,)),
        (nn.Conv2d(3, 4, (3, 2), stride=(1, 2), padding=(2, 0), dilation=(2, 1), bias=False), (7, 9)),
        (nn.Conv3d(2, 3, 3, padding=1), (5, 6, 4)),
        (nn.Conv3d(4, 3, 1), (4, 4, 4)),
        (nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1), (4, 5)),
        (nn.ConvTranspose3d(3, 2, 2, stride=2), (3, 4, 3)),
    ],
)
def test_plain_gradients_are_those_of_autograd(conv: Any, size: tuple[int, ...]) -> None:
    given = torch.randn(2, conv.in_channels, *size, dtype=torch.float64)
    double = conv.double()
    made = double(given)
    arriving = torch.randn_like(made)
    exact = dict(
        zip(
            dict(double.named_parameters()), torch.autograd.grad(made, list(double.parameters()), arriving), strict=True
        )
    )
    found = plain(conv, given, arriving)
    assert found is not None
    assert found.keys() == exact.keys()
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient.double(), exact[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "conv", [nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, padding_mode="reflect", padding=1), nn.Linear(4, 4)]
)
def test_what_no_plain_form_is_written_for_has_none(conv: nn.Module) -> None:
    given = torch.randn(1, 4, 6, 6)
    assert plain(conv, given, torch.randn(1, 4, 4, 4)) is None


def test_adding_one_value_again_and_again_is_off_by_more_than_chance() -> None:
    """65,536 times 0.1 in float32: roundings by chance would add up to sqrt(n) / 6 = 43 units."""
    given = torch.ones(1, 1, 256, 256)
    found = plain(nn.Conv2d(1, 1, 1, bias=False), given, torch.full((1, 1, 256, 256), 0.1))
    assert found is not None
    exact = float(torch.tensor(0.1)) * 65_536
    unit = FORMATS[torch.float32].ulp(exact)
    assert abs(float(found["weight"]) - exact) > 100 * unit
