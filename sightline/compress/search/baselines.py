"""Baseline searches: uniform bits, and random policies."""

from __future__ import annotations

import numpy as np

from sightline import registry
from sightline.arguments import Seed
from sightline.compress.policy import Policy, actions_to_levels
from sightline.compress.search.base import MaxEvaluations, PolicyEvaluator, Search
from sightline.compress.search.problem import Problem
from sightline.errors import ConfigError

__all__ = ["RandomSearch", "UniformProtected", "UniformSearch"]


@registry.searches.add("uniform_protected")
class UniformProtected(Search):
    """Uniform bits: the most that all unprotected layers can have. Source: the baseline of HAQ."""

    fills_budget = False
    max_evaluations = 2

    def run(self, problem: Problem, evaluator: PolicyEvaluator) -> Policy:
        return problem.policy([problem.uniform_level] * len(problem.searched_layers))


@registry.searches.add("uniform")
class UniformSearch(UniformProtected):
    """Uniform bits: the most that all layers can have; none may be protected. Source: the baseline of HAQ."""

    def assert_fits(self, problem: Problem) -> None:
        if problem.protected:
            raise ConfigError("search 'uniform': cannot give protected layers other bits; take uniform_protected")


@registry.searches.add("random")
class RandomSearch(Search):
    """Random search: the best of uniformly drawn policies, lowered to the budget. Source: Bergstra and Bengio 2012."""

    def __init__(self, *, max_evaluations: MaxEvaluations = 200, seed: Seed = 0) -> None:
        self.max_evaluations = max_evaluations
        self.seed = seed

    def run(self, problem: Problem, evaluator: PolicyEvaluator) -> Policy:
        generator = np.random.Generator(np.random.PCG64(self.seed))
        best = problem.policy(problem.lower_to_budget([problem.uniform_level] * len(problem.searched_layers)))
        for _ in range(4 * self.max_evaluations):  # draws repeat if few policies are possible
            if not evaluator.num_left:
                break
            levels = actions_to_levels(generator.random(len(problem.searched_layers)), problem.bits)
            policy = problem.policy(problem.lower_to_budget(levels.tolist()))
            best = min(best, policy, key=evaluator.loss)
        return best
