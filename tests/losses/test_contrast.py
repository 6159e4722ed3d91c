"""NT-Xent by its closed forms, a slow NumPy reading, float64 gradients, and its symmetries."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sightline.losses.contrast import CrossModal, IntraModal, chance_level, nt_xent


def rows(count: int, width: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = np.random.default_rng(seed)
    return torch.from_numpy(draw.normal(size=(count, width))), torch.from_numpy(draw.normal(size=(count, width)))


def slow(first: np.ndarray, second: np.ndarray, temperature: float) -> list[float]:
    """Written out anchor by anchor from the definition, without any shared matrix."""
    units = [row / math.sqrt(float(row @ row)) for row in (*first, *second)]
    count = len(first)
    each = []
    for anchor in range(2 * count):
        partner = (anchor + count) % (2 * count)
        powers = {j: math.exp(float(units[anchor] @ units[j]) / temperature) for j in range(2 * count) if j != anchor}
        each.append(-math.log(powers[partner] / math.fsum(powers.values())))
    return [(each[i] + each[i + count]) / 2 for i in range(count)]


@pytest.mark.parametrize("count", [1, 2, 5, 33])
@pytest.mark.parametrize("temperature", [0.1, 0.5, 3.0])
def test_it_is_what_the_definition_says(count: int, temperature: float) -> None:
    first, second = rows(count)
    # exp(20) at the lowest temperature: the slow sum loses about 1e-16 * e^10 of the smaller terms.
    np.testing.assert_allclose(
        nt_xent(first, second, temperature=temperature), slow(first.numpy(), second.numpy(), temperature), atol=1e-12
    )


@pytest.mark.parametrize(("count", "expected"), [(2, 1.0986), (3, 1.6094), (16, 3.4340), (20, 3.6636), (128, 5.5413)])
def test_rows_that_are_all_alike_give_the_chance_level(count: int, expected: float) -> None:
    alike = torch.ones(count, 4, dtype=torch.float64)
    loss = nt_xent(alike, alike, temperature=0.1)
    assert loss.tolist() == pytest.approx([chance_level(count)] * count, abs=1e-12)
    assert chance_level(count) == pytest.approx(expected, abs=5e-5)


def test_orthogonal_pairs_have_the_closed_form() -> None:
    """20 pairs of equal unit vectors, each at right angles to all others: ln(1 + 38 e^-10)."""
    unit = torch.eye(20, dtype=torch.float64)
    expected = math.log1p(38 * math.exp(-10))
    assert nt_xent(unit, unit, temperature=0.1).tolist() == pytest.approx([expected] * 20, rel=1e-12)
    assert expected == pytest.approx(0.00172, abs=1e-5)


def test_one_pair_has_nothing_to_be_told_from() -> None:
    assert nt_xent(*rows(1), temperature=0.1).tolist() == [0.0]


def test_sides_may_be_exchanged_and_rows_scaled_and_permuted() -> None:
    first, second = rows(9)
    loss = nt_xent(first, second, temperature=0.1)
    torch.testing.assert_close(nt_xent(second, first, temperature=0.1), loss, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(nt_xent(first * 1e3, second * 1e-3, temperature=0.1), loss, rtol=1e-12, atol=1e-12)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(nt_xent(first[order], second[order], temperature=0.1), loss[order], rtol=1e-12, atol=0)


def test_gradients_are_those_of_finite_differences() -> None:
    first, second = (each.requires_grad_() for each in rows(4, width=3))
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, temperature=0.3).sum(), (first, second))


def test_rows_of_zeros_are_no_nan() -> None:
    first, second = rows(3)
    first[1] = 0
    loss = nt_xent(first.requires_grad_(), second, temperature=0.1)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert first.grad is not None
    assert first.grad.isfinite().all()


def test_half_precision_is_compared_in_float32() -> None:
    first, second = (each.bfloat16() for each in rows(6))
    loss = nt_xent(first, second, temperature=0.1)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, nt_xent(first.double(), second.double(), temperature=0.1).float())


def test_the_prototype_is_the_mean_before_rows_are_scaled() -> None:
    """Ten times the first view counts ten times in the mean: a mean of unit vectors would not change."""
    first, second = rows(5)
    pictured = rows(5, seed=1)[0]
    loss = CrossModal()
    prototype = nt_xent((first + second) / 2, pictured, temperature=0.1)
    torch.testing.assert_close(loss(first=first, second=second, pictured=pictured), prototype)
    assert not torch.allclose(loss(first=10 * first, second=second, pictured=pictured), prototype)
    torch.testing.assert_close(IntraModal()(first=10 * first, second=second), IntraModal()(first=first, second=second))


def test_every_pair_counts_once() -> None:
    assert int(IntraModal().count(sample_index=torch.arange(6))) == 6


def test_rows_that_are_no_pairs_are_refused() -> None:
    first, second = rows(4)
    with pytest.raises(ValueError, match=r"found rows of \(4, 7\) and \(3, 7\), expected two \(M, D\)"):
        nt_xent(first, second[:3], temperature=0.1)
