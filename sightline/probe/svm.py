"""Linear support vector machines on frozen features, C chosen on the training part alone."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from sightline import registry
from sightline.arguments import Count, PositiveFloat, Seed
from sightline.errors import ConfigError
from sightline.probe.classifiers import Folds, require_sklearn, standardise, support_vector_machine
from sightline.probe.features import Features, feature_statistics
from sightline.probe.folds import stratified_folds
from sightline.probe.outcome import Outcome, Table, assert_fits
from sightline.probe.threads import map_in_threads

__all__ = ["SVM", "SVMPredictions", "choice_in_words"]

COSTS = (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)
_FOLDS = 5


@dataclass(frozen=True)
class _Row:
    """One C: accuracy in cross-validation (mean and deviation over the folds) and on the test part.

    `has_converged` is whether all of its machines did.
    """

    cost: float
    validated: float
    spread: float
    test: float
    has_converged: bool


@dataclass(frozen=True)
class SVMPredictions:
    """The classes that machines of one C give, and whether they came to their end."""

    classes: np.ndarray
    has_converged: bool


def choice_in_words(costs: Sequence[float] = COSTS, num_folds: int = _FOLDS) -> str:
    """The rule by which an SVM gets its C; without arguments that of the figure at the end of a training."""
    if len(costs) == 1:
        return f"{costs[0]:g}, given"
    return f"by {num_folds}-fold cross-validation on the training part"


@registry.probes.add("svm")
class SVM:
    """A linear SVM, one against one; C is chosen by stratified cross-validation on the training part.

    The headline is that of plain features, as published; `standardise: yes` gives each dimension zero mean and unit
    deviation first, by the rows that the machine learns from alone, in every fold anew. Equal to scikit-learn's
    SVC(kernel="linear") in a grid search, where machines converge; a tie takes the smaller C. Where classes overlap,
    those of a large C iterate for very long: after `max_iterations` for a pair of classes they stop, and the table says
    so. Source: Afham et al. 2022, section 4.1 (protocol); Chang and Lin 2011, LIBSVM.
    """

    most_rows: ClassVar[int | None] = 20_000
    """The products of all pairs of rows take 8 bytes each, here 3.2 GB."""

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
        """How C comes about, in words."""
        return choice_in_words(self.costs, self.num_folds)

    def __call__(self, train: Features, test: Features) -> Outcome:
        """The accuracy on the test part with the chosen C, and the table over all of them."""
        assert_fits(self, len(train))
        tables = {form: self._search(train, test, is_standardised=form) for form in self.forms}
        chosen = {form: max(rows, key=lambda row: row.validated) for form, rows in tables.items()}
        names = {form: "probe_svm_accuracy" + ("_standardised" if form else "") for form in self.forms}
        statistics = feature_statistics(train.rows)
        notes = [self._edge(chosen[form], form, statistics["mean_norm"]) for form in self.forms]
        notes += [self._unfinished(tables[form], form) for form in self.forms]
        return Outcome(
            metrics={names[form]: chosen[form].test for form in self.forms},
            chance={},
            tables=tuple(_table(rows, chosen[form], form, statistics) for form, rows in tables.items()),
            protocol=(
                f"scikit-learn SVC(kernel=linear), one against one; C {self.choice}; folds are seeded and stratified, "
                "test accuracies of other C chose nothing",
                "scale law: the machine on s*X with C is the one on X with s^2*C, so a C means nothing without the "
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
            parts = [(train.take(kept), train.take(held_out)) for kept, held_out in folds]
            answers = [self.predict_all_costs(rest, held_out.rows, is_standardised=True) for rest, held_out in parts]
        else:
            answers = self._shared(train, folds)
        labels = [train.labels[held_out] for _, held_out in folds]
        scored = np.array([_accuracies(each, held) for each, held in zip(answers, labels, strict=True)])
        last = self.predict_all_costs(train, test.rows, is_standardised=is_standardised)
        tested = _accuracies(last, test.labels)
        return [
            _Row(
                cost,
                float(scored[:, place].mean()),
                float(scored[:, place].std()),
                tested[place],
                all(each[place].has_converged for each in (*answers, last)),
            )
            for place, cost in enumerate(self.costs)
        ]

    def predict_all_costs(
        self, train: Features, rows: np.ndarray, *, is_standardised: bool = False
    ) -> list[SVMPredictions]:
        """Of `rows` for each C in ascending order; products of rows are taken once, in float64, and shared by all.

        Rows of a class stand together, so that the products of a pair of classes do in memory.
        """
        order = np.argsort(train.labels, kind="stable")
        known, asked = train.rows[order].astype(np.float64), rows.astype(np.float64)
        if is_standardised:
            known, asked = standardise(known, asked)
        return self._learnt(known @ known.T, asked @ known.T, train.labels[order])

    def _shared(self, train: Features, folds: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[list[SVMPredictions]]:
        """The predictions from plain features in every fold, from the products of all training rows, taken once."""
        order = np.argsort(train.labels, kind="stable")
        place = np.argsort(order)
        rows, labels = train.rows[order].astype(np.float64), train.labels[order]
        products = rows @ rows.T
        answers = []
        for kept, held_out in folds:
            known, asked = np.sort(place[kept]), place[held_out]
            answers.append(self._learnt(products[np.ix_(known, known)], products[np.ix_(asked, known)], labels[known]))
        return answers

    def _learnt(self, between: np.ndarray, across: np.ndarray, labels: np.ndarray) -> list[SVMPredictions]:
        """By a machine for each C, from the products of known rows, and of those asked about with them.

        Threads share the values of C among them.
        """

        def answer(cost: float) -> SVMPredictions:
            machine = support_vector_machine(cost, kernel="precomputed", max_iterations=self.max_iterations)
            machine.fit(between, labels)
            return SVMPredictions(machine.predict(across), machine.fit_status_ == 0)

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Solver terminated early")  # the table shows it, and of which C
            return map_in_threads(answer, self.costs, num_threads=max(1, torch.get_num_threads()))

    def _edge(self, row: _Row, form: bool, norm: float) -> str:
        if len(self.costs) < 2 or row.cost not in (self.costs[0], self.costs[-1]):
            return ""
        which = "standardised" if form else f"plain features, mean norm {norm:.3g}"
        return f"the chosen C={row.cost:g} is the end of the grid ({which}): a wider one may do better, C=[...]"

    def _unfinished(self, rows: Sequence[_Row], form: bool) -> str:
        costs = ", ".join(f"{row.cost:g}" for row in rows if not row.has_converged)
        if not costs:
            return ""
        which = "standardised" if form else "plain"
        return (
            f"C={costs} ({which} features): stopped at {self.max_iterations} iterations for a pair of classes, so its "
            "figures are of machines that were not done; likely, classes overlap in these features: look at smaller C, "
            "or give max_iterations=N"
        )


def _accuracies(answers: Sequence[SVMPredictions], labels: np.ndarray) -> list[float]:
    return [float((each.classes == labels).mean()) for each in answers]


def _table(rows: Sequence[_Row], chosen: _Row, form: bool, statistics: dict[str, float]) -> Table:
    variance = statistics["width"] * (1 - statistics["dead_share"]) if form else statistics["variance"]
    return Table(
        f"linear SVM, {'standardised' if form else 'plain'} features; test accuracy of a C that was not chosen is for "
        "reading alone",
        ("C", "C x variance", "cross-validated", "+-", "test", ""),
        [
            (f"{r.cost:g}", f"{r.cost * variance:.3g}", r.validated, r.spread, r.test, _mark(r, r is chosen))
            for r in rows
        ],
    )


def _mark(row: _Row, is_chosen: bool) -> str:
    return ", ".join(filter(None, ["chosen" if is_chosen else "", "" if row.has_converged else "not converged"]))


def _plain(row: _Row, form: bool, is_chosen: bool) -> dict[str, Any]:
    return {
        "C": row.cost,
        "standardised": form,
        "cross_validated_accuracy": row.validated,
        "cross_validated_std": row.spread,
        "test_accuracy_not_for_choosing": row.test,
        "converged": row.has_converged,
        "is_chosen": is_chosen,
    }
