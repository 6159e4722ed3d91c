"""Finite differences along random directions, against torch's `gradcheck` and on functions with wrong gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sightline.workbench.check.derivatives import describe_uncompared, gradient_errors


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_(True)


def test_the_wrong_one_of_two_tensors() -> None:
    one, other = drawn(3), drawn(3)
    errors = gradient_errors(lambda: [one * other.detach()], {"one": [one], "other": [other]})
    assert errors["one"] < 1e-6
    assert errors["other"] == pytest.approx(1.0)


def test_a_gradient_that_is_lost_in_rounding_is_not_compared() -> None:
    """A bias before a normalisation: it changes nothing, and what is left of its gradient is rounding."""
    values, bias = drawn(50, 3), drawn(3)

    def normed() -> list[Tensor]:
        moved = values + 10 * bias
        return [(moved - moved.mean(0)) / moved.std(0)]

    assert gradient_errors(normed, {"bias": [bias]})["bias"] < 1e-3


def test_a_gradient_among_too_many_edges_is_not_compared() -> None:
    """As of a layer that chooses neighbours: far from each other's values, and others after the smallest step."""
    values = drawn(20)
    errors = gradient_errors(lambda: [values + (values * 1e9).detach().sin()], {"x": [values]})
    assert errors == {}
    assert describe_uncompared({"x": [values]}, errors) == "too many edges to compare the gradient of x"
