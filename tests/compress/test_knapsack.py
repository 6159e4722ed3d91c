"""The exact knapsack: brute force, the solutions of HAWQ-V3's published tables, and large problems in time."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import numpy as np
import pytest

from sightline.compress.search.knapsack import solve_knapsack
from tests.golden_parity import load_golden

TIED = ((4, 6), (9, 11), (14, 16))


def total(table: np.ndarray, levels: tuple[int, ...]) -> float:
    return table[np.arange(len(levels)), list(levels)].sum()


def test_it_is_brute_force_on_random_problems() -> None:
    draws = np.random.default_rng(0)
    refused = 0
    for number in range(200):
        num_layers, num_choices = draws.integers(1, 6), draws.integers(1, 5)
        costs = draws.normal(size=(num_layers, num_choices)).round(number % 4)  # equal costs too
        sizes = draws.integers(0, 40, (num_layers, num_choices))
        budget = int(draws.integers(0, 40 * num_layers))
        fitting = [
            total(costs, levels)
            for levels in itertools.product(range(num_choices), repeat=num_layers)
            if total(sizes, levels) <= budget
        ]
        found = solve_knapsack(costs, sizes, budget)
        refused += found is None
        assert (found is None) == (not fitting)
        if found is not None:
            assert total(sizes, found) <= budget
            assert total(costs, found) == pytest.approx(min(fitting), abs=1e-12)
    assert 5 < refused < 100


def test_a_case_by_hand_in_which_the_best_ratio_first_is_wrong() -> None:
    """A byte of the first layer saves most, and its choice leaves no room for the two that save more together."""
    costs = np.asarray([[7.0, 0.0], [6.0, 0.0], [5.0, 0.0]])
    sizes = np.asarray([[1, 4], [1, 5], [1, 5]])
    assert solve_knapsack(costs, sizes, 2) is None
    assert solve_knapsack(costs, sizes, 3) == (0, 0, 0)
    assert solve_knapsack(costs, sizes, 6) == (1, 0, 0)
    assert solve_knapsack(costs, sizes, 10) == (1, 1, 0)  # 5 is left; (0, 1, 1) would take 11
    assert solve_knapsack(costs, np.asarray([[1, 7], [1, 5], [1, 5]]), 11) == (
        0,
        1,
        1,
    )  # 7 is left, and 11 with the first
    assert solve_knapsack(costs, sizes, 14) == (1, 1, 1)
    tied = solve_knapsack(np.asarray([[0.0, 7.0], [3.0, 3.0]]), np.asarray([[2, 1], [9, 1]]), 20)
    assert tied == (0, 1)  # of equal costs the smaller


def test_it_finds_the_golden_optima(shared: Path) -> None:
    golden = load_golden(shared, "hawq_ilp", area="compress").arrays
    cases = sorted({key.split("/")[0] for key in golden if key.startswith("knapsack")})
    assert cases
    for case in cases:
        arrays = {key.partition("/")[2]: v for key, v in golden.items() if key.startswith(f"{case}/")}
        bits = arrays["bits"]
        levels = solve_knapsack(arrays["cost"], arrays["weights"][:, None] * bits, int(arrays["budget_bits"]))
        assert levels is not None, case
        assert total(arrays["cost"], levels) == pytest.approx(float(arrays["best_cost"]), abs=1e-12)
        assert np.array_equal(bits[list(levels)], arrays["best_bits"])


def test_it_solves_the_published_tables_of_resnet18(shared: Path) -> None:
    """At every recorded share of the way from 4 bits to 8. Layers tied by residual sums are one row: they add up."""
    golden = load_golden(shared, "hawq_ilp", area="compress").arrays
    table = {key.partition("/")[2]: value for key, value in golden.items() if key.startswith("table/")}
    cost = table["Hutchinson_trace"] * (table["delta_weights_8bit_square"] - table["delta_weights_4bit_square"])
    # MB at 8 bits; operations are those of 32 x 32 bits, activations have as many as weights
    ends = {
        "size": (table["parameters"] * 0.5, table["parameters"]),
        "bops": (table["bops"] / 64, table["bops"] / 16),
        "latency": (table["latency_int4"], table["latency_int8"]),
    }
    joined = {second: first for first, second in TIED}
    rows = sorted({joined.get(place, place) for place in range(len(cost))})
    member = np.asarray([rows.index(joined.get(place, place)) for place in range(len(cost))])
    cases = sorted(key.removesuffix("/limit") for key in golden if key.endswith("/limit"))
    assert {case.partition("_")[0] for case in cases} == set(ends)
    for case in cases:
        measure, _, share = case.partition("_")
        low, high = ends[measure]
        limit, expected = float(golden[f"{case}/limit"]), golden[f"{case}/is_8bit"]
        assert limit == pytest.approx(low.sum() + float(share) * (high - low).sum(), rel=1e-12)
        costs = np.stack([np.zeros(len(rows)), np.bincount(member, cost)], axis=1)
        sizes = np.stack([np.bincount(member, low), np.bincount(member, high)], axis=1)
        levels = solve_knapsack(costs, sizes, limit * (1 + 1e-12))
        assert levels is not None, case
        assert total(costs, levels) == pytest.approx(float(golden[f"{case}/objective"]), abs=1e-12)
        assert np.array_equal(np.asarray(levels)[member], expected)


def test_a_hundred_layers_with_eight_choices_take_a_moment() -> None:
    draws = np.random.default_rng(1)
    weights = (10 ** draws.uniform(2, 5.5, 100)).astype(int)
    sizes = weights[:, None] * np.arange(1, 9) // 8 + 2 ** np.arange(2, 10)
    costs = 10 ** draws.uniform(-3, 0, (100, 1)) * 4.0 ** -np.arange(1, 9) * draws.uniform(0.5, 1.5, (100, 8))
    began = time.process_time()
    assert solve_knapsack(costs, sizes, int(2.5 * weights.sum() / 8)) is not None
    assert time.process_time() - began < 2  # 0.1 s on a quiet core
