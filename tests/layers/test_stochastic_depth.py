"""Stochastic depth: whole samples, the right share of them, the same mean, and nothing in evaluation."""

from __future__ import annotations

import math

import torch
from torch import nn

from sightline.layers.transformer import StochasticDepth


def test_a_sample_keeps_its_whole_branch_or_nothing_of_it() -> None:
    branch = torch.rand(64, 5, 3) + 1
    kept = StochasticDepth(0.25)(branch)
    is_kept = kept.flatten(1).any(dim=1)
    assert 0 < is_kept.sum() < 64
    torch.testing.assert_close(kept[is_kept], branch[is_kept] / 0.75)
    assert not kept[~is_kept].any()


def test_the_share_that_is_left_out_is_the_one_asked_for() -> None:
    """Of 10,000 samples, within five standard deviations of a binomial count."""
    count, p = 10_000, 0.3
    left_out = int((StochasticDepth(p)(torch.ones(count, 1)) == 0).sum())
    assert abs(left_out - count * p) <= 5 * math.sqrt(count * p * (1 - p))


def test_nothing_happens_in_evaluation_or_at_probability_zero() -> None:
    branch = torch.rand(8, 2)
    state = torch.get_rng_state()
    assert StochasticDepth(0.9).eval()(branch) is branch
    assert StochasticDepth(0.0)(branch) is branch
    assert torch.equal(torch.get_rng_state(), state)


def test_all_are_left_out_at_probability_one_and_gradients_are_zero() -> None:
    branch = torch.rand(8, 2, requires_grad=True)
    left = StochasticDepth(1.0)(branch)
    left.sum().backward()
    assert not left.any()
    assert branch.grad is not None
    assert not branch.grad.any()


def test_draws_are_those_of_the_global_generator_as_dropouts_are() -> None:
    """So a run's seed and the states in its checkpoints hold for it, and its draws differ from step to step."""
    branch = torch.ones(256, 1)
    layer = StochasticDepth(0.5)
    assert isinstance(layer, nn.Dropout)
    torch.manual_seed(3)
    first, second = layer(branch), layer(branch)
    torch.manual_seed(3)
    assert torch.equal(layer(branch), first)
    assert not torch.equal(first, second)


def test_gradient_goes_where_the_branch_went() -> None:
    branch = torch.rand(32, 4, requires_grad=True)
    kept = StochasticDepth(0.5)(branch)
    kept.sum().backward()
    torch.testing.assert_close(branch.grad, (kept != 0) * 2.0)
