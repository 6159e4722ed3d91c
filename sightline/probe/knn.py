"""Nearest neighbours on frozen features, by the angle between them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from sightline import registry
from sightline.arguments import Count, Seed
from sightline.errors import ConfigError
from sightline.probe.classifiers import Folds
from sightline.probe.features import Features
from sightline.probe.folds import stratified_folds
from sightline.probe.outcome import Outcome, Table

__all__ = ["KNN", "majority_vote", "nearest_labels"]

_ROWS_AT_ONCE = 1024


@registry.probes.add("knn")
class KNN:
    """The class that most of the k training features at the smallest angle have; k by cross-validation on training.

    Equal votes go to the class of the nearest among them. One value of `k` is taken as it is; the usual one of the
    literature on self-supervision is 20. Source: Wu et al. 2018, section 3.4 (cosine, votes without weights here).
    """

    most_rows: ClassVar[int | None] = None

    def __init__(self, *, k: tuple[Count, ...] = (1, 5, 10, 20, 50), folds: Folds = 5, seed: Seed = 0) -> None:
        if not k:
            raise ConfigError("k: found [], allowed is at least one number of neighbours")
        self.numbers = tuple(sorted(set(k)))
        self.num_folds = folds
        self.seed = seed

    def __call__(self, train: Features, test: Features) -> Outcome:
        """The accuracy on the test part with the chosen k, and the table over all of them."""
        folds = stratified_folds(train.labels, num_folds=self.num_folds, seed=self.seed)
        most = min(len(kept) for kept, _ in folds)
        if self.numbers[-1] > most:
            raise ConfigError(f"k: found {self.numbers[-1]}, a fold has {most} training samples; give fewer neighbours")
        scored = np.array([self._accuracies(train.take(kept), train.take(held)) for kept, held in folds])
        tested = self._accuracies(train, test)
        validated = scored.mean(axis=0)
        chosen = int(validated.argmax())
        rows = [
            (k, float(validated[place]), float(scored[:, place].std()), tested[place])
            for place, k in enumerate(self.numbers)
        ]
        names = ("k", "cross_validated_accuracy", "cross_validated_std", "test_accuracy_not_for_choosing")
        return Outcome(
            metrics={"probe_knn_accuracy": tested[chosen]},
            chance={},
            tables=(
                Table(
                    "nearest neighbours by cosine; test accuracy of a k that was not chosen is for reading alone",
                    ("k", "cross-validated", "+-", "test", ""),
                    [(*row, "chosen" if place == chosen else "") for place, row in enumerate(rows)],
                ),
            ),
            protocol=(
                f"nearest neighbours by cosine, votes without weights; k by {self.num_folds}-fold cross-validation on "
                "the training part (seeded, stratified)",
            ),
            details={"k": self.numbers[chosen], "table": [dict(zip(names, row, strict=True)) for row in rows]},
        )

    def _accuracies(self, train: Features, scored: Features) -> list[float]:
        near = nearest_labels(train, scored.rows, num_neighbours=self.numbers[-1])
        return [float((majority_vote(near[:, :k]) == scored.labels).mean()) for k in self.numbers]


def nearest_labels(train: Features, rows: np.ndarray, *, num_neighbours: int) -> np.ndarray:
    """The labels (N, k) of the training features at the smallest angle to each row, nearest first.

    Of equal angles the earlier training sample comes first; a feature of norm 0 stands at a right angle to all.
    """
    directions = _unit(train.rows)
    return np.concatenate(
        [train.labels[_nearest(part @ directions.T, num_neighbours)] for part in _parts(_unit(rows))]
        or [np.zeros((0, num_neighbours), dtype=np.int64)]
    )


def majority_vote(labels: np.ndarray) -> np.ndarray:
    """The label that most columns of each row hold, (N, k) -> (N,); of equal ones that which comes first."""
    matches = (labels[:, :, None] == labels[:, None, :]).sum(axis=2)
    return labels[np.arange(len(labels)), matches.argmax(axis=1)]


def _nearest(similarity: np.ndarray, num_neighbours: int) -> np.ndarray:
    return np.argsort(-similarity, axis=1, kind="stable")[:, :num_neighbours]


def _parts(rows: np.ndarray) -> Iterator[np.ndarray]:
    return (rows[start : start + _ROWS_AT_ONCE] for start in range(0, len(rows), _ROWS_AT_ONCE))


def _unit(rows: np.ndarray) -> np.ndarray:
    wide = rows.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    return wide / np.where(norms > 0, norms, 1.0)
