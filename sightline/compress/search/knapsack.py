"""Searches that add up the rises of single layers: the exact knapsack, a greedy one, and one by the Hessian."""

from __future__ import annotations

import numpy as np

from sightline import registry
from sightline.arguments import Count, Seed
from sightline.compress.hessian import hessian_traces
from sightline.compress.policy import Policy
from sightline.compress.search.base import RESERVED_EVALUATIONS, PolicyEvaluator, Search
from sightline.compress.search.problem import Levels, Problem
from sightline.compress.search.sensitivity import TableEvaluations, num_measured, sensitivity
from sightline.errors import ConfigError

__all__ = ["GreedySearch", "HessianAware", "Knapsack", "best_levels", "solve_knapsack"]


def solve_knapsack(costs: np.ndarray, sizes: np.ndarray, budget: float) -> Levels | None:
    """One choice a row of least total cost whose sizes add up to at most `budget`; None where none do.

    `costs` and `sizes` (L, C), finite. Exact, by dynamic programming over the layers: of the partial sums those that
    others dominate are dropped, and those whose Lagrangian bound exceeds the cost of a solution that is known.
    Source: Sinha and Zoltners 1979, the multiple-choice knapsack problem and its bound.
    """
    least_after = np.append(np.cumsum(sizes.min(axis=1)[::-1])[::-1], 0)
    if least_after[0] > budget:
        return None
    price, known = _multiplier(costs, sizes, budget)
    bound_after = np.append(np.cumsum((costs + price * sizes).min(axis=1)[::-1])[::-1], 0.0)
    limit = known + 1e-9 * (np.abs(costs).sum() + price * abs(budget)) + 1e-300
    size, cost = np.zeros(1, sizes.dtype), np.zeros(1)
    parents: list[tuple[np.ndarray, np.ndarray]] = []
    for layer, (each_cost, each_size) in enumerate(zip(costs, sizes, strict=True)):
        size, cost = (size[:, None] + each_size).ravel(), (cost[:, None] + each_cost).ravel()
        bound = cost + price * (size - budget) + bound_after[layer + 1]
        kept = np.flatnonzero((size + least_after[layer + 1] <= budget) & (bound <= limit))
        kept = kept[np.lexsort((cost[kept], size[kept]))]
        best = np.minimum.accumulate(cost[kept])
        kept = kept[np.append(True, best[1:] < best[:-1])]
        parents.append(np.divmod(kept, len(each_cost)))
        size, cost = size[kept], cost[kept]
    place, levels = int(cost.argmin()), []
    for origin, level in reversed(parents):
        levels.append(int(level[place]))
        place = int(origin[place])
    return tuple(reversed(levels))


def _multiplier(costs: np.ndarray, sizes: np.ndarray, budget: float) -> tuple[float, float]:
    """The price of a byte at which the cheapest choices just fit, and the cost of these."""
    rows = np.arange(len(costs))

    def cheapest(price: float) -> tuple[float, float]:
        chosen = np.lexsort((sizes, costs + price * sizes), axis=1)[:, 0]
        return sizes[rows, chosen].sum(), costs[rows, chosen].sum()

    if cheapest(0.0)[0] <= budget:
        return 0.0, cheapest(0.0)[1]
    low, high = 0.0, 1e-12
    while cheapest(high)[0] > budget:
        low, high = high, high * 4
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if cheapest(middle)[0] <= budget else (middle, high)
    return high, cheapest(high)[1]


def best_levels(problem: Problem, costs: np.ndarray) -> Levels:
    """The levels of least total cost whose file, to the byte, holds the budget."""
    room = problem.budget_bytes - problem.bytes(problem.lowest)
    while (levels := solve_knapsack(costs, problem.sizes, room)) is not None:
        excess = problem.bytes(levels) - problem.budget_bytes
        if excess <= 0:
            return levels
        room -= excess
    return problem.lowest


@registry.searches.add("knapsack")
class Knapsack(Search):
    """The policy whose layers alone raise the loss least in sum, exactly, within the budget.

    Source: Yao et al. 2021 (HAWQ-V3), section 3, with the loss's own rises in place of the Hessian's.
    """

    def __init__(self, *, table_evaluations: TableEvaluations = 150) -> None:
        self.table_evaluations = table_evaluations

    def max_num_evaluations(self, problem: Problem) -> int:
        return num_measured(problem, self.table_evaluations) * len(problem.searched_layers) + RESERVED_EVALUATIONS

    def run(self, problem: Problem, evaluator: PolicyEvaluator) -> Policy:
        table = sensitivity(problem, evaluator, table_evaluations=self.table_evaluations)
        return problem.policy(best_levels(problem, table))


@registry.searches.add("greedy")
class GreedySearch(Knapsack):
    """From the highest choices, lower the layer that raises the loss least for each byte saved until the budget holds.

    It takes the same table as `knapsack`. Source: the greedy rule for knapsacks, Dantzig 1957.
    """

    def run(self, problem: Problem, evaluator: PolicyEvaluator) -> Policy:
        table = sensitivity(problem, evaluator, table_evaluations=self.table_evaluations)
        levels, rows = np.asarray(problem.highest), np.arange(len(problem.searched_layers))
        while not problem.fits_budget(levels.tolist()):
            below = np.maximum(levels - 1, 0)
            saved = np.maximum(problem.sizes[rows, levels] - problem.sizes[rows, below], 1e-9)
            price = np.where(levels > 0, (table[rows, below] - table[rows, levels]) / saved, np.inf)
            levels[price.argmin()] -= 1
        return problem.policy(levels.tolist())


@registry.searches.add("hessian")
class HessianAware(Search):
    """The knapsack of mean curvature times squared error of rounding, which needs no evaluations but second gradients.

    The trace of each layer's Hessian is estimated with `draws` random vectors; one below 0 counts as 0. The model's
    layers must be differentiable twice: build it with `fused: false`. Source: Dong et al. 2020 (HAWQ-V2), section 3.
    """

    def __init__(self, *, draws: Count = 50, seed: Seed = 0) -> None:
        self.draws = draws
        self.seed = seed

    def assert_fits(self, problem: Problem) -> None:
        if problem.curvature is None:
            raise ConfigError("search 'hessian': needs the loss as a graph, which this problem has not; take knapsack")

    def run(self, problem: Problem, evaluator: PolicyEvaluator) -> Policy:
        assert problem.curvature is not None, "as assert_fits requires"
        curvature = problem.curvature()
        traces = hessian_traces(curvature.loss_of, curvature.parameters, seed=self.seed, draws=self.draws)
        errors = [
            [curvature.error_of(layer.name, each) for each in problem.choices] for layer in problem.searched_layers
        ]
        curvatures = [[max(0.0, traces[layer.name]) / layer.num_weights] for layer in problem.searched_layers]
        return problem.policy(best_levels(problem, np.asarray(curvatures) * errors))
