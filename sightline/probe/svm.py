"""Linear support vector machines on frozen features, C chosen on the training part alone."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from sightline import registry
from sightline.arguments import Seed, Size
from sightline.errors import ConfigError
from sightline.probe.features import Features, statistics_of
from sightline.probe.folds import stratified_folds
from sightline.probe.learners import Folds, assert_there, standardised, support_vector_machine
from sightline.probe.outcome import Outcome, Table, assert_fits

__all__ = ["SVM", "predictions_of"]

COSTS = (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)


@dataclass(frozen=True)
class _Row:
    """One C: accuracy in cross-validation (mean and deviation over the folds) and on the test part."""

    cost: float
    validated: float
    spread: float
    test: float


@registry.probes.add("svm")
class SVM:
    """A linear SVM, one against one; C is chosen by stratified cross-validation on the training part.

    The headline is that of plain features, as published; `standardise: yes` gives each dimension zero mean and unit
    deviation first, by the rows that the machine learns from alone, in every fold anew. Equal to scikit-learn's
    SVC(kernel="linear") in a grid search; a tie takes the smaller C. Source: Afham et al. 2022, section 4.1 (protocol);
    Chang and Lin 2011, LIBSVM.
    """

    most_rows: ClassVar[int | None] = 20_000
    """The products of all pairs of rows take 8 bytes each, here 3.2 GB."""

    def __init__(
        self,
        *,
        C: tuple[Size, ...] = COSTS,
        folds: Folds = 5,
        standardise: Literal["both", "no", "yes"] = "both",
        seed: Seed = 0,
    ) -> None:
        assert_there()
        if not C:
            raise ConfigError("C: found [], allowed is at least one number above 0")
        self.costs = tuple(sorted(set(C)))
        self.num_folds = folds
        self.forms = {"both": (False, True), "no": (False,), "yes": (True,)}[standardise]
        self.seed = seed

    @property
    def choice(self) -> str:
        """How C comes about, in words."""
        if len(self.costs) == 1:
            return f"{self.costs[0]:g}, given"
        return f"by {self.num_folds}-fold cross-validation on the training part"

    def __call__(self, train: Features, test: Features) -> Outcome:
        """The accuracy on the test part with the chosen C, and the table over all of them."""
        assert_fits(self, len(train))
        tables = {form: self._search(train, test, is_standardised=form) for form in self.forms}
        chosen = {form: max(rows, key=lambda row: row.validated) for form, rows in tables.items()}
        names = {form: "probe_svm_accuracy" + ("_standardised" if form else "") for form in self.forms}
        statistics = statistics_of(train.rows)
        notes = [self._edge(chosen[form], form, statistics["mean_norm"]) for form in self.forms]
        return Outcome(
            metrics={names[form]: chosen[form].test for form in self.forms},
            chance={},
            tables=tuple(_table(rows, chosen[form], form, statistics) for form, rows in tables.items()),
            protocol=(
                f"scikit-learn SVC(kernel=linear), one against one; C {self.choice}; folds are seeded and stratified, "
                "test accuracies of other C chose nothing",
                "scale law: the machine on s*X with C is the one on X with s^2*C, so a C says nothing without the "
                "scale of the features; C x variance is the same at every scale",
            ),
            warnings=tuple(filter(None, notes)),
            details={
                "C": {names[form]: chosen[form].cost for form in self.forms},
                "table": [_plain(row, form, row is chosen[form]) for form, rows in tables.items() for row in rows],
            },
        )

    def _search(self, train: Features, test: Features, *, is_standardised: bool) -> list[_Row]:
        """A row for each C: learnt from each fold's rest and scored on the fold, learnt from all and scored on test."""
        folds = stratified_folds(train.labels, num_folds=self.num_folds, seed=self.seed)
        if is_standardised:
            hits = [self._accuracies(train.take(kept), train.take(held_out), True) for kept, held_out in folds]
        else:
            hits = self._shared(train, folds)
        scored = np.array(hits)
        tested = self._accuracies(train, test, is_standardised)
        return [
            _Row(cost, float(scored[:, place].mean()), float(scored[:, place].std()), tested[place])
            for place, cost in enumerate(self.costs)
        ]

    def _accuracies(self, train: Features, scored: Features, is_standardised: bool) -> list[float]:
        predicted = predictions_of(train, scored.rows, self.costs, is_standardised=is_standardised)
        return [float((each == scored.labels).mean()) for each in predicted]

    def _shared(self, train: Features, folds: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[list[float]]:
        """The accuracies of plain features in every fold, from the products of all training rows, taken once."""
        order = np.argsort(train.labels, kind="stable")
        place = np.argsort(order)
        rows, labels = train.rows[order].astype(np.float64), train.labels[order]
        products = rows @ rows.T
        hits = []
        for kept, held_out in folds:
            known, asked = np.sort(place[kept]), place[held_out]
            predicted = _answers(
                products[np.ix_(known, known)], products[np.ix_(asked, known)], labels[known], self.costs
            )
            hits.append([float((each == labels[asked]).mean()) for each in predicted])
        return hits

    def _edge(self, row: _Row, form: bool, norm: float) -> str:
        if len(self.costs) < 2 or row.cost not in (self.costs[0], self.costs[-1]):
            return ""
        which = "standardised" if form else f"plain features, mean norm {norm:.3g}"
        return f"the chosen C={row.cost:g} is the end of the grid ({which}): a wider one may do better, C=[...]"


def predictions_of(
    train: Features, rows: np.ndarray, costs: Sequence[float], *, is_standardised: bool = False
) -> list[np.ndarray]:
    """The classes of `rows` by a machine for each C; products of rows are taken once, in float64, and shared by all.

    Rows of a class stand together, so that the products of a pair of classes do in memory. Threads share the values
    of C among them.
    """
    order = np.argsort(train.labels, kind="stable")
    labels = train.labels[order]
    known, asked = train.rows[order].astype(np.float64), rows.astype(np.float64)
    if is_standardised:
        known, asked = standardised(known, asked)
    return _answers(known @ known.T, asked @ known.T, labels, costs)


def _answers(between: np.ndarray, across: np.ndarray, labels: np.ndarray, costs: Sequence[float]) -> list[np.ndarray]:
    """The classes by a machine for each C, from the products of known rows, and of those asked about with them."""

    def predict(cost: float) -> np.ndarray:
        machine = support_vector_machine(cost, kernel="precomputed").fit(between, labels)
        predicted: np.ndarray = machine.predict(across)
        return predicted

    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
        return list(pool.map(predict, costs))


def _table(rows: Sequence[_Row], chosen: _Row, form: bool, statistics: dict[str, float]) -> Table:
    variance = statistics["width"] * (1 - statistics["dead_share"]) if form else statistics["variance"]
    return Table(
        f"linear SVM, {'standardised' if form else 'plain'} features; test accuracy of a C that was not chosen is for "
        "reading alone",
        ("C", "C x variance", "cross-validated", "+-", "test", ""),
        [
            (f"{r.cost:g}", f"{r.cost * variance:.3g}", r.validated, r.spread, r.test, "chosen" if r is chosen else "")
            for r in rows
        ],
    )


def _plain(row: _Row, form: bool, is_chosen: bool) -> dict[str, Any]:
    return {
        "C": row.cost,
        "standardised": form,
        "cross_validated_accuracy": row.validated,
        "cross_validated_std": row.spread,
        "test_accuracy_not_for_choosing": row.test,
        "is_chosen": is_chosen,
    }
