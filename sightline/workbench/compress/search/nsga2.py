"""Search by evolution: NSGA-II of Optuna over (loss, bytes), whose storage several machines may share."""

from __future__ import annotations

import hashlib
from typing import Any

from sightline.compression.policy import Policy
from sightline.contract import registry
from sightline.contract.arguments import Count, Seed
from sightline.contract.errors import assert_installed
from sightline.workbench.compress.problem import SearchProblem
from sightline.workbench.compress.search.base import MaxEvaluations, PolicyEvaluator, Search


@registry.searches.add("nsga2")
class NSGA2(Search):
    """NSGA-II: evolutionary search of two objectives, loss and bytes; policies are lowered to the budget, as in HAQ.

    The first policy has uniform bits. With `storage`, a database URL or a file, trials are shared with all machines
    that use the same storage for the same search of a run, and `max_evaluations` counts all of them; draws then differ
    from run to run.
    Source: Deb et al. 2002 (NSGA-II), in Optuna.
    """

    def __init__(
        self,
        *,
        max_evaluations: MaxEvaluations = 200,
        population: Count = 50,
        seed: Seed = 0,
        storage: str | None = None,
    ) -> None:
        assert_installed("optuna", needed_by="search 'nsga2'")
        self.max_evaluations = max_evaluations
        self.population = population
        self.seed = seed
        self.storage = storage

    def run(self, problem: SearchProblem, evaluator: PolicyEvaluator) -> Policy:
        study = self._open_study(problem)
        highest = len(problem.choices) - 1
        # all trials of a shared study count; without storage repeated policies are free, up to a limit
        max_trials = evaluator.num_left if self.storage else 4 * self.max_evaluations
        while evaluator.num_left and len(study.get_trials(deepcopy=False)) < max_trials:
            trial = study.ask()
            levels = problem.lower_to_budget(
                [trial.suggest_int(layer.name, 0, highest) for layer in problem.searched_layers]
            )
            trial.set_user_attr("levels", levels)
            study.tell(trial, (evaluator.loss(problem.policy(levels)), float(problem.bytes(levels))))
        finished = [trial for trial in study.get_trials(deepcopy=False) if trial.values is not None]
        best = min(finished, key=lambda trial: (*trial.values, trial.number))
        return problem.policy(best.user_attrs["levels"])

    def _open_study(self, problem: SearchProblem) -> Any:
        import optuna

        from sightline.workbench.series.storage import open_study  # needs optuna

        layers, lowest = [layer.name for layer in problem.searched_layers], problem.policy(problem.lowest)
        # a storage may hold searches of other runs, whose losses and levels mean something else
        identity = hashlib.sha256(repr((problem.subject, layers, problem.choices, lowest)).encode()).hexdigest()[:12]
        name = f"{len(layers)} layers in {problem.budget_bytes} bytes, {identity}"
        study = open_study(
            self.storage, name=name, directions=["minimize", "minimize"], needed_by="search 'nsga2': storage"
        )
        if not study.get_trials(deepcopy=False):
            study.enqueue_trial({layer.name: problem.uniform_level for layer in problem.searched_layers})
        seed = None if self.storage else self.seed  # machines with equal draws would evaluate the same policies
        study.sampler = optuna.samplers.NSGAIISampler(population_size=self.population, seed=seed)
        return study
