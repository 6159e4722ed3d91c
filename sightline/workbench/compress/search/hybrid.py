"""Search by hill climbing on the loss of all layers together, from the knapsack's policy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sightline.compression.policy import Policy
from sightline.contract import registry
from sightline.workbench.compress.problem import Levels, SearchProblem
from sightline.workbench.compress.search.base import RESERVED_EVALUATIONS, MaxEvaluations, PolicyEvaluator, Search
from sightline.workbench.compress.search.knapsack import best_levels
from sightline.workbench.compress.search.sensitivity import TableEvaluations, num_measured, sensitivity


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

    def assert_fits(self, problem: SearchProblem) -> None:
        num_measured(
            problem, min(self.table_evaluations, self.max_evaluations - RESERVED_EVALUATIONS - 1)
        )  # one is the float model

    def run(self, problem: SearchProblem, evaluator: PolicyEvaluator) -> Policy:
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


def _moves(problem: SearchProblem, table: np.ndarray, levels: Levels) -> Iterator[Levels]:
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
