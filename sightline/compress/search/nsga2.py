"""NSGA-II of Optuna over (loss, bytes), whose storage several machines may share."""

from __future__ import annotations

from typing import Any

from sightline import registry
from sightline.arguments import Count, Seed
from sightline.compress.policy import Policy
from sightline.compress.search.base import MaxEvaluations, PolicyEvaluator, Search
from sightline.compress.search.problem import Problem
from sightline.errors import UserError, assert_installed, summarise_error

__all__ = ["NSGA2"]


@registry.searches.add("nsga2")
class NSGA2(Search):
    """The evolutionary search of two objectives, loss and bytes; every policy is lowered to the budget, as by HAQ.

    The first policy has the same bits everywhere. With `storage`, a database's URL or a file, trials are shared with
    every machine that gives the same one, and `max_evaluations` counts those of all; draws then differ from run to run.
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

    def run(self, problem: Problem, evaluator: PolicyEvaluator) -> Policy:
        study = self._study(problem)
        highest = len(problem.choices) - 1
        # of a shared study all trials count; without one those that repeat a policy are free, up to an end
        most = evaluator.num_left if self.storage else 4 * self.max_evaluations
        while evaluator.num_left and len(study.get_trials(deepcopy=False)) < most:
            trial = study.ask()
            levels = problem.lower_to_budget(
                [trial.suggest_int(layer.name, 0, highest) for layer in problem.searched_layers]
            )
            trial.set_user_attr("levels", levels)
            study.tell(trial, (evaluator.loss(problem.policy(levels)), float(problem.bytes(levels))))
        done = [trial for trial in study.get_trials(deepcopy=False) if trial.values is not None]
        best = min(done, key=lambda trial: (*trial.values, trial.number))
        return problem.policy(best.user_attrs["levels"])

    def _study(self, problem: Problem) -> Any:
        import optuna
        from optuna.storages.journal import JournalFileBackend, JournalStorage
        from sqlalchemy.exc import SQLAlchemyError  # which optuna brings along

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage: Any = self.storage
        try:
            if storage is not None and "://" not in storage:
                storage = JournalStorage(JournalFileBackend(storage))
            name = f"{len(problem.searched_layers)} layers in {problem.budget_bytes} bytes"
            study = optuna.create_study(
                storage=storage, study_name=name, directions=["minimize", "minimize"], load_if_exists=True
            )
        except (OSError, ValueError, ImportError, SQLAlchemyError, optuna.exceptions.OptunaError) as error:
            raise UserError(f"search 'nsga2': storage: {self.storage}: {summarise_error(error)}") from None
        if not study.get_trials(deepcopy=False):
            study.enqueue_trial({layer.name: problem.uniform_level for layer in problem.searched_layers})
        seed = None if self.storage else self.seed  # machines that draw alike would all evaluate the same policies
        study.sampler = optuna.samplers.NSGAIISampler(population_size=self.population, seed=seed)
        return study
