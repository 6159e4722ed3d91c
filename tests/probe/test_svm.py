"""The linear SVM agrees with scikit-learn's own search and the authors' numbers, and obeys the scale law."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from sightline.contract.errors import DataError
from sightline.workbench.probe.classifiers import chance_accuracy, stratified_folds, support_vector_machine
from sightline.workbench.probe.features import Features, feature_statistics
from sightline.workbench.probe.svm import COSTS, SVM
from tests.golden_parity import load_golden
from tests.probe.blobs import blobs


@pytest.mark.shared
@pytest.mark.parametrize("case", range(4))
def test_golden_linear_machines(shared: Path, case: int) -> None:
    arrays = load_golden(shared, "fn_svm_fewshot").arrays
    golden = {name.partition(".")[2]: value for name, value in arrays.items() if name.startswith(f"linear{case}.")}
    cost = float(golden["C"])
    train = Features(golden["train"], golden["train_y"])
    (answers,) = SVM(C=(cost,)).predict_all_costs(train, golden["test"])
    predicted = answers.classes
    assert answers.has_converged
    assert np.array_equal(predicted, golden["pred"])
    assert (predicted == golden["test_y"]).mean() == golden["accuracy"]
    machine = support_vector_machine(cost, kernel="precomputed").fit(train.rows @ train.rows.T, train.labels)
    assert np.array_equal(machine.n_support_, golden["n_support"])
    # Both stop where no pair of multipliers breaks the optimality conditions by more than 1e-3.
    assert np.allclose(machine.decision_function(golden["test"] @ train.rows.T), golden["decision_ovr"], atol=1e-3)


@pytest.mark.parametrize("is_standardised", [False, True])
def test_the_table_is_that_of_a_grid_search(is_standardised: bool) -> None:
    """With the scaler inside the search, so that no fold is scaled by rows that it is scored on."""
    train, test = blobs(240, apart=0.5)
    machine = make_pipeline(StandardScaler(), SVC(kernel="linear")) if is_standardised else SVC(kernel="linear")
    key = "svc__C" if is_standardised else "C"
    folds = stratified_folds(train.labels, num_folds=4, seed=3)
    search = GridSearchCV(machine, {key: list(COSTS)}, cv=folds).fit(train.rows.astype(np.float64), train.labels)
    outcome = SVM(folds=4, standardise="yes" if is_standardised else "no", seed=3)(train, test)
    table = outcome.details["table"]
    assert [row["C"] for row in table] == list(COSTS)
    assert np.allclose([row["cross_validated_accuracy"] for row in table], search.cv_results_["mean_test_score"])
    assert np.allclose([row["cross_validated_std"] for row in table], search.cv_results_["std_test_score"])
    (name,) = outcome.metrics
    assert outcome.details["C"][name] == search.best_params_[key]
    assert outcome.metrics[name] == search.score(test.rows.astype(np.float64), test.labels)
    assert [row["is_chosen"] for row in table].count(True) == 1


def test_the_chosen_cost_does_not_see_the_test_part() -> None:
    """Test labels that are all wrong change the figures and not the choice."""
    train, test = blobs(240, apart=0.5)
    wrong = Features(test.rows, (test.labels + 1) % 5)
    honest, fooled = (SVM()(train, each).details for each in (test, wrong))
    assert honest["C"] == fooled["C"]


@pytest.mark.parametrize("scale", [0.1, 0.125, 30.0])
def test_scale_law(scale: float) -> None:
    """w.x + b with |w|^2 / 2 + C * slack: in s*x the same w.x has |w|^2 / s^2, so C becomes C / s^2."""
    train, test = blobs(240, apart=0.5)
    scaled = Features((scale * train.rows.astype(np.float64)), train.labels)
    plain = SVM().predict_all_costs(train, test.rows)
    other = SVM(C=tuple(cost / scale**2 for cost in COSTS)).predict_all_costs(
        scaled, scale * test.rows.astype(np.float64)
    )
    for cost, ours, theirs in zip(COSTS, plain, other, strict=True):
        assert (ours.classes == theirs.classes).mean() > 0.99, cost  # a row on a border may fall to either side


@pytest.mark.parametrize("costs", [(0.01, 1.0), (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0), (0.1,)])
def test_a_choice_at_the_end_of_the_grid_is_told(costs: tuple[float, ...]) -> None:
    train, test = blobs(240, apart=0.5)
    outcome = SVM(standardise="no", C=costs)(train, test)
    (chosen,) = outcome.details["C"].values()
    is_told = any(f"C={chosen:g} is the end of the grid" in line for line in outcome.warnings)
    assert is_told == (len(costs) > 1 and chosen in (costs[0], costs[-1]))


@pytest.mark.parametrize("form", ["no", "yes"])
def test_machines_that_stopped_early_are_told(form: Literal["no", "yes"]) -> None:
    """Labels without any relation to the features: C=1e4 needs far more than 500 iterations, C=1e-5 does not."""
    train, test = blobs(600, apart=0.0)
    outcome = SVM(standardise=form, C=(1e-5, 1e4), max_iterations=500)(train, test)
    assert [row["converged"] for row in outcome.details["table"]] == [True, False]
    (told,) = [line for line in outcome.warnings if "stopped at 500 iterations" in line]
    assert told.startswith(f"C=10000 ({'standardised' if form == 'yes' else 'plain'} features)")
    assert "not converged" in str(outcome.tables[0].rows[1][-1])


def test_nothing_is_said_of_machines_that_came_to_their_end() -> None:
    train, test = blobs(240, apart=0.5)
    outcome = SVM()(train, test)
    assert all(row["converged"] for row in outcome.details["table"])
    assert not any("stopped at" in line for line in outcome.warnings)


# --- folds and statistics ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_folds", [2, 3, 5])
def test_folds_are_stratified_and_hold_every_sample_out_once(num_folds: int) -> None:
    labels = np.random.default_rng(0).choice(4, size=101, p=[0.6, 0.2, 0.15, 0.05])
    folds = stratified_folds(labels, num_folds=num_folds, seed=1)
    held = np.concatenate([held_out for _, held_out in folds])
    assert np.array_equal(np.sort(held), np.arange(101))
    for kept, held_out in folds:
        assert np.array_equal(np.sort(np.concatenate([kept, held_out])), np.arange(101))
    counts = np.array([np.bincount(labels[held_out], minlength=4) for _, held_out in folds])
    assert (counts.max(axis=0) - counts.min(axis=0) <= 1).all()
    assert np.ptp(counts.sum(axis=1)) <= 1
    again = stratified_folds(labels, num_folds=num_folds, seed=1)
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(folds, again, strict=True))
    other = stratified_folds(labels, num_folds=num_folds, seed=2)
    assert any(not np.array_equal(a[1], b[1]) for a, b in zip(folds, other, strict=True))


def test_one_class_cannot_be_probed() -> None:
    with pytest.raises(DataError, match="leave no two classes"):
        stratified_folds(np.zeros(10, np.int64), num_folds=2, seed=0)


def test_statistics_by_hand() -> None:
    rows = np.array([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0], [3.0, -4.0, 0.0], [0.0, 0.0, 0.0]], np.float32)
    told = feature_statistics(rows)
    assert told["width"] == 3
    assert told["mean_norm"] == 2.5
    assert told["deviation_smallest"] == 0.0
    assert told["deviation_median"] == 1.5
    assert told["deviation_largest"] == pytest.approx(8**0.5)
    assert told["variance"] == pytest.approx(1.5**2 + 8)
    assert told["dead_share"] == pytest.approx(1 / 3)


def test_chance_by_hand() -> None:
    told = chance_accuracy(np.array([0, 1, 1, 1]), np.array([0, 1, 1, 2, 0]), 4)
    assert told == {"uniform_guess": 0.25, "largest_class": 0.4}
