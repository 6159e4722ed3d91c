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
    """Multinomial logistic regression with an L2 penalty on features of zero mean and unit deviation.

    C is chosen by stratified cross-validation on the training part; a tie takes the smaller one. A C whose fit stopped
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
        """The accuracy on the test part with the chosen C, and the table over all of them."""
        folds = stratified_folds(train.labels, num_folds=self.num_folds, seed=self.seed)
        scored = np.array([self._accuracies(train.take(kept), train.take(held))[0] for kept, held in folds])
        tested, converged = self._accuracies(train, test)
        validated = scored.mean(axis=0)
        chosen = int(validated.argmax())
        rows = [
            (cost, float(validated[place]), float(scored[:, place].std()), tested[place], converged[place])
            for place, cost in enumerate(self.costs)
        ]
        names = ("C", "cross_validated_accuracy", "cross_validated_std", "test_accuracy_not_for_choosing", "converged")
        marks = [
            ", ".join(filter(None, ["chosen" if place == chosen else "", "" if row[-1] else "not converged"]))
            for place, row in enumerate(rows)
        ]
        return Outcome(
            metrics={"probe_linear_accuracy": tested[chosen]},
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
        known, asked = standardise(train.rows.astype(np.float64), scored.rows.astype(np.float64))
        fitted = [
            logistic_regression(cost, known, train.labels, max_iterations=self.max_iterations) for cost in self.costs
        ]
        accuracies = [float((machine.predict(asked) == scored.labels).mean()) for machine, _ in fitted]
        return accuracies, [has_converged for _, has_converged in fitted]
