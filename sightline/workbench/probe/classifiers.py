"""Classifiers of scikit-learn whose one setting is chosen by cross-validation on the training split."""

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


class CrossValidated:
    """Classifier with one setting, which a seeded, stratified cross-validation on the training split chooses.

    `metric` names its accuracy, `setting` the argument of the probe, `parameter` that of scikit-learn's pipeline. Of
    settings that are equally good the smallest is taken. One value is used as given.
    """

    most_rows: ClassVar[int | None] = None
    metric: str
    setting: ClassVar[str]
    parameter: ClassVar[str]
    title: str

    def __init__(self, values: Sequence[float], *, folds: int, seed: int) -> None:
        if not values:
            raise ConfigError(f"{self.setting}: found [], allowed is at least one number")
        require_sklearn()
        self.values = sorted(set(values))
        self.num_folds = folds
        self.seed = seed

    def make_pipeline(self) -> Any:
        """Make scikit-learn's unfitted pipeline."""
        raise NotImplementedError

    def prepare(self, train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return what the pipeline takes for the features of both splits, in float64."""
        return train, test

    def __call__(self, train: Features, test: Features) -> Outcome:
        """Compute the test accuracy with the chosen setting, and a table of the cross-validation."""
        from sklearn.model_selection import GridSearchCV, PredefinedSplit

        assert_fits(self, len(train))
        fold_of = assign_folds(train.labels, num_folds=self.num_folds, seed=self.seed)
        by_class = np.argsort(train.labels, kind="stable")  # rows of a pair of classes stand together in memory
        train, folds = train.take(by_class), PredefinedSplit(fold_of[by_class])
        train_rows, test_rows = self.prepare(train.rows.astype(np.float64), test.rows.astype(np.float64))
        search = GridSearchCV(self.make_pipeline(), {self.parameter: self.values}, cv=folds)
        num_threads = max(1, min(torch.get_num_threads(), _MAX_THREADS))
        start(lambda: _fit(search, train_rows, train.labels, num_threads=num_threads)).result()
        chosen, found = int(search.best_index_), search.cv_results_
        rows = [
            (f"{value:g}", float(mean), float(std), "chosen" if index == chosen else "")
            for index, (value, mean, std) in enumerate(
                zip(self.values, found["mean_test_score"], found["std_test_score"], strict=True)
            )
        ]
        return Outcome(
            {self.metric: float(search.score(test_rows, test.labels))},
            {},
            Table(self.title, (self.setting, "cross-validated", "+-", ""), rows),
            (f"{self.title}; {self.setting} {describe_choice(self.values, self.num_folds)}",),
            tuple(self._list_warnings(chosen, search.best_estimator_[-1])),
        )

    def _list_warnings(self, chosen: int, machine: Any) -> list[str]:
        setting, value, lines = self.setting, f"{self.setting}={self.values[chosen]:g}", []
        if len(self.values) > 1 and chosen in (0, len(self.values) - 1):
            lines.append(f"the chosen {value} is the end of the grid: a wider grid may be better, {setting}=[...]")
        max_iterations = getattr(machine, "max_iter", np.inf)
        if np.max(getattr(machine, "n_iter_", 0)) >= max_iterations:
            lines.append(
                f"{value}: stopped at {max_iterations} iterations, not converged; likely, classes overlap in these "
                f"features: use smaller {setting}, or give max_iterations=N"
            )
        return lines


def _fit(search: Any, rows: np.ndarray, labels: np.ndarray, *, num_threads: int) -> None:
    """Fit a search in threads; a machine that has not converged is told by a warning of the probe's own."""
    from joblib import parallel_config
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings(), parallel_config(backend="threading", n_jobs=num_threads):
        warnings.simplefilter("ignore", ConvergenceWarning)
        search.fit(rows, labels)


def describe_choice(values: Sequence[float], num_folds: int) -> str:
    """Describe how a setting is chosen."""
    if len(values) == 1:
        return f"{values[0]:g}, given"
    return f"by {num_folds}-fold cross-validation on the training part"


@registry.probes.add("svm")
class SVM(CrossValidated):
    """Linear SVM, one against one, on plain features, as published.

    `standardise`: scale each dimension to zero mean and unit deviation of the training rows, in every fold separately.
    If classes overlap, a large C needs very many iterations: after `max_iterations` for a pair of classes the SVM
    stops, which is told. Source: Afham et al. 2022, section 4.1 (protocol); scikit-learn's SVC.
    """

    most_rows: ClassVar[int | None] = 20_000
    """Maximum of training rows: the products of all pairs take 8 bytes each, here 3.2 GB."""
    setting, parameter = "C", "svc__C"

    def __init__(
        self,
        *,
        C: tuple[PositiveFloat, ...] = COSTS,
        folds: Folds = _FOLDS,
        standardise: bool = False,
        max_iterations: Count = 1_000_000,
        seed: Seed = 0,
    ) -> None:
        super().__init__(C, folds=folds, seed=seed)
        self.is_standardised = standardise
        self.max_iterations = max_iterations
        self.metric = "probe_svm_accuracy" + ("_standardised" if standardise else "")
        self.title = f"scikit-learn SVC(kernel=linear), one against one, {'standardised' if standardise else 'plain'}"

    def make_pipeline(self) -> Any:
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import SVC

        machine = SVC(kernel="linear" if self.is_standardised else "precomputed", max_iter=self.max_iterations)
        return make_pipeline(StandardScaler(), machine) if self.is_standardised else make_pipeline(machine)

    def prepare(self, train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the products of plain rows, which all C and folds share; of standardised features the rows."""
        return (train, test) if self.is_standardised else (train @ train.T, test @ train.T)


@registry.probes.add("knn")
class KNN(CrossValidated):
    """Nearest neighbours by cosine similarity, votes without weights; the usual k in the literature is 20.

    Source: Wu et al. 2018, section 3.4; scikit-learn's KNeighborsClassifier.
    """

    metric, setting, parameter = "probe_knn_accuracy", "k", "kneighborsclassifier__n_neighbors"
    title = "scikit-learn KNeighborsClassifier by cosine, votes without weights"

    def __init__(self, *, k: tuple[Count, ...] = (1, 5, 10, 20, 50), folds: Folds = 5, seed: Seed = 0) -> None:
        super().__init__(k, folds=folds, seed=seed)

    def make_pipeline(self) -> Any:
        from sklearn.neighbors import KNeighborsClassifier
        from sklearn.pipeline import make_pipeline

        return make_pipeline(KNeighborsClassifier(metric="cosine"))

    def __call__(self, train: Features, test: Features) -> Outcome:
        """Compute the test accuracy. Raises ConfigError for more neighbours than a fold has samples."""
        fold_size = len(train) - -(-len(train) // self.num_folds)
        if self.values[-1] > fold_size:
            raise ConfigError(
                f"k: found {self.values[-1]}, a fold has {fold_size} training samples; give fewer neighbours"
            )
        return super().__call__(train, test)
