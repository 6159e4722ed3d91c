"""Neighbours agree with a slow reading of the definition, logistic regression with scikit-learn's pipeline."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sightline.contract.errors import ConfigError
from sightline.workbench.probe.classifiers import stratified_folds
from sightline.workbench.probe.features import Features
from sightline.workbench.probe.linear import KNN, Linear, majority_vote, nearest_labels
from tests.probe.blobs import blobs


def slow_answer(train: Features, row: np.ndarray, k: int) -> int:
    """Sort by angle, take k, count; equal counts go to the class that is met first."""
    wide = train.rows.astype(np.float64)
    cosines = [float(each @ row / (np.linalg.norm(each) * np.linalg.norm(row))) for each in wide]
    near = sorted(range(len(wide)), key=lambda place: -cosines[place])[:k]
    counts = Counter(int(train.labels[place]) for place in near)
    most = max(counts.values())
    return next(int(train.labels[place]) for place in near if counts[int(train.labels[place])] == most)


@pytest.mark.parametrize("k", [1, 2, 7])
def test_neighbours_by_definition(k: int) -> None:
    train, test = blobs(120, apart=0.4)
    answers = majority_vote(nearest_labels(train, test.rows, num_neighbours=k))
    assert answers.tolist() == [slow_answer(train, row.astype(np.float64), k) for row in test.rows]


def test_neighbours_do_not_see_the_length_of_features() -> None:
    train, test = blobs(240, apart=0.4)
    lengths = np.random.default_rng(0).uniform(0.1, 9, (len(train), 1)).astype(np.float32)
    longer = Features(train.rows * lengths, train.labels)
    assert KNN(k=(5,))(train, test).metrics == KNN(k=(5,))(longer, test).metrics


def test_votes_by_hand() -> None:
    assert majority_vote(np.array([[3, 1, 1], [2, 0, 1], [0, 4, 4], [5, 6, 6]])).tolist() == [1, 2, 4, 6]
    assert majority_vote(np.array([[1, 2, 2, 1]])).tolist() == [1]


def test_the_number_of_neighbours_is_chosen_on_the_training_part() -> None:
    train, test = blobs(240, apart=0.4)
    wrong = Features(test.rows, (test.labels + 1) % 5)
    outcome, fooled = KNN()(train, test), KNN()(train, wrong)
    assert outcome.details["k"] == fooled.details["k"]
    table = {row["k"]: row["cross_validated_accuracy"] for row in outcome.details["table"]}
    assert table[outcome.details["k"]] == max(table.values())
    with pytest.raises(ConfigError, match="a fold has 128 training samples"):
        KNN(k=(129,))(train, test)


def test_logistic_regression_as_a_pipeline() -> None:
    train, test = blobs(240, apart=0.5)
    outcome = Linear(C=(0.01, 1.0), seed=2)(train, test)
    folds = stratified_folds(train.labels, num_folds=3, seed=2)
    rows = train.rows.astype(np.float64)
    for row in outcome.details["table"]:
        machine = make_pipeline(StandardScaler(), LogisticRegression(C=row["C"], max_iter=200))
        scores = cross_val_score(machine, rows, train.labels, cv=folds)
        assert row["cross_validated_accuracy"] == pytest.approx(scores.mean())
        assert row["test_accuracy_not_for_choosing"] == machine.fit(rows, train.labels).score(
            test.rows.astype(np.float64), test.labels
        )
        assert row["converged"]
    best = max(outcome.details["table"], key=lambda row: row["cross_validated_accuracy"])
    assert outcome.metrics == {"probe_linear_accuracy": best["test_accuracy_not_for_choosing"]}


def test_a_fit_that_was_cut_short_is_marked() -> None:
    train, test = blobs(240, apart=0.5)
    outcome = Linear(C=(1.0,), max_iterations=1)(train, test)
    assert [row["converged"] for row in outcome.details["table"]] == [False]
    assert "not converged" in outcome.tables[0].rows[0][-1]
