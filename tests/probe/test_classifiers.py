"""Classifiers agree with golden machines and with scikit-learn's grid search, and choose on the training part alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import ClassifierMixin, clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from sightline.contract.errors import ConfigError, DataError
from sightline.workbench.probe.classifiers import COSTS, KNN, SVM, CrossValidated, Linear, assign_folds
from sightline.workbench.probe.features import Features, Scale
from sightline.workbench.probe.methods import chance_accuracy
from tests.cases import run_each
from tests.golden_parity import load_golden
from tests.probe.blobs import blobs


@pytest.mark.shared
@pytest.mark.parametrize("case", range(4))
def test_golden_linear_machines(shared: Path, case: int) -> None:
    arrays = load_golden(shared, "fn_svm_fewshot").arrays
    golden = {name.partition(".")[2]: value for name, value in arrays.items() if name.startswith(f"linear{case}.")}
    train, test = golden["train"].astype(np.float64), golden["test"].astype(np.float64)
    machine = SVM().make_machine(float(golden["C"])).fit(train @ train.T, golden["train_y"])
    queries = test @ train.T
    predicted = machine.predict(queries)
    assert np.array_equal(predicted, golden["pred"])
    assert (predicted == golden["test_y"]).mean() == golden["accuracy"]
    assert np.array_equal(machine.n_support_, golden["n_support"])
    # Both stop where no pair of multipliers breaks the optimality conditions by more than 1e-3.
    assert np.allclose(machine.decision_function(queries), golden["decision_ovr"], atol=1e-3)


def scaled(machine: ClassifierMixin) -> Pipeline:
    """A pipeline, so that no fold is scaled by rows that it is scored on."""
    return make_pipeline(StandardScaler(), machine)


def neighbours(**arguments: Any) -> KNeighborsClassifier:
    return KNeighborsClassifier(metric="cosine", algorithm="brute", **arguments)


def published_votes(distances: np.ndarray) -> np.ndarray:
    return np.exp((1 - distances) / 0.07)


@run_each(
    "probe, reference, parameter",
    [
        (SVM(folds=4, seed=3), SVC(kernel="linear"), "C"),
        (SVM(folds=4, seed=3, standardise=True), scaled(SVC(kernel="linear")), "svc__C"),
        (Linear(folds=4, seed=3), scaled(LogisticRegression(max_iter=200)), "logisticregression__C"),
        (Linear(folds=4, seed=3, standardise=False), LogisticRegression(max_iter=200), "C"),
        (KNN(folds=4, seed=3), neighbours(), "n_neighbors"),
        (KNN(folds=4, seed=3, temperature=0.07), neighbours(weights=published_votes), "n_neighbors"),
    ],
)
def test_a_table_is_that_of_a_grid_search(
    probe: CrossValidated, reference: ClassifierMixin | Pipeline, parameter: str
) -> None:
    train, test = blobs(240, apart=0.5)
    folds = PredefinedSplit(assign_folds(train.labels, num_folds=4, seed=3))
    rows, test_rows = train.rows.astype(np.float64), test.rows.astype(np.float64)
    search = GridSearchCV(reference, {parameter: probe.values}, cv=folds).fit(rows, train.labels)
    outcome = probe(train, test)
    columns = dict(zip(outcome.table.columns, zip(*outcome.table.rows, strict=True), strict=True))
    assert columns[probe.setting] == tuple(f"{value:g}" for value in probe.values)
    assert np.allclose(columns["cross-validated"], search.cv_results_["mean_test_score"])
    assert np.allclose(columns["+-"], search.cv_results_["std_test_score"])
    fitted = [clone(reference).set_params(**{parameter: value}).fit(rows, train.labels) for value in probe.values]
    assert columns["test"] == tuple(machine.score(test_rows, test.labels) for machine in fitted)
    assert columns[""].index("chosen") == probe.values.index(search.best_params_[parameter])
    assert outcome.metrics == {probe.metric: search.score(test_rows, test.labels)}


@run_each("make", [SVM, Linear, KNN])
def test_the_choice_does_not_see_the_test_part(make: Callable[[], CrossValidated]) -> None:
    """Test labels that are all wrong change the figures and not the choice."""
    train, test = blobs(240, apart=0.5)
    honest, fooled = (make()(train, Features(test.rows, (test.labels + wrong) % 5)) for wrong in (0, 1))
    at_test = honest.table.columns.index("test")
    ours, theirs = ([(*row[:at_test], row[-1]) for row in outcome.table.rows] for outcome in (honest, fooled))
    assert ours == theirs
    assert honest.metrics != fooled.metrics


@run_each("standardise", [False, True])
def test_a_cost_times_the_variance_is_the_same_at_every_scale(standardise: bool) -> None:
    """Four times the features with C / 16, exactly, as 4 is a power of two; standardised ones have no scale."""
    train, test = blobs(240, apart=0.5)
    wide = [Features(4 * part.rows, part.labels) for part in (train, test)]
    costs = COSTS if standardise else tuple(cost / 16 for cost in COSTS)
    small, large = SVM(standardise=standardise)(train, test), SVM(C=costs, standardise=standardise)(*wide)
    assert [row[1:] for row in small.table.rows] == [row[1:] for row in large.table.rows]
    products = [float(row[1]) for row in small.table.rows]
    variance = 16 if standardise else np.var(train.rows.astype(np.float64), axis=0).sum()
    assert products == pytest.approx([cost * variance for cost in COSTS], rel=5e-3)  # three digits


def test_votes_by_hand() -> None:
    """Angles of 0, 10, 20, 30 and 40 degrees to the query; the length of a feature does not count."""
    angles, lengths = np.radians([0, 10, 20, 30, 40] * 2), np.linspace(1, 9, 10)
    rows = (np.stack([np.cos(angles), np.sin(angles)], 1) * lengths[:, None]).astype(np.float32)
    labels = np.array([2, 1, 1, 0, 0] * 2)  # one of each in both folds
    query = np.array([[3.0, 0.0]])
    for k, temperature, expected in [(2, None, 2), (6, None, 1), (10, None, 0), (6, 0.01, 2), (10, 1e-6, 2)]:
        ((classes, _),) = KNN(k=(k,), temperature=temperature).predict_all(rows, labels, query)
        assert classes.tolist() == [expected], (k, temperature)
    with pytest.raises(ConfigError, match=r"k: found 9, a fold has 8 training samples; give fewer: k=\[1, 5\]"):
        KNN(k=(9,))(Features(rows, labels), Features(rows, labels))


def test_the_scale_of_features_by_hand() -> None:
    """Norms 5, 0 and 10; variances 10, 14 less the squares of the means, and 0 of a dimension that never changes."""
    scale = Scale.of(Features(np.array([[3, 4, 0], [0, 0, 0], [6, 8, 0]], np.float32), np.zeros(3, np.int64)))
    assert (scale.width, scale.mean_norm, scale.constant_share) == (3, 5.0, pytest.approx(1 / 3))
    assert scale.variance == pytest.approx((15 - 9) + (80 / 3 - 16))


@pytest.mark.parametrize("costs", [(0.01, 1.0), (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0), (0.1,)])
def test_a_choice_at_the_end_of_the_grid_is_told(costs: tuple[float, ...]) -> None:
    train, test = blobs(240, apart=0.5)
    outcome = SVM(C=costs)(train, test)
    (chosen,) = (row[0] for row in outcome.table.rows if row[-1] == "chosen")
    is_told = any(f"C={chosen} is the end of the grid" in line for line in outcome.warnings)
    assert is_told == (len(costs) > 1 and float(chosen) in (costs[0], costs[-1]))


@run_each(
    "make, slow, quick, most",
    [(SVM, 1e4, 1e-5, 500), (partial(SVM, standardise=True), 1e4, 1e-5, 500), (Linear, 1e-5, 1e4, 8)],
)
def test_a_machine_that_stopped_early_is_marked(
    make: Callable[..., CrossValidated], slow: float, quick: float, most: int
) -> None:
    """Labels without any relation to the features: of one C the machine needs more iterations, of the other fewer."""
    train, test = blobs(600, apart=0.0)
    table = make(C=(slow, quick), max_iterations=most)(train, test).table
    assert {float(row[0]): "not converged" in row[-1] for row in table.rows} == {slow: True, quick: False}
    stopped, finished = (make(C=(cost,), max_iterations=most)(train, test).warnings for cost in (slow, quick))
    assert [line.partition(",")[0] for line in stopped] == [f"C={slow:g}: stopped at {most} iterations"]
    assert finished == ()


@pytest.mark.parametrize("num_folds", [2, 3, 5])
def test_folds_are_stratified_and_seeded(num_folds: int) -> None:
    labels = np.random.default_rng(0).choice(4, size=101, p=[0.6, 0.2, 0.15, 0.05])
    folds = assign_folds(labels, num_folds=num_folds, seed=1)
    counts = np.array([np.bincount(labels[folds == fold], minlength=4) for fold in range(num_folds)])
    assert (counts.max(axis=0) - counts.min(axis=0) <= 1).all()
    assert np.ptp(counts.sum(axis=1)) <= 1
    assert np.array_equal(folds, assign_folds(labels, num_folds=num_folds, seed=1))
    assert not np.array_equal(folds, assign_folds(labels, num_folds=num_folds, seed=2))


def test_one_class_cannot_be_probed() -> None:
    with pytest.raises(DataError, match="leave no two classes"):
        assign_folds(np.zeros(10, np.int64), num_folds=2, seed=0)


def test_chance_by_hand() -> None:
    told = chance_accuracy(np.array([0, 1, 1, 1]), np.array([0, 1, 1, 2, 0]), 4)
    assert told == {"uniform_guess": 0.25, "largest_class": 0.4}
