"""Linear SVM of scikit-learn whose C is chosen by cross-validation on the training split."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from annotated_types import Ge, Le

from sightline.contract import registry
from sightline.contract.arguments import Count, PositiveFloat, Seed
from sightline.contract.draws import Draws
from sightline.contract.errors import ConfigError
from sightline.contract.types import SampleKey
from sightline.workbench.probe.features import Features
from sightline.workbench.probe.methods import Outcome, Table, UnprobableError, assert_fits, require_sklearn, start

Folds = Annotated[int, Ge(2), Le(100)]
"""Number of folds of a cross-validation."""
COSTS = (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)
_FOLDS = 5
_MAX_THREADS = 2
"""Maximum of machines fitted at a time: each copies the products of the rows that it is fitted to."""


def assign_folds(labels: np.ndarray, *, num_folds: int, seed: int) -> np.ndarray:
    """Assign each sample (N,) to a seeded, stratified fold; sizes, also of each class, differ by at most one.

    Raises UnprobableError if the training part of a fold has fewer than two classes.
    """
    order = Draws.for_samples([SampleKey(0, 0, seed)]).stream("folds").permutation(len(labels))[0].numpy()
    dealt = order[np.argsort(labels[order], kind="stable")]  # sorted by class, shuffled within each
    fold_of = np.empty(len(labels), dtype=np.int64)
    fold_of[dealt] = np.arange(len(labels)) % num_folds
    for fold in range(num_folds):
        if len(np.unique(labels[fold_of != fold])) < 2 or not (fold_of == fold).any():
            raise UnprobableError(
                f"probe: {len(labels)} training samples of {len(np.unique(labels))} classes leave no two classes to "
                f"learn in each of {num_folds} folds; probe on more data, or give folds=2"
            )
    return fold_of


def describe_choice(values: Sequence[float] = COSTS, num_folds: int = _FOLDS) -> str:
    """Describe how C is chosen; without arguments, at the end of training."""
    if len(values) == 1:
        return f"{values[0]:g}, given"
    return f"by {num_folds}-fold cross-validation on the training part"


@registry.probes.add("svm")
class SVM:
    """Linear SVM, one against one, on plain features, as published.

    C is chosen by a seeded, stratified cross-validation on the training split: of values that are equally good the
    smallest, and one value is used as given. If classes overlap, a large C needs very many iterations: after
    `max_iterations` for a pair of classes the SVM stops, which is told. Source: Afham et al. 2022, section 4.1
    (protocol); scikit-learn's SVC.
    """

    most_rows: ClassVar[int | None] = 20_000
    """Maximum of training rows: the products of all pairs take 8 bytes each, here 3.2 GB."""
    title = "scikit-learn SVC(kernel=linear), one against one, plain"

    def __init__(
        self,
        *,
        C: tuple[PositiveFloat, ...] = COSTS,
        folds: Folds = _FOLDS,
        max_iterations: Count = 1_000_000,
        seed: Seed = 0,
    ) -> None:
        if not C:
            raise ConfigError("C: found [], allowed is at least one number")
        require_sklearn()
        self.values = sorted(set(C))
        self.num_folds = folds
        self.seed = seed
        self.max_iterations = max_iterations

    def make_machine(self) -> Any:
        """Make scikit-learn's unfitted machine, which takes the products of rows: all C and folds share them."""
        from sklearn.svm import SVC

        return SVC(kernel="precomputed", max_iter=self.max_iterations)

    def __call__(self, train: Features, test: Features) -> Outcome:
        """Compute the test accuracy with the chosen C, and a table of the cross-validation."""
        from sklearn.model_selection import GridSearchCV, PredefinedSplit

        assert_fits(self, len(train))
        fold_of = assign_folds(train.labels, num_folds=self.num_folds, seed=self.seed)
        by_class = np.argsort(train.labels, kind="stable")  # rows of a pair of classes stand together in memory
        train, folds = train.take(by_class), PredefinedSplit(fold_of[by_class])
        rows, others = train.rows.astype(np.float64), test.rows.astype(np.float64)
        search = GridSearchCV(self.make_machine(), {"C": self.values}, cv=folds)
        num_threads = max(1, min(torch.get_num_threads(), _MAX_THREADS))
        start(lambda: _fit(search, rows @ rows.T, train.labels, num_threads=num_threads)).result()
        chosen, found = int(search.best_index_), search.cv_results_
        table = [
            (f"{value:g}", float(mean), float(std), "chosen" if index == chosen else "")
            for index, (value, mean, std) in enumerate(
                zip(self.values, found["mean_test_score"], found["std_test_score"], strict=True)
            )
        ]
        return Outcome(
            {"probe_svm_accuracy": float(search.score(others @ rows.T, test.labels))},
            {},
            Table(self.title, ("C", "cross-validated", "+-", ""), table),
            (f"{self.title}; C {describe_choice(self.values, self.num_folds)}",),
            tuple(self._list_warnings(chosen, search.best_estimator_)),
        )

    def _list_warnings(self, chosen: int, machine: Any) -> list[str]:
        value, lines = f"C={self.values[chosen]:g}", []
        if len(self.values) > 1 and chosen in (0, len(self.values) - 1):
            lines.append(f"the chosen {value} is the end of the grid: a wider grid may be better, C=[...]")
        if np.max(machine.n_iter_) >= self.max_iterations:
            lines.append(
                f"{value}: stopped at {self.max_iterations} iterations, not converged; likely, classes overlap in "
                "these features: use smaller C, or give max_iterations=N"
            )
        return lines


def _fit(search: Any, rows: np.ndarray, labels: np.ndarray, *, num_threads: int) -> None:
    """Fit a search in threads; a machine that has not converged is told by a warning of the probe's own."""
    from joblib import parallel_config
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings(), parallel_config(backend="threading", n_jobs=num_threads):
        warnings.simplefilter("ignore", ConvergenceWarning)
        search.fit(rows, labels)
