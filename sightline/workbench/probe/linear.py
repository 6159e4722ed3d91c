"""Logistic regression on frozen features.

k nearest neighbours (kNN) on frozen features, by cosine similarity.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from sightline.contract import registry
from sightline.contract.arguments import Count, PositiveFloat, Seed
from sightline.contract.errors import ConfigError
from sightline.workbench.probe.classifiers import (
    Folds,
    Outcome,
    Table,
    logistic_regression,
    require_sklearn,
    standardise,
    stratified_folds,
)
from sightline.workbench.probe.features import Features


@registry.probes.add("linear")
class Linear:
    """Multinomial logistic regression with an L2 penalty on standardised features.

    C is chosen by stratified cross-validation on the training split; ties take the smaller C. A C whose fit stopped
    at `max_iterations` is marked. Source: Alain and Bengio 2016, "linear classifier probes"; scikit-learn's
    LogisticRegression.
    """

    most_rows: ClassVar[int | None] = None

    def __init__(
        self,
        *,
        C: tuple[PositiveFloat, ...] = (1e-3, 1e-2, 0.1, 1.0),
        folds: Folds = 3,
        max_iterations: Count = 200,
        seed: Seed = 0,
    ) -> None:
        if not C:
            raise ConfigError("C: found [], allowed is at least one number above 0")
        require_sklearn()
        self.costs = tuple(sorted(set(C)))
        self.num_folds = folds
        self.max_iterations = max_iterations
        self.seed = seed

    def __call__(self, train: Features, test: Features) -> Outcome:
        """Compute the test accuracy with the chosen C, and a table of all C."""
        folds = stratified_folds(train.labels, num_folds=self.num_folds, seed=self.seed)
        fold_accuracies = np.array(
            [self._accuracies(train.take(remaining), train.take(held_out))[0] for remaining, held_out in folds]
        )
        test_accuracies, converged = self._accuracies(train, test)
        validated = fold_accuracies.mean(axis=0)
        chosen = int(validated.argmax())
        rows = [
            (
                cost,
                float(validated[index]),
                float(fold_accuracies[:, index].std()),
                test_accuracies[index],
                converged[index],
            )
            for index, cost in enumerate(self.costs)
        ]
        names = ("C", "cross_validated_accuracy", "cross_validated_std", "test_accuracy_not_for_choosing", "converged")
        marks = [
            ", ".join(filter(None, ["chosen" if index == chosen else "", "" if row[-1] else "not converged"]))
            for index, row in enumerate(rows)
        ]
        return Outcome(
            metrics={"probe_linear_accuracy": test_accuracies[chosen]},
            chance={},
            tables=(
                Table(
                    "logistic regression, standardised; test accuracy of a C that was not chosen is for reading alone",
                    ("C", "cross-validated", "+-", "test", ""),
                    [(f"{row[0]:g}", *row[1:-1], mark) for row, mark in zip(rows, marks, strict=True)],
                ),
            ),
            protocol=(
                "scikit-learn LogisticRegression on standardised features; C by "
                f"{self.num_folds}-fold cross-validation on the training part (seeded, stratified)",
            ),
            details={"C": self.costs[chosen], "table": [dict(zip(names, row, strict=True)) for row in rows]},
        )

    def _accuracies(self, train: Features, scored: Features) -> tuple[list[float], list[bool]]:
        train_rows, query_rows = standardise(train.rows.astype(np.float64), scored.rows.astype(np.float64))
        fitted = [
            logistic_regression(cost, train_rows, train.labels, max_iterations=self.max_iterations)
            for cost in self.costs
        ]
        accuracies = [float((machine.predict(query_rows) == scored.labels).mean()) for machine, _ in fitted]
        return accuracies, [has_converged for _, has_converged in fitted]


_CHUNK_SIZE = 1024


@registry.probes.add("knn")
class KNN:
    """kNN classifier by cosine similarity; k is chosen by cross-validation on the training split.

    Ties go to the class of the nearest neighbour among them. A single value of `k` is used as given; the usual one in
    the literature on self-supervision is 20. Source: Wu et al. 2018, section 3.4 (cosine, votes without weights here).
    """

    most_rows: ClassVar[int | None] = None

    def __init__(self, *, k: tuple[Count, ...] = (1, 5, 10, 20, 50), folds: Folds = 5, seed: Seed = 0) -> None:
        if not k:
            raise ConfigError("k: found [], allowed is at least one number of neighbours")
        self.numbers = tuple(sorted(set(k)))
        self.num_folds = folds
        self.seed = seed

    def __call__(self, train: Features, test: Features) -> Outcome:
        """Compute the test accuracy with the chosen k, and a table of all k."""
        folds = stratified_folds(train.labels, num_folds=self.num_folds, seed=self.seed)
        fold_size = min(len(remaining) for remaining, _ in folds)
        if self.numbers[-1] > fold_size:
            raise ConfigError(
                f"k: found {self.numbers[-1]}, a fold has {fold_size} training samples; give fewer neighbours"
            )
        fold_accuracies = np.array(
            [self._accuracies(train.take(remaining), train.take(held_out)) for remaining, held_out in folds]
        )
        test_accuracies = self._accuracies(train, test)
        validated = fold_accuracies.mean(axis=0)
        chosen = int(validated.argmax())
        rows = [
            (k, float(validated[index]), float(fold_accuracies[:, index].std()), test_accuracies[index])
            for index, k in enumerate(self.numbers)
        ]
        names = ("k", "cross_validated_accuracy", "cross_validated_std", "test_accuracy_not_for_choosing")
        return Outcome(
            metrics={"probe_knn_accuracy": test_accuracies[chosen]},
            chance={},
            tables=(
                Table(
                    "nearest neighbours by cosine; test accuracy of a k that was not chosen is for reading alone",
                    ("k", "cross-validated", "+-", "test", ""),
                    [(*row, "chosen" if index == chosen else "") for index, row in enumerate(rows)],
                ),
            ),
            protocol=(
                f"nearest neighbours by cosine, votes without weights; k by {self.num_folds}-fold cross-validation on "
                "the training part (seeded, stratified)",
            ),
            details={"k": self.numbers[chosen], "table": [dict(zip(names, row, strict=True)) for row in rows]},
        )

    def _accuracies(self, train: Features, scored: Features) -> list[float]:
        labels = nearest_labels(train, scored.rows, num_neighbours=self.numbers[-1])
        return [float((majority_vote(labels[:, :k]) == scored.labels).mean()) for k in self.numbers]


def nearest_labels(train: Features, rows: np.ndarray, *, num_neighbours: int) -> np.ndarray:
    """Find the labels (N, k) of the training features nearest by cosine to each row (N, D), nearest first.

    Ties are in the order of the training samples; a feature of norm 0 has cosine 0 to all others.
    """
    directions = _normalize_rows(train.rows)
    return np.concatenate(
        [train.labels[_nearest_indices(part @ directions.T, num_neighbours)] for part in _chunks(_normalize_rows(rows))]
        or [np.zeros((0, num_neighbours), dtype=np.int64)]
    )


def majority_vote(labels: np.ndarray) -> np.ndarray:
    """Return the most frequent label of each row, (N, k) -> (N,); ties go to the label that comes first."""
    matches = (labels[:, :, None] == labels[:, None, :]).sum(axis=2)
    return labels[np.arange(len(labels)), matches.argmax(axis=1)]


def _nearest_indices(similarity: np.ndarray, num_neighbours: int) -> np.ndarray:
    return np.argsort(-similarity, axis=1, kind="stable")[:, :num_neighbours]


def _chunks(rows: np.ndarray) -> Iterator[np.ndarray]:
    return (rows[start : start + _CHUNK_SIZE] for start in range(0, len(rows), _CHUNK_SIZE))


def _normalize_rows(rows: np.ndarray) -> np.ndarray:
    wide = rows.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    return wide / np.where(norms > 0, norms, 1.0)
