"""Classifiers of scikit-learn whose one setting is chosen by cross-validation on the training split."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from annotated_types import Ge, Le

from sightline.contract import registry
from sightline.contract.arguments import Count, PositiveFloat, Seed
from sightline.contract.draws import Draws
from sightline.contract.errors import ConfigError
from sightline.contract.types import SampleKey
from sightline.workbench.probe.features import Features, Scale
from sightline.workbench.probe.methods import (
    Outcome,
    Probe,
    Table,
    UnprobableError,
    assert_fits,
    require_sklearn,
    start,
)

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


class CrossValidated(Probe):
    """Classifier with one setting, chosen by a seeded, stratified cross-validation on the training split.

    Of `values` that are equally good the smallest is chosen; one value is used as given. The test accuracy of every
    value is in the table, and none of them takes part in the choice. A class states the `metric`, the name of the
    `setting`, its `lowest` useful value, and the `title` of its table.
    """

    most_rows: ClassVar[int | None] = None
    metric: str
    setting: ClassVar[str]
    lowest: ClassVar[float] = 0.0
    title: str

    def __init__(self, values: Sequence[float], *, folds: int, seed: int) -> None:
        if not values:
            raise ConfigError(f"{self.setting}: found [], allowed is at least one number")
        require_sklearn()
        self.values = sorted(set(values))
        self.num_folds = folds
        self.seed = seed

    def prepare(self, train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return what `predict_all` takes for the features of both splits, in float64."""
        return train, test

    def select(self, rows: np.ndarray, queries: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Select the rows of `known` samples, and what queries need of them."""
        return rows[known], queries

    def predict_all(self, rows: np.ndarray, labels: np.ndarray, queries: np.ndarray) -> Iterator[tuple[Any, bool]]:
        """Yield for each value the classes (M,) of the queries (M, D), and whether its fit has converged."""
        raise NotImplementedError

    def list_scales(self, train: Features) -> dict[str, list[str]]:
        """List further columns of the table by name: a text for each value."""
        return {}

    def __call__(self, train: Features, test: Features) -> Outcome:
        """Compute the test accuracy with the chosen value, and a table of all values."""
        assert_fits(self, len(train))
        fold_of = assign_folds(train.labels, num_folds=self.num_folds, seed=self.seed)
        by_class = np.argsort(train.labels, kind="stable")  # rows of a pair of classes stand together in memory
        train, fold_of = train.take(by_class), fold_of[by_class]
        accuracies, has_converged = self._score_all(train, test, fold_of)
        validated, tested = accuracies[:, :-1], accuracies[:, -1]
        means = validated.mean(axis=1)
        chosen = int(means.argmax())
        scales = self.list_scales(train)
        table = [
            (
                f"{value:g}",
                *(texts[index] for texts in scales.values()),
                float(means[index]),
                float(validated[index].std()),
                float(tested[index]),
                _join_marks(index == chosen, bool(has_converged[index])),
            )
            for index, value in enumerate(self.values)
        ]
        return Outcome(
            {self.metric: float(tested[chosen])},
            {},
            Table(
                f"{self.title}; the column test chooses nothing",
                (self.setting, *scales, "cross-validated", "+-", "test", ""),
                table,
            ),
            (f"{self.title}; {self.setting} {self._describe_choice()}",),
            tuple(self._list_warnings(chosen, has_converged=bool(has_converged[chosen]))),
        )

    def _score_all(self, train: Features, test: Features, fold_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compute the accuracies (values, folds + 1), the test split's last, and which values have always converged."""
        from joblib import Parallel, delayed
        from sklearn.exceptions import ConvergenceWarning

        rows, test_rows = self.prepare(train.rows.astype(np.float64), test.rows.astype(np.float64))

        def score(fold: int | None) -> list[tuple[float, bool]]:
            known_rows, known, queries, expected = rows, train.labels, test_rows, test.labels
            if fold is not None:
                is_known = fold_of != fold
                known, expected = train.labels[is_known], train.labels[~is_known]
                known_rows, queries = self.select(rows, rows[~is_known], np.flatnonzero(is_known))
            fitted = self.predict_all(known_rows, known, queries)
            return [(float((classes == expected).mean()), is_done) for classes, is_done in fitted]

        def score_all() -> list[list[tuple[float, bool]]]:
            threads = max(1, min(torch.get_num_threads(), _MAX_THREADS))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # the table marks it, and a warning of our own
                folds = [*range(self.num_folds), None]
                return list(Parallel(threads, backend="threading")(delayed(score)(fold) for fold in folds))

        accuracies, has_converged = np.moveaxis(np.array(start(score_all).result()), (0, 1, 2), (2, 1, 0))
        return np.ascontiguousarray(accuracies), has_converged.all(axis=1)

    def _describe_choice(self) -> str:
        if len(self.values) == 1:
            return f"{self.values[0]:g}, given"
        return f"by {self.num_folds}-fold cross-validation on the training part"

    def _list_warnings(self, chosen: int, *, has_converged: bool) -> list[str]:
        value, lines = f"{self.setting}={self.values[chosen]:g}", []
        is_end = chosen == len(self.values) - 1 or (chosen == 0 and self.values[0] > self.lowest)
        if len(self.values) > 1 and is_end:
            lines.append(f"the chosen {value} is the end of the grid: a wider grid may be better, {self.setting}=[...]")
        return lines if has_converged else [*lines, f"{value}: {self.describe_stop()}"]

    def describe_stop(self) -> str:
        """Describe why a fit has not converged, and what to do."""
        raise NotImplementedError


def _join_marks(is_chosen: bool, has_converged: bool) -> str:
    return ", ".join(["chosen"] * is_chosen + ["not converged"] * (not has_converged))


class Penalised(CrossValidated):
    """Linear classifier whose C weighs the errors against the norm of its weights.

    A classifier of s times the features with C is that of the features with s^2 C, so that C alone means nothing: the
    table states `C x variance`, the same at every scale. The variance is the sum over all dimensions of the training
    rows. `is_standardised`: each dimension is scaled to mean 0 and deviation 1 of the rows to learn from, in every fold
    separately, and its variance is then 1, or 0 where it never changes.
    """

    setting = "C"
    is_standardised: bool
    max_iterations: int

    def make_machine(self, cost: float) -> Any:
        """Make scikit-learn's unfitted classifier."""
        raise NotImplementedError

    def predict_all(self, rows: np.ndarray, labels: np.ndarray, queries: np.ndarray) -> Iterator[tuple[Any, bool]]:
        for cost in self.values:
            machine = self.make_machine(cost).fit(rows, labels)
            yield machine.predict(queries), bool(np.max(machine.n_iter_) < self.max_iterations)

    def list_scales(self, train: Features) -> dict[str, list[str]]:
        scale = Scale.of(train)
        variance = scale.width * (1 - scale.constant_share) if self.is_standardised else scale.variance
        return {"C x variance": [f"{cost * variance:.3g}" for cost in self.values]}

    def describe_stop(self) -> str:
        return (
            f"stopped at {self.max_iterations} iterations, not converged; likely, classes overlap in these features: "
            "use smaller C, or give max_iterations=N"
        )


def standardise(known: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale the columns of both (N, D) and (M, D) to mean 0 and deviation 1 of `known`; constant columns become 0."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(known)
    return scaler.transform(known), scaler.transform(queries)


@registry.probes.add("svm")
class SVM(Penalised):
    """Linear SVM, one against one, on plain features, as published.

    C is chosen by a seeded, stratified cross-validation on the training split: of values that are equally good the
    smallest, and one value is used as given. `standardise` scales each dimension to mean 0 and deviation 1 of the rows
    to learn from. If classes overlap, a large C needs very many iterations: after `max_iterations` for a pair of
    classes the SVM stops, and the table marks it. Source: Afham et al. 2022, section 4.1 (protocol); scikit-learn's
    SVC.
    """

    most_rows: ClassVar[int | None] = 20_000
    """Maximum of training rows: the products of all pairs take 8 bytes each, here 3.2 GB."""

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
        self.metric = "probe_svm_accuracy" + "_standardised" * standardise
        self.title = f"scikit-learn SVC(kernel=linear), one against one, {'standardised' if standardise else 'plain'}"

    def make_machine(self, cost: float) -> Any:
        """Make scikit-learn's unfitted machine, which takes the products of rows: all C share them."""
        from sklearn.svm import SVC

        return SVC(C=cost, kernel="precomputed", max_iter=self.max_iterations)

    def prepare(self, train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the products of plain rows, which all folds share, too; standardised rows differ in each."""
        return (train, test) if self.is_standardised else (train @ train.T, test @ train.T)

    def select(self, rows: np.ndarray, queries: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return (rows[known], queries) if self.is_standardised else (rows[np.ix_(known, known)], queries[:, known])

    def predict_all(self, rows: np.ndarray, labels: np.ndarray, queries: np.ndarray) -> Iterator[tuple[Any, bool]]:
        if self.is_standardised:
            known, scored = standardise(rows, queries)
            rows, queries = known @ known.T, scored @ known.T
        return super().predict_all(rows, labels, queries)


@registry.probes.add("linear")
class Linear(Penalised):
    """Multinomial logistic regression with an L2 penalty, on standardised features.

    C is chosen as that of the SVM; `standardise=false` takes plain features. A fit stops after `max_iterations`, and
    the table marks it. Source: Alain and Bengio 2016, section 3 (linear classifier probes); scikit-learn's
    LogisticRegression.
    """

    metric = "probe_linear_accuracy"

    def __init__(
        self,
        *,
        C: tuple[PositiveFloat, ...] = (1e-3, 1e-2, 0.1, 1.0),
        folds: Folds = _FOLDS,
        standardise: bool = True,
        max_iterations: Count = 200,
        seed: Seed = 0,
    ) -> None:
        super().__init__(C, folds=folds, seed=seed)
        self.is_standardised = standardise
        self.max_iterations = max_iterations
        self.title = f"scikit-learn LogisticRegression, {'standardised' if standardise else 'plain'}"

    def make_machine(self, cost: float) -> Any:
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression(C=cost, max_iter=self.max_iterations)

    def predict_all(self, rows: np.ndarray, labels: np.ndarray, queries: np.ndarray) -> Iterator[tuple[Any, bool]]:
        known, scored = standardise(rows, queries) if self.is_standardised else (rows, queries)
        return super().predict_all(known, labels, scored)


@registry.probes.add("knn")
class KNN(CrossValidated):
    """Votes of the k nearest training features by cosine similarity.

    k is chosen by a seeded, stratified cross-validation on the training split. All votes count 1, or exp(similarity /
    `temperature`) if that is given: 0.07 with k=200 is the published setting. Of classes with equal votes the first
    wins. Source: Wu et al. 2018, section 3.4; scikit-learn's NearestNeighbors.
    """

    metric, setting, lowest = "probe_knn_accuracy", "k", 1.0

    def __init__(
        self,
        *,
        k: tuple[Count, ...] = (1, 5, 10, 20, 50),
        temperature: PositiveFloat | None = None,
        folds: Folds = _FOLDS,
        seed: Seed = 0,
    ) -> None:
        super().__init__(k, folds=folds, seed=seed)
        self.temperature = temperature
        weights = "equal votes" if temperature is None else f"votes exp(similarity / {temperature:g})"
        self.title = f"scikit-learn NearestNeighbors by cosine, {weights}"

    def predict_all(self, rows: np.ndarray, labels: np.ndarray, queries: np.ndarray) -> Iterator[tuple[Any, bool]]:
        from sklearn.neighbors import NearestNeighbors

        most = int(self.values[-1])
        if most > len(rows):
            raise ConfigError(f"k: found {most}, a fold has {len(rows)} training samples; give fewer: k=[1, 5]")
        nearest = NearestNeighbors(n_neighbors=most, algorithm="brute", metric="cosine").fit(rows)
        distances, indices = nearest.kneighbors(queries)
        classes, class_of = np.unique(labels, return_inverse=True)
        votes, everyone = np.zeros((len(queries), len(classes))), np.arange(len(queries))
        for rank in range(most):
            further = (
                distances[:, rank] - distances[:, 0]
            )  # the same winners, and no vote of all is too small for a float
            weights = 1.0 if self.temperature is None else np.exp(-further / self.temperature)
            votes[everyone, class_of[indices[:, rank]]] += weights
            if rank + 1 in self.values:
                yield classes[votes.argmax(axis=1)], True
