"""Searches to compare with: uniform and random policies, and NSGA-II.

Baseline searches: uniform bits, and random policies.

NSGA-II of Optuna over (loss, bytes), whose storage several machines may share.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sightline.contract import registry
from sightline.contract.arguments import Count, Seed
from sightline.contract.errors import ConfigError, UserError, assert_installed, summarise_error
from sightline.store.files.atomic_write import REPEAT, disk_failure, is_of_disk
from sightline.workbench.compress.policy import Policy, actions_to_levels
from sightline.workbench.compress.search.base import MaxEvaluations, PolicyEvaluator, Problem, Search


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


def open_study(
    storage: str | None, *, name: str, directions: Sequence[Literal["minimize", "maximize"]], needed_by: str
) -> Any:
    """Open a study of Optuna, or create it: in memory, or in a database URL or a file that several machines may share.

    Raises UserError, beginning with `needed_by`, for a storage that cannot be used.
    """
    import optuna
    from optuna.storages.journal import JournalStorage

    from sightline.workbench.compress.search.journal import Journal, find_damage  # needs optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    is_file = storage is not None and "://" not in storage
    if storage == "" or (is_file and Path(str(storage)).is_dir()):
        raise UserError(
            f"{needed_by}: '{storage}' is not a file; give a file, as sweep.journal, or the URL of a database"
        )
    with explain_storage(storage, needed_by=needed_by):
        opened: Any = storage
        if storage is not None and is_file:
            path = Path(storage)
            if fault := find_damage(path):  # Optuna would append to it before it read it
                raise UserError(f"{needed_by}: {storage}: {fault}give another file or URL")
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                opened = JournalStorage(Journal(path))  # reads every line
            except (AssertionError, LookupError, TypeError) as error:
                raise ValueError(f"a line is not one of Optuna ({summarise_error(error)})") from None
        return optuna.create_study(storage=opened, study_name=name, directions=directions, load_if_exists=True)


@contextlib.contextmanager
def explain_storage(storage: str | None, *, needed_by: str) -> Iterator[None]:
    """Convert errors of a storage of Optuna to UserError in one line, and those of a full disk to DiskError."""
    import optuna
    from sqlalchemy.exc import SQLAlchemyError  # which optuna brings along

    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, ImportError, SQLAlchemyError, optuna.exceptions.OptunaError) as error:
        if is_of_disk(error):
            raise disk_failure(error, Path(str(storage)), again=REPEAT, option="--storage") from None
        driver = ", or install the driver of this database" if "://" in str(storage) else ""
        advice = f"give another file or URL{driver}"
        raise UserError(f"{needed_by}: {storage}: {summarise_error(error, max_length=200)}; {advice}") from None


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
