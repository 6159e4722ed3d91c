"""Search by sensitivity: a knapsack over the layers, and its refinement.

Searches by the sum of single layers' loss increases: exact knapsack, greedy, and Hessian-aware.

Sensitivity table of additive searches: the loss increase of each layer alone, for each choice.

Hill climbing on the joint loss, from the knapsack's policy.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import numpy as np
from annotated_types import Ge, Le

from sightline.contract import registry
from sightline.contract.arguments import Count, Seed
from sightline.contract.errors import ConfigError
from sightline.workbench.compress.policy import FP32, Policy
from sightline.workbench.compress.run_problem import hessian_traces
from sightline.workbench.compress.search.base import (
    RESERVED_EVALUATIONS,
    Levels,
    MaxEvaluations,
    PolicyEvaluator,
    Problem,
    Search,
)

TableEvaluations = Annotated[int, Ge(2), Le(100_000)]
"""Largest number of evaluations for a sensitivity table."""
_MIN_INCREASE = 1e-12
"""Smallest loss increase, as a share of the loss, in the logarithmic interpolation."""


def num_measured(problem: Problem, table_evaluations: int) -> int:
    """Return the number of choices evaluated per layer. Raises ConfigError if there is not even one."""
    num = min(len(problem.choices), table_evaluations // len(problem.searched_layers))
    if num == 0:
        raise ConfigError(
            f"table_evaluations: {table_evaluations} are fewer than the {len(problem.searched_layers)} "
            "layers; give one for each"
        )
    return num


def sensitivity(problem: Problem, evaluator: PolicyEvaluator, *, table_evaluations: int) -> np.ndarray:
    """Measure the loss increase (L, C), at least 0, of one searched layer with a choice and all others in float.

    If `table_evaluations` do not suffice for all choices, those nearest to the uniform choice of the budget are
    evaluated. Between them the logarithm is interpolated over the bits; beyond them one bit is a factor of 4, as for
    the squared error of rounding. Source: Yao et al. 2021 (HAWQ-V3), section 3, for the sum over layers.
    """
    order = sorted(range(len(problem.choices)), key=lambda level: (abs(level - problem.uniform_level), level))
    measured_levels = sorted(order[: num_measured(problem, table_evaluations)])
    rises = np.zeros((len(problem.searched_layers), len(measured_levels)))
    for row, layer in enumerate(problem.searched_layers):
        for column, level in enumerate(measured_levels):
            policy = {**problem.float_policy, layer.name: problem.choices[level]}
            rises[row, column] = max(0.0, evaluator.loss(policy) - evaluator.float_loss)
    if len(measured_levels) == len(problem.choices):
        return rises
    bits, all_bits = np.asarray(problem.bits)[measured_levels], np.asarray(problem.bits)
    logs = np.log2(np.maximum(rises, _MIN_INCREASE * max(1.0, abs(evaluator.float_loss))))
    extrapolation = -2.0 * (np.minimum(all_bits - bits[0], 0) + np.maximum(all_bits - bits[-1], 0))
    table = np.exp2(np.stack([np.interp(all_bits, bits, row) for row in logs]) + extrapolation)
    table[:, measured_levels] = rises
    table[:, [choice == FP32 for choice in problem.choices]] = 0.0
    return table


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


def best_levels(problem: Problem, costs: np.ndarray) -> Levels:
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

    def max_num_evaluations(self, problem: Problem) -> int:
        return num_measured(problem, self.table_evaluations) * len(problem.searched_layers) + RESERVED_EVALUATIONS

    def run(self, problem: Problem, evaluator: PolicyEvaluator) -> Policy:
        table = sensitivity(problem, evaluator, table_evaluations=self.table_evaluations)
        return problem.policy(best_levels(problem, table))


@registry.searches.add("greedy")
class GreedySearch(Knapsack):
    """Greedy knapsack: lower the layer with the smallest loss increase per saved byte, until the budget holds.

    Starts from the highest choices and uses the table of `knapsack`. Source: the greedy rule for knapsacks, Dantzig
    1957.
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
    """Hessian-aware knapsack (HAWQ-V2): mean curvature times squared rounding error; needs second gradients.

    The trace of each layer's Hessian is estimated with `draws` random vectors; one below 0 counts as 0. The model's
    layers must be differentiable twice: build it with `fused: false`. Source: Dong et al. 2020 (HAWQ-V2), section 3.
    """

    def __init__(self, *, draws: Count = 50, seed: Seed = 0) -> None:
        self.draws = draws
        self.seed = seed

    def assert_fits(self, problem: Problem) -> None:
        if problem.curvature is None:
            raise ConfigError(
                "search 'hessian': needs a differentiable loss, which this problem does not have; take knapsack"
            )

    def run(self, problem: Problem, evaluator: PolicyEvaluator) -> Policy:
        assert problem.curvature is not None, "as assert_fits requires"
        curvature = problem.curvature()
        traces = hessian_traces(curvature.loss_of, curvature.parameters, seed=self.seed, draws=self.draws)
        errors = [
            [curvature.error_of(layer.name, choice) for choice in problem.choices] for layer in problem.searched_layers
        ]
        curvatures = [[max(0.0, traces[layer.name]) / layer.num_weights] for layer in problem.searched_layers]
        return problem.policy(best_levels(problem, np.asarray(curvatures) * errors))


