"""Search that gives all layers the same bits."""

from __future__ import annotations

from sightline.compression.policy import Policy
from sightline.contract import registry
from sightline.contract.errors import ConfigError
from sightline.workbench.compress.problem import SearchProblem
from sightline.workbench.compress.search.base import PolicyEvaluator, Search


@registry.searches.add("uniform_protected")
class UniformProtected(Search):
    """Uniform bits: the most that all unprotected layers can have. Source: the baseline of HAQ."""

    fills_budget = False
    max_evaluations = 2

    def run(self, problem: SearchProblem, evaluator: PolicyEvaluator) -> Policy:
        return problem.uniform_policy


@registry.searches.add("uniform")
class UniformSearch(UniformProtected):
    """Uniform bits: the most that all layers can have; none may be protected. Source: the baseline of HAQ."""

    def assert_fits(self, problem: SearchProblem) -> None:
        if problem.protected:
            raise ConfigError("search 'uniform': cannot give protected layers other bits; take uniform_protected")
