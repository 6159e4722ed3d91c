"""A plugin with a search for bits per layer: simulated annealing.

`sightline compress search RUN --plugin my_search.py --method annealing,hybrid --ratio 0.1 --out DIR` compares it.
"""

import math

import numpy as np

import sightline


@sightline.register.search("annealing")
class Annealing(sightline.Search):
    """Simulated annealing: other bits for a random layer, also if the loss rises, but ever more rarely.

    Source: Kirkpatrick et al. 1983, Optimization by Simulated Annealing.
    """

    def __init__(
        self,
        *,
        max_evaluations: sightline.MaxEvaluations = 200,
        heat: sightline.PositiveFloat = 0.1,
        seed: sightline.Seed = 0,
    ) -> None:
        self.max_evaluations, self.heat, self.seed = max_evaluations, heat, seed

    def run(self, problem: sightline.SearchProblem, evaluator: sightline.PolicyEvaluator) -> dict:
        """Return the best policy found; `heat` is the first rise, as a share of the loss, that is often taken."""
        random = np.random.default_rng(self.seed)
        current = best = problem.uniform_policy
        for step in range(4 * self.max_evaluations):  # policies repeat if few are possible
            if not evaluator.num_left:
                break
            levels = [*problem.levels(current)]
            levels[random.integers(len(levels))] = int(random.integers(len(problem.bits)))
            proposed = problem.policy(problem.lower_to_budget(levels))
            rise = evaluator.loss(proposed) - evaluator.loss(current)
            heat = self.heat * evaluator.loss(best) * 0.99**step
            if rise <= 0 or random.random() < math.exp(-rise / max(heat, 1e-300)):
                current = proposed
            best = min(best, current, key=evaluator.loss)
        return best
