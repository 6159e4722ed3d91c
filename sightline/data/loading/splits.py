"""Which samples train, test, and choose the checkpoint: seeded and class-stratified."""

from __future__ import annotations

import numpy as np

from sightline.draws import Draws
from sightline.types import SampleKey

__all__ = ["stratified_split", "stratified_subset"]


def stratified_split(
    size: int, strata: np.ndarray | None, *, share: float = 0.1, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices that remain, and those held out: of every stratum its share, rounded to the nearest.

    A stratum of two or more keeps at least one on either side; one of a single sample stays in training.
    """
    classes = np.zeros(size, dtype=np.int64) if strata is None else np.asarray(strata)
    assert len(classes) == size, f"{len(classes)} strata for {size} samples"
    order = Draws.for_samples([SampleKey(0, 0, seed)]).stream("held out").permutation(size)[0].numpy()
    held: list[np.ndarray] = []
    for stratum in np.unique(classes):
        members = order[classes[order] == stratum]
        wanted = round(share * len(members))
        held.append(members[: min(max(wanted, 1), len(members) - 1)] if len(members) > 1 else members[:0])
    held_out = np.sort(np.concatenate(held)) if held else np.zeros(0, dtype=np.int64)
    return np.setdiff1d(np.arange(size), held_out), held_out


def stratified_subset(strata: np.ndarray, fraction: float, *, seed: int) -> np.ndarray:
    """Sorted indices of a share of every stratum, rounded to the nearest, at least one; pure.

    With one seed a smaller share is part of a larger one.
    """
    order = Draws.for_samples([SampleKey(0, 0, seed)]).stream("fraction").permutation(len(strata))[0].numpy()
    members = [order[strata[order] == stratum] for stratum in np.unique(strata)]
    taken = [each[: max(1, round(fraction * len(each)))] for each in members]
    return np.sort(np.concatenate(taken)) if taken else np.zeros(0, dtype=np.int64)
