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
    """NSGA-II: evolutionary search of two objectives, loss and bytes; policies are lowered to the budget, as in HAQ.

    The first policy has uniform bits. With `storage`, a database URL or a file, trials are shared with all machines
    that use the same storage, and `max_evaluations` counts all of them; draws then differ from run to run.
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

    def _open_study(self, problem: Problem) -> Any:
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
        seed = None if self.storage else self.seed  # machines with equal draws would evaluate the same policies
        study.sampler = optuna.samplers.NSGAIISampler(population_size=self.population, seed=seed)
        return study
