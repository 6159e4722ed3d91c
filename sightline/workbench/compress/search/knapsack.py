"""Search by an exact knapsack over the layers' single loss increases."""

from __future__ import annotations

import numpy as np

from sightline.compression.policy import Policy
from sightline.contract import registry
from sightline.workbench.compress.problem import Levels, SearchProblem
from sightline.workbench.compress.search.base import RESERVED_EVALUATIONS, PolicyEvaluator, Search
from sightline.workbench.compress.search.sensitivity import TableEvaluations, num_measured, sensitivity


def solve_knapsack(costs: np.ndarray, sizes: np.ndarray, budget: float) -> Levels | None:
    """Solve the multiple-choice knapsack: one choice per row, lowest total cost, total size at most `budget`.

    `costs` and `sizes` (L, C), finite; returns L column indices, or None if nothing fits. Exact, by dynamic programming
    over the layers: partial sums are dropped if others dominate them, or if their Lagrangian bound exceeds the cost of
    a known solution.
    Source: Sinha and Zoltners 1979, the multiple-choice knapsack problem and its bound.
    """
    least_after = np.append(np.cumsum(sizes.min(axis=1)[::-1])[::-1], 0)
    if least_after[0] > budget:
        return None
    price, known_cost = _find_multiplier(costs, sizes, budget)
    bound_after = np.append(np.cumsum((costs + price * sizes).min(axis=1)[::-1])[::-1], 0.0)
    limit = known_cost + 1e-9 * (np.abs(costs).sum() + price * abs(budget)) + 1e-300
    size, cost = np.zeros(1, sizes.dtype), np.zeros(1)
    parents: list[tuple[np.ndarray, np.ndarray]] = []
    for layer, (layer_costs, layer_sizes) in enumerate(zip(costs, sizes, strict=True)):
        size, cost = (size[:, None] + layer_sizes).ravel(), (cost[:, None] + layer_costs).ravel()
        bound = cost + price * (size - budget) + bound_after[layer + 1]
        selected = np.flatnonzero((size + least_after[layer + 1] <= budget) & (bound <= limit))
        selected = selected[np.lexsort((cost[selected], size[selected]))]
        best = np.minimum.accumulate(cost[selected])
        selected = selected[np.append(True, best[1:] < best[:-1])]
        parents.append(np.divmod(selected, len(layer_costs)))
        size, cost = size[selected], cost[selected]
    index, levels = int(cost.argmin()), []
    for origin, level in reversed(parents):
        levels.append(int(level[index]))
        index = int(origin[index])
    return tuple(reversed(levels))


def _find_multiplier(costs: np.ndarray, sizes: np.ndarray, budget: float) -> tuple[float, float]:
    """Find the price of a byte at which the cheapest choices just fit; return it and their cost."""
    rows = np.arange(len(costs))

    def cheapest(price: float) -> tuple[float, float]:
        columns = np.lexsort((sizes, costs + price * sizes), axis=1)[:, 0]
        return sizes[rows, columns].sum(), costs[rows, columns].sum()

    if cheapest(0.0)[0] <= budget:
        return 0.0, cheapest(0.0)[1]
    low, high = 0.0, 1e-12
    while cheapest(high)[0] > budget:
        low, high = high, high * 4
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if cheapest(middle)[0] <= budget else (middle, high)
    return high, cheapest(high)[1]


def best_levels(problem: SearchProblem, costs: np.ndarray) -> Levels:
    """Find the levels of lowest total cost whose exact file size fits the budget."""
    room = problem.budget_bytes - problem.bytes(problem.lowest)
    while (levels := solve_knapsack(costs, problem.sizes, room)) is not None:
        excess = problem.bytes(levels) - problem.budget_bytes
        if excess <= 0:
            return levels
        room -= excess
    return problem.lowest


@registry.searches.add("knapsack")
class Knapsack(Search):
    """Exact knapsack: the policy within the budget with the lowest sum of its layers' single loss increases.

    Source: Yao et al. 2021 (HAWQ-V3), section 3, with the loss's own rises in place of the Hessian's.
    """

    def __init__(self, *, table_evaluations: TableEvaluations = 150) -> None:
        self.table_evaluations = table_evaluations

    def max_num_evaluations(self, problem: SearchProblem) -> int:
        return num_measured(problem, self.table_evaluations) * len(problem.searched_layers) + RESERVED_EVALUATIONS

    def run(self, problem: SearchProblem, evaluator: PolicyEvaluator) -> Policy:
        table = sensitivity(problem, evaluator, table_evaluations=self.table_evaluations)
        return problem.policy(best_levels(problem, table))
