"""Search among random policies."""

from __future__ import annotations

import numpy as np

from sightline.compression.policy import Policy
from sightline.contract import registry
from sightline.contract.arguments import Seed
from sightline.workbench.compress.problem import SearchProblem, actions_to_levels
from sightline.workbench.compress.search.base import MaxEvaluations, PolicyEvaluator, Search


@registry.searches.add("random")
class RandomSearch(Search):
    """Random search: the best of uniformly drawn policies, lowered to the budget. Source: Bergstra and Bengio 2012."""

    def __init__(self, *, max_evaluations: MaxEvaluations = 200, seed: Seed = 0) -> None:
        self.max_evaluations = max_evaluations
        self.seed = seed

    def run(self, problem: SearchProblem, evaluator: PolicyEvaluator) -> Policy:
        generator = np.random.Generator(np.random.PCG64(self.seed))
        best = problem.uniform_policy
        for _ in range(4 * self.max_evaluations):  # draws repeat if few policies are possible
            if not evaluator.num_left:
                break
            levels = actions_to_levels(generator.random(len(problem.searched_layers)), problem.bits)
            policy = problem.policy(problem.lower_to_budget(levels.tolist()))
            best = min(best, policy, key=evaluator.loss)
        return best
