"""Random draws: pure functions of the key, uniform and normal as they claim."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from sightline.contract.draws import Draws
from sightline.contract.types import SampleKey

KEYS = [SampleKey(index, epoch=2, seed=9) for index in range(64)]


def test_streams_of_a_seed_are_those_of_its_first_samples() -> None:
    samples = Draws.for_samples([SampleKey(index, 0, 5) for index in range(3)])
    assert torch.equal(Draws.from_seed(5, num_samples=3).uniform(2), samples.uniform(2))


def test_bits_are_splitmix64() -> None:
    """The published first outputs of SplitMix64 from state 1234567 (Vigna's test vector)."""
    draws = Draws(np.array([1234567], dtype=np.uint64))
    assert draws.bits(3)[0].tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_a_sample_draws_the_same_alone_and_in_any_batch() -> None:
    together, alone = Draws.for_samples(KEYS), Draws.for_samples(KEYS[40:41])
    for draw in (lambda d: d.uniform(5, 3), lambda d: d.normal(7), lambda d: d.permutation(11)):
        assert torch.equal(draw(together)[40], draw(alone)[0])


def test_draws_advance_and_streams_differ() -> None:
    draws = Draws.for_samples(KEYS)
    first, second = draws.uniform(4), draws.uniform(4)
    assert not torch.equal(first, second)
    assert not torch.equal(first, Draws.for_samples(KEYS).stream("jitter").uniform(4))
    assert torch.equal(Draws.for_samples(KEYS).stream("a").uniform(4), Draws.for_samples(KEYS).stream("a").uniform(4))


def test_each_part_of_the_key_matters() -> None:
    keys = [SampleKey(1, 0, 0), SampleKey(0, 1, 0), SampleKey(0, 0, 1), SampleKey(0, 0, 0)]
    assert len({tuple(row) for row in Draws.for_samples(keys).bits(2).tolist()}) == 4


def test_global_generators_are_not_touched() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    Draws.for_samples(KEYS).normal(100)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()


def test_uniform_and_normal_pass_kolmogorov_smirnov() -> None:
    """At p = 1e-4 a right generator fails once in ten thousand seeds; this seed is fixed."""
    draws = Draws.for_samples(KEYS)
    assert stats.kstest(draws.uniform(2000, low=-1, high=3).flatten().numpy(), stats.uniform(-1, 4).cdf).pvalue > 1e-4
    assert stats.kstest(draws.normal(2000).flatten().numpy(), stats.norm.cdf).pvalue > 1e-4


def test_neighbouring_samples_are_uncorrelated() -> None:
    values = Draws.for_samples(KEYS).normal(4000).numpy()
    correlation = np.corrcoef(values)[np.triu_indices(len(KEYS), 1)]
    assert np.abs(correlation).max() < 5.5 / np.sqrt(4000)  # 2,016 pairs; 5.5 standard errors is p = 8e-5 for them all


def test_permutations_are_permutations_and_even() -> None:
    orders = Draws.for_samples([SampleKey(i, 0, 0) for i in range(6000)]).permutation(3)
    assert torch.equal(orders.sort(1).values, torch.arange(3).expand(6000, 3))
    counts = np.unique(orders.numpy() @ [9, 3, 1], return_counts=True)[1]
    assert len(counts) == 6
    assert stats.chisquare(counts).pvalue > 1e-4


def test_the_draws_of_a_step_are_shared_by_its_samples_and_differ_between_steps() -> None:
    """Whatever samples of the step are drawn together, in whatever epoch; samples' own draws do not depend on it."""
    keys = [SampleKey(index, 1, 7, step=3) for index in range(5)]
    together = Draws.for_samples(keys).stream("size").shared_by_step.bits(4)
    for part in (keys[:1], keys[2:4], keys[::-1]):
        np.testing.assert_array_equal(Draws.for_samples(part).stream("size").shared_by_step.bits(4), together)
    others = [SampleKey(0, 1, 7, step=4), SampleKey(0, 1, 8, step=3)]
    assert all((Draws.for_samples([key]).stream("size").shared_by_step.bits(4) != together).all() for key in others)
    assert (Draws.for_samples(keys).stream("crop").shared_by_step.bits(4) != together).all()
    plain = [SampleKey(key.index, key.epoch, key.seed) for key in keys]
    np.testing.assert_array_equal(Draws.for_samples(keys).bits(4), Draws.for_samples(plain).bits(4))
    with pytest.raises(ValueError, match="not of one step"):
        Draws.for_samples([*keys, others[0]]).shared_by_step  # noqa: B018 - a property that raises
    assert Draws.for_samples([]).bits(3).shape == (0, 3)
