"""Logistic regression on frozen features."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from sightline import registry
from sightline.arguments import Count, PositiveFloat, Seed
from sightline.errors import ConfigError
from sightline.probe.classifiers import Folds, logistic_regression, require_sklearn, standardise
from sightline.probe.features import Features
from sightline.probe.folds import stratified_folds
from sightline.probe.outcome import Outcome, Table

__all__ = ["Linear"]


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
