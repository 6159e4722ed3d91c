"""Linear SVM on frozen features, with C chosen on the training split only.

Long library calls in background threads, so that a signal ends the wait for them at once.
"""

from __future__ import annotations

import threading
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch

from sightline.contract import registry
from sightline.contract.arguments import Count, PositiveFloat, Seed
from sightline.contract.errors import ConfigError
from sightline.workbench.probe.classifiers import (
    Folds,
    Outcome,
    Table,
    assert_fits,
    require_sklearn,
    standardise,
    stratified_folds,
    support_vector_machine,
)
from sightline.workbench.probe.features import Features, feature_statistics

Item = TypeVar("Item")
Result = TypeVar("Result")


def start(call: Callable[[], Result]) -> Future[Result]:
    """Start a call in a daemon thread, which, unlike an executor's, does not delay the end of the process."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - raised by future.result()
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def map_in_threads(function: Callable[[Item], Result], items: Sequence[Item], *, num_threads: int) -> list[Result]:
    """Map a function over items in threads, in order; after an exception, no further items are started."""
    waiting = deque(enumerate(items))
    results: dict[int, Result] = {}

    def work() -> None:
        while True:
            try:
                index, item = waiting.popleft()
            except IndexError:
                return
            results[index] = function(item)

    futures = [start(work) for _ in range(min(num_threads, len(items)))]
    try:
        for future in futures:
            future.result()
    finally:
        waiting.clear()
    return [results[index] for index in range(len(items))]


COSTS = (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)
_FOLDS = 5


@dataclass(frozen=True)
class _CostResult:
    """Result of one C: accuracy in cross-validation (mean and deviation over the folds) and on the test split.

    `has_converged`: all of its SVMs converged.
    """

    cost: float
    validated: float
    spread: float
    test: float
    has_converged: bool


@dataclass(frozen=True)
class SVMPredictions:
    """Classes (N,) predicted by the SVM of one C, and whether it converged."""

    classes: np.ndarray
    has_converged: bool


def describe_choice(costs: Sequence[float] = COSTS, num_folds: int = _FOLDS) -> str:
    """Describe how C is chosen; without arguments, for the metric at the end of training."""
    if len(costs) == 1:
        return f"{costs[0]:g}, given"
    return f"by {num_folds}-fold cross-validation on the training part"


@registry.probes.add("svm")
class SVM:
    """Linear SVM (one against one); C is chosen by stratified cross-validation on the training split.

    The main metric uses unscaled features, as published; `standardise: yes` scales each dimension to zero mean and unit
    deviation of the training rows, in every fold separately. Equal to scikit-learn's SVC(kernel="linear") in a grid
    search, if the SVMs converge; ties take the smaller C. If classes overlap, a large C needs very many iterations:
    after `max_iterations` for a pair of classes the SVM stops, and the table marks it. Source: Afham et al.
    2022, section 4.1 (protocol); Chang and Lin 2011, LIBSVM.
    """

    most_rows: ClassVar[int | None] = 20_000
    """Maximum of training rows: the products of all pairs take 8 bytes each, here 3.2 GB."""

    def __init__(
        self,
        *,
        C: tuple[PositiveFloat, ...] = COSTS,
        folds: Folds = _FOLDS,
        standardise: Literal["both", "no", "yes"] = "both",
        max_iterations: Count = 1_000_000,
        seed: Seed = 0,
    ) -> None:
        require_sklearn()
        if not C:
            raise ConfigError("C: found [], allowed is at least one number above 0")
        self.costs = tuple(sorted(set(C)))
        self.num_folds = folds
        self.forms = {"both": (False, True), "no": (False,), "yes": (True,)}[standardise]
        self.max_iterations = max_iterations
        self.seed = seed

    @property
    def choice(self) -> str:
        """Description of how C is chosen."""
        return describe_choice(self.costs, self.num_folds)

    def __call__(self, train: Features, test: Features) -> Outcome:
        """Compute the test accuracy with the chosen C, and a table of all C."""
        assert_fits(self, len(train))
        tables = {form: self._search(train, test, is_standardised=form) for form in self.forms}
        chosen = {form: max(rows, key=lambda row: row.validated) for form, rows in tables.items()}
        names = {form: "probe_svm_accuracy" + ("_standardised" if form else "") for form in self.forms}
        statistics = feature_statistics(train.rows)
        notes = [self._edge_note(chosen[form], form, statistics["mean_norm"]) for form in self.forms]
        notes += [self._convergence_note(tables[form], form) for form in self.forms]
        return Outcome(
            metrics={names[form]: chosen[form].test for form in self.forms},
            chance={},
            tables=tuple(_make_table(rows, chosen[form], form, statistics) for form, rows in tables.items()),
            protocol=(
                f"scikit-learn SVC(kernel=linear), one against one; C {self.choice}; folds are seeded and stratified, "
                "test accuracies of other C chose nothing",
                "scale law: the machine on s*X with C is the one on X with s^2*C, so a C means nothing without the "
                "scale of the features; C x variance is the same at every scale",
            ),
            warnings=tuple(filter(None, notes)),
            details={
                "C": {names[form]: chosen[form].cost for form in self.forms},
                "table": [_to_plain(row, form, row is chosen[form]) for form, rows in tables.items() for row in rows],
            },
        )

    def _search(self, train: Features, test: Features, *, is_standardised: bool) -> list[_CostResult]:
        """Compute a row per C: cross-validation on the training split, and training on all of it for the test score."""
        folds = stratified_folds(train.labels, num_folds=self.num_folds, seed=self.seed)
        if is_standardised:
            parts = [(train.take(training), train.take(held_out)) for training, held_out in folds]
            predictions = [
                self.predict_all_costs(remaining, held_out.rows, is_standardised=True) for remaining, held_out in parts
            ]
        else:
            predictions = self._predict_folds(train, folds)
        labels = [train.labels[held_out] for _, held_out in folds]
        fold_accuracies = np.array(
            [_accuracies(fold, fold_labels) for fold, fold_labels in zip(predictions, labels, strict=True)]
        )
        test_predictions = self.predict_all_costs(train, test.rows, is_standardised=is_standardised)
        test_accuracies = _accuracies(test_predictions, test.labels)
        return [
            _CostResult(
                cost,
                float(fold_accuracies[:, index].mean()),
                float(fold_accuracies[:, index].std()),
                test_accuracies[index],
                all(one_fold[index].has_converged for one_fold in (*predictions, test_predictions)),
            )
            for index, cost in enumerate(self.costs)
        ]

    def predict_all_costs(
        self, train: Features, rows: np.ndarray, *, is_standardised: bool = False
    ) -> list[SVMPredictions]:
        """Predict the classes of `rows` (N, D) for each C in ascending order.

        Products of rows are computed once, in float64, and shared by all C. Rows are sorted by class, so that the
        products of a pair of classes are contiguous in memory.
        """
        order = np.argsort(train.labels, kind="stable")
        train_rows, query_rows = train.rows[order].astype(np.float64), rows.astype(np.float64)
        if is_standardised:
            train_rows, query_rows = standardise(train_rows, query_rows)
        return self._fit_and_predict(train_rows @ train_rows.T, query_rows @ train_rows.T, train.labels[order])

    def _predict_folds(
        self, train: Features, folds: Sequence[tuple[np.ndarray, np.ndarray]]
    ) -> list[list[SVMPredictions]]:
        """Predict every fold from unscaled features; the products of all training rows are computed once."""
        order = np.argsort(train.labels, kind="stable")
        rank = np.argsort(order)
        rows, labels = train.rows[order].astype(np.float64), train.labels[order]
        products = rows @ rows.T
        predictions = []
        for remaining, held_out in folds:
            train_index, query_index = np.sort(rank[remaining]), rank[held_out]
            predictions.append(
                self._fit_and_predict(
                    products[np.ix_(train_index, train_index)],
                    products[np.ix_(query_index, train_index)],
                    labels[train_index],
                )
            )
        return predictions

    def _fit_and_predict(
        self, train_products: np.ndarray, query_products: np.ndarray, labels: np.ndarray
    ) -> list[SVMPredictions]:
        """Fit an SVM per C on products of training rows, and predict from products of query and training rows.

        The values of C are distributed over threads.
        """

        def fit_and_predict(cost: float) -> SVMPredictions:
            machine = support_vector_machine(cost, kernel="precomputed", max_iterations=self.max_iterations)
            machine.fit(train_products, labels)
            return SVMPredictions(machine.predict(query_products), machine.fit_status_ == 0)

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Solver terminated early")  # the table shows it, and of which C
            return map_in_threads(fit_and_predict, self.costs, num_threads=max(1, torch.get_num_threads()))

    def _edge_note(self, row: _CostResult, form: bool, norm: float) -> str:
        if len(self.costs) < 2 or row.cost not in (self.costs[0], self.costs[-1]):
            return ""
        features = "standardised" if form else f"plain features, mean norm {norm:.3g}"
        return f"the chosen C={row.cost:g} is the end of the grid ({features}): a wider grid may be better, C=[...]"

    def _convergence_note(self, rows: Sequence[_CostResult], form: bool) -> str:
        costs = ", ".join(f"{row.cost:g}" for row in rows if not row.has_converged)
        if not costs:
            return ""
        features = "standardised" if form else "plain"
        return (
            f"C={costs} ({features} features): stopped at {self.max_iterations} iterations for a pair of classes, so "
            "its accuracies are of SVMs that have not converged; likely, classes overlap in these features: "
            "use smaller C, or give max_iterations=N"
        )


def _accuracies(predictions: Sequence[SVMPredictions], labels: np.ndarray) -> list[float]:
    return [float((prediction.classes == labels).mean()) for prediction in predictions]


def _make_table(rows: Sequence[_CostResult], chosen: _CostResult, form: bool, statistics: dict[str, float]) -> Table:
    variance = statistics["width"] * (1 - statistics["dead_share"]) if form else statistics["variance"]
    return Table(
        f"linear SVM, {'standardised' if form else 'plain'} features; test accuracy of a C that was not chosen is for "
        "reading alone",
        ("C", "C x variance", "cross-validated", "+-", "test", ""),
        [
            (f"{r.cost:g}", f"{r.cost * variance:.3g}", r.validated, r.spread, r.test, _row_mark(r, r is chosen))
            for r in rows
        ],
    )


def _row_mark(row: _CostResult, is_chosen: bool) -> str:
    return ", ".join(filter(None, ["chosen" if is_chosen else "", "" if row.has_converged else "not converged"]))


def _to_plain(row: _CostResult, form: bool, is_chosen: bool) -> dict[str, Any]:
    return {
        "C": row.cost,
        "standardised": form,
        "cross_validated_accuracy": row.validated,
        "cross_validated_std": row.spread,
        "test_accuracy_not_for_choosing": row.test,
        "converged": row.has_converged,
        "is_chosen": is_chosen,
    }
