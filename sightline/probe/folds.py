"""Seeded, stratified folds of a training part: nothing of the test part chooses anything."""

from __future__ import annotations

import numpy as np

from sightline.draws import Draws
from sightline.probe.outcome import UnprobableError
from sightline.types import SampleKey

__all__ = ["chance_accuracy", "stratified_folds"]


def stratified_folds(labels: np.ndarray, *, num_folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Sorted indices (remaining, held out) of each fold; every sample is held out once, classes spread evenly.

    Sizes of folds differ by at most one, those of a class in them too. Raises UnprobableError where a fold would leave
    fewer than two classes to learn.
    """
    order = Draws.for_samples([SampleKey(0, 0, seed)]).stream("folds").permutation(len(labels))[0].numpy()
    dealt = order[np.argsort(labels[order], kind="stable")]  # a class after another, shuffled within
    fold_of = np.empty(len(labels), dtype=np.int64)
    fold_of[dealt] = np.arange(len(labels)) % num_folds
    folds = [(np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)) for fold in range(num_folds)]
    for kept, held_out in folds:
        if len(np.unique(labels[kept])) < 2 or not len(held_out):
            raise UnprobableError(
                f"probe: {len(labels)} training samples of {len(np.unique(labels))} classes leave no two classes to "
                f"learn in each of {num_folds} folds; probe on more data, or give folds=2"
            )
    return folds


def chance_accuracy(train_labels: np.ndarray, test_labels: np.ndarray, num_classes: int) -> dict[str, float]:
    """What needs no features: guessing evenly, and always the class that training has most of."""
    most = np.bincount(train_labels).argmax()
    return {"uniform_guess": 1.0 / num_classes, "largest_class": float((test_labels == most).mean())}
