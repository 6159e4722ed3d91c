"""Alignment, uniformity and retrieval of pairs, by hand and by a slow NumPy reading; exact however dealt."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sightline.metrics.base import make_state
from sightline.metrics.pairs import CrossPairs, Pairs


def measured(first: Tensor, second: Tensor, batches: list[list[int]]) -> dict[str, float]:
    metric = Pairs()
    state = make_state(metric, num_samples=len(first))
    for index in batches:
        metric.update(state, first=first[index], second=second[index], sample_index=torch.tensor(index))
    return metric.compute(state)


def test_by_hand() -> None:
    """Two pairs of unit vectors at right angles: partners coincide, the two objects are sqrt 2 apart."""
    unit = torch.eye(2)
    told = measured(unit, unit * 5, [[0, 1]])
    assert told["alignment"] == pytest.approx(0.0, abs=1e-15)
    assert told["uniformity"] == pytest.approx(-4.0)  # ln exp(-2 * 2)
    assert told["retrieval_accuracy"] == 1.0
    crossed = measured(unit, unit.flip(0), [[0, 1]])
    assert crossed["alignment"] == pytest.approx(2.0)
    assert crossed["retrieval_accuracy"] == 0.0


def test_rows_that_are_all_alike_have_no_spread() -> None:
    told = measured(torch.ones(5, 3), torch.ones(5, 3), [[0, 1, 2, 3, 4]])
    assert told["uniformity"] == pytest.approx(0.0, abs=1e-12)
    assert told["retrieval_accuracy"] == pytest.approx(0.2)  # the first of equals: right for one of five


def test_against_a_slow_reading() -> None:
    draw = np.random.default_rng(0)
    first, second = draw.normal(size=(11, 4)), draw.normal(size=(11, 4))
    batches = [[3, 0, 7, 1], [2, 9, 10, 4], [5, 6, 8]]
    told = measured(torch.from_numpy(first), torch.from_numpy(second), batches)
    a, b = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (first, second))
    potentials, hits = [], []
    for index in batches:
        for i in index:
            potentials.append(np.mean([math.exp(-2 * np.sum((a[i] - a[j]) ** 2)) for j in index if j != i]))
            hits.append(min(index, key=lambda j: np.sum((a[i] - b[j]) ** 2)) == i)
    assert told["alignment"] == pytest.approx(np.mean(np.sum((a - b) ** 2, axis=1)), rel=1e-12)
    assert told["uniformity"] == pytest.approx(math.log(np.mean(potentials)), rel=1e-12)
    assert told["retrieval_accuracy"] == np.mean(hits)


def test_a_row_alone_in_its_batch_counts_for_alignment_only() -> None:
    draw = torch.Generator().manual_seed(0)
    first, second = (torch.randn(5, 8, generator=draw, dtype=torch.float64) for _ in range(2))
    told, of_four = measured(first, second, [[0, 1, 2, 3], [4]]), measured(first[:4], second[:4], [[0, 1, 2, 3]])
    assert told["uniformity"] == of_four["uniformity"]
    assert told["retrieval_accuracy"] == of_four["retrieval_accuracy"]
    assert told["alignment"] != of_four["alignment"]


def test_states_of_two_processes_add_up_to_the_same_bits() -> None:
    draw = torch.Generator().manual_seed(0)
    first, second = (torch.randn(9, 4, generator=draw) for _ in range(2))
    metric = Pairs()
    whole, parts = make_state(metric, num_samples=9), [make_state(metric, num_samples=9) for _ in range(2)]
    for number, index in enumerate(([0, 4, 8], [1, 2, 3], [5, 6, 7])):
        given = {"first": first[index], "second": second[index], "sample_index": torch.tensor(index)}
        metric.update(whole, **given)
        metric.update(parts[number % 2], **given)
    assert metric.compute({name: parts[0][name] + parts[1][name] for name in whole}) == metric.compute(whole)


def test_images_stand_beside_the_mean_of_the_clouds() -> None:
    draw = torch.Generator().manual_seed(0)
    first, second, pictured = (torch.randn(6, 4, generator=draw, dtype=torch.float64) for _ in range(3))
    metric, index = CrossPairs(), torch.arange(6)
    state = make_state(metric, num_samples=6)
    metric.update(state, first=first, second=second, pictured=pictured, sample_index=index)
    told = metric.compute(state)
    prototype = torch.nn.functional.normalize((first + second) / 2, dim=1)
    images = torch.nn.functional.normalize(pictured, dim=1)
    assert told["cross_alignment"] == pytest.approx((prototype - images).square().sum(1).mean().item(), rel=1e-12)
    assert set(told) == {"cross_alignment", "cross_uniformity", "cross_retrieval_accuracy"}


def test_nothing_seen_is_no_number() -> None:
    assert all(math.isnan(value) for value in Pairs().compute(make_state(Pairs())).values())
