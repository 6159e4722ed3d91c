"""Classifiers agree with golden machines and with scikit-learn's grid search, and choose on the training part alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.svm import SVC

from sightline.contract.errors import DataError
from sightline.workbench.probe.classifiers import COSTS, SVM, assign_folds
from sightline.workbench.probe.features import Features
from sightline.workbench.probe.methods import chance_accuracy
from tests.golden_parity import load_golden
from tests.probe.blobs import blobs


@pytest.mark.shared
@pytest.mark.parametrize("case", range(4))
def test_golden_linear_machines(shared: Path, case: int) -> None:
    arrays = load_golden(shared, "fn_svm_fewshot").arrays
    golden = {name.partition(".")[2]: value for name, value in arrays.items() if name.startswith(f"linear{case}.")}
    train, test = golden["train"].astype(np.float64), golden["test"].astype(np.float64)
    probe = SVM(C=(float(golden["C"]),))
    machine = probe.make_machine().set_params(C=probe.values[0]).fit(train @ train.T, golden["train_y"])
    queries = test @ train.T
    predicted = machine.predict(queries)
    assert np.array_equal(predicted, golden["pred"])
    assert (predicted == golden["test_y"]).mean() == golden["accuracy"]
    assert np.array_equal(machine.n_support_, golden["n_support"])
    # Both stop where no pair of multipliers breaks the optimality conditions by more than 1e-3.
    assert np.allclose(machine.decision_function(queries), golden["decision_ovr"], atol=1e-3)


def test_the_table_is_that_of_a_grid_search() -> None:
    train, test = blobs(240, apart=0.5)
    folds = PredefinedSplit(assign_folds(train.labels, num_folds=4, seed=3))
    search = GridSearchCV(SVC(kernel="linear"), {"C": list(COSTS)}, cv=folds)
    search.fit(train.rows.astype(np.float64), train.labels)
    outcome = SVM(folds=4, seed=3)(train, test)
    costs, means, deviations, marks = zip(*outcome.table.rows, strict=True)
    assert costs == tuple(f"{cost:g}" for cost in COSTS)
    assert np.allclose(means, search.cv_results_["mean_test_score"])
    assert np.allclose(deviations, search.cv_results_["std_test_score"])
    assert marks.index("chosen") == COSTS.index(search.best_params_["C"])
    assert list(outcome.metrics.values()) == [search.score(test.rows.astype(np.float64), test.labels)]


def test_the_choice_does_not_see_the_test_part() -> None:
    """Test labels that are all wrong change the figures and not the choice."""
    train, test = blobs(240, apart=0.5)
    honest, fooled = (SVM()(train, Features(test.rows, (test.labels + wrong) % 5)) for wrong in (0, 1))
    assert honest.table == fooled.table
    assert honest.metrics != fooled.metrics


@pytest.mark.parametrize("costs", [(0.01, 1.0), (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0), (0.1,)])
def test_a_choice_at_the_end_of_the_grid_is_told(costs: tuple[float, ...]) -> None:
    train, test = blobs(240, apart=0.5)
    outcome = SVM(C=costs)(train, test)
    (chosen,) = (row[0] for row in outcome.table.rows if row[-1] == "chosen")
    is_told = any(f"C={chosen} is the end of the grid" in line for line in outcome.warnings)
    assert is_told == (len(costs) > 1 and float(chosen) in (costs[0], costs[-1]))


def test_a_machine_that_stopped_early_is_told() -> None:
    """Labels without any relation to the features: C=1e4 needs far more than 500 iterations, C=1e-5 does not."""
    train, test = blobs(600, apart=0.0)
    stopped, finished = (SVM(C=(cost,), max_iterations=500)(train, test).warnings for cost in (1e4, 1e-5))
    assert [line.partition(",")[0] for line in stopped] == ["C=10000: stopped at 500 iterations"]
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