@registry.searches.add("hybrid")
class Hybrid(Search):
    """Hill climbing from the knapsack's policy: raise one layer by one choice, and lower another if needed.

    The moves that the table favours come first; a move that lowers the joint loss is accepted, and the climb continues
    from there. The result is never worse than the knapsack's. `max_evaluations` include those of the table.
    Source: hill climbing, Russell and Norvig 2010, section 4.1, on the loss of all layers together.
    """

    def __init__(self, *, max_evaluations: MaxEvaluations = 200, table_evaluations: TableEvaluations = 150) -> None:
        self.max_evaluations = max_evaluations
        self.table_evaluations = table_evaluations

    def assert_fits(self, problem: Problem) -> None:
        num_measured(
            problem, min(self.table_evaluations, self.max_evaluations - RESERVED_EVALUATIONS - 1)
        )  # one is the float model

    def run(self, problem: Problem, evaluator: PolicyEvaluator) -> Policy:
        table_evaluations = min(self.table_evaluations, evaluator.num_left)
        table = sensitivity(problem, evaluator, table_evaluations=table_evaluations)
        levels, is_better = best_levels(problem, table), True
        while is_better:
            is_better = False
            for move in _moves(problem, table, levels):
                policy = problem.policy(move)
                if not evaluator.num_left and not evaluator.has(policy):
                    continue
                if problem.fits_budget(move) and evaluator.loss(policy) < evaluator.loss(problem.policy(levels)):
                    levels, is_better = move, True
                    break
        return problem.policy(levels)


def _moves(problem: Problem, table: np.ndarray, levels: Levels) -> Iterator[Levels]:
    """Iterate over moves: one layer raised and another or none lowered, sorted by the change of the table's sum."""
    current, rows, top = np.asarray(levels), np.arange(len(levels)), len(problem.choices) - 1
    up, down = np.minimum(current + 1, top), np.maximum(current - 1, 0)
    loss = np.append(table[rows, down] - table[rows, current], 0.0)
    change = (table[rows, up] - table[rows, current])[:, None] + loss
    change[current == top] = np.inf
    change[:, :-1][:, current == 0] = np.inf
    change[rows, rows] = np.inf
    for flat in np.argsort(change, axis=None, kind="stable"):
        raised, lowered = divmod(int(flat), len(levels) + 1)
        if not np.isfinite(change[raised, lowered]):
            return
        move = current.copy()
        move[raised] += 1
        if lowered < len(levels):
            move[lowered] -= 1
        yield tuple(move.tolist())
