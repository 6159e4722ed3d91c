"""Search by the curvature of the loss: a knapsack of curvature times rounding error."""

from __future__ import annotations

import numpy as np

from sightline.compression.policy import Policy
from sightline.contract import registry
from sightline.contract.arguments import Count, Seed
from sightline.contract.errors import ConfigError
from sightline.workbench.compress.curvature import hessian_traces
from sightline.workbench.compress.problem import SearchProblem
from sightline.workbench.compress.search.base import PolicyEvaluator, Search
from sightline.workbench.compress.search.knapsack import best_levels


@registry.searches.add("hessian")
class HessianAware(Search):
    """Hessian-aware knapsack (HAWQ-V2): mean curvature times squared rounding error; needs second gradients.

    The trace of each layer's Hessian is estimated with `draws` random vectors; one below 0 counts as 0. The model's
    layers must be differentiable twice: build it with `fused: false`. Source: Dong et al. 2020 (HAWQ-V2), section 3.
    """

    def __init__(self, *, draws: Count = 50, seed: Seed = 0) -> None:
        self.draws = draws
        self.seed = seed

    def assert_fits(self, problem: SearchProblem) -> None:
        if problem.curvature is None:
            raise ConfigError(
                "search 'hessian': needs a differentiable loss, which this problem does not have; take knapsack"
            )

    def run(self, problem: SearchProblem, evaluator: PolicyEvaluator) -> Policy:
        assert problem.curvature is not None, "as assert_fits requires"
        curvature = problem.curvature()
        traces = hessian_traces(curvature.loss_of, curvature.parameters, seed=self.seed, draws=self.draws)
        errors = [
            [curvature.error_of(layer.name, choice) for choice in problem.choices] for layer in problem.searched_layers
        ]
        curvatures = [[max(0.0, traces[layer.name]) / layer.num_weights] for layer in problem.searched_layers]
        return problem.policy(best_levels(problem, np.asarray(curvatures) * errors))
