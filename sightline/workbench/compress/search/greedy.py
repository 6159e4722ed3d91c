"""Search by the greedy rule for knapsacks."""

from __future__ import annotations

import numpy as np

from sightline.compression.policy import Policy
from sightline.contract import registry
from sightline.workbench.compress.problem import SearchProblem
from sightline.workbench.compress.search.base import PolicyEvaluator
from sightline.workbench.compress.search.knapsack import Knapsack
from sightline.workbench.compress.search.sensitivity import sensitivity


@registry.searches.add("greedy")
class GreedySearch(Knapsack):
    """Greedy knapsack: lower the layer with the smallest loss increase per saved byte, until the budget holds.

    Starts from the highest choices and uses the table of `knapsack`. Source: the greedy rule for knapsacks, Dantzig
    1957.
    """

    def run(self, problem: SearchProblem, evaluator: PolicyEvaluator) -> Policy:
        table = sensitivity(problem, evaluator, table_evaluations=self.table_evaluations)
        levels, rows = np.asarray(problem.highest), np.arange(len(problem.searched_layers))
        while not problem.fits_budget(levels.tolist()):
            below = np.maximum(levels - 1, 0)
            saved = np.maximum(problem.sizes[rows, levels] - problem.sizes[rows, below], 1e-9)
            price = np.where(levels > 0, (table[rows, below] - table[rows, levels]) / saved, np.inf)
            levels[price.argmin()] -= 1
        return problem.policy(levels.tolist())
