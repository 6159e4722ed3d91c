"""Seeded, stratified folds of the training split, for choices without the test split."""

from __future__ import annotations

import numpy as np

from sightline.draws import Draws
from sightline.probe.outcome import UnprobableError
from sightline.types import SampleKey

__all__ = ["chance_accuracy", "stratified_folds"]


def stratified_folds(labels: np.ndarray, *, num_folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Split into stratified folds: sorted indices (training, held out) per fold; every sample is held out once.

    The sizes of folds, and of each class in them, differ by at most one. Raises UnprobableError if the training part of
    a fold has fewer than two classes.
    """
    order = Draws.for_samples([SampleKey(0, 0, seed)]).stream("folds").permutation(len(labels))[0].numpy()
    dealt = order[np.argsort(labels[order], kind="stable")]  # sorted by class, shuffled within each
    fold_of = np.empty(len(labels), dtype=np.int64)
    fold_of[dealt] = np.arange(len(labels)) % num_folds
    folds = [(np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)) for fold in range(num_folds)]
    for remaining, held_out in folds:
        if len(np.unique(labels[remaining])) < 2 or not len(held_out):
            raise UnprobableError(
                f"probe: {len(labels)} training samples of {len(np.unique(labels))} classes leave no two classes to "
                f"learn in each of {num_folds} folds; probe on more data, or give folds=2"
            )
    return folds


def chance_accuracy(train_labels: np.ndarray, test_labels: np.ndarray, num_classes: int) -> dict[str, float]:
    """Compute the accuracy of uniform guessing, and of always predicting the largest training class."""
    largest_class = np.bincount(train_labels).argmax()
    return {"uniform_guess": 1.0 / num_classes, "largest_class": float((test_labels == largest_class).mean())}
