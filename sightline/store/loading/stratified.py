"""Stratified split into training and held-out samples, seeded."""

from __future__ import annotations

import numpy as np

from sightline.contract.draws import Draws
from sightline.contract.types import SampleKey


def stratified_split(
    size: int, strata: np.ndarray | None, *, share: float = 0.1, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Split the indices of samples into remaining and held-out ones, both sorted: `share` of every stratum, rounded.

    A stratum of two or more keeps at least one on either side; a stratum of one sample stays in training.
    """
    classes = np.zeros(size, dtype=np.int64) if strata is None else np.asarray(strata)
    assert len(classes) == size, f"{len(classes)} strata for {size} samples"
    order = Draws.for_samples([SampleKey(0, 0, seed)]).stream("held out").permutation(size)[0].numpy()
    held_by_stratum: list[np.ndarray] = []
    for stratum in np.unique(classes):
        members = order[classes[order] == stratum]
        num_held = round(share * len(members))
        held_by_stratum.append(members[: min(max(num_held, 1), len(members) - 1)] if len(members) > 1 else members[:0])
    held_out = np.sort(np.concatenate(held_by_stratum)) if held_by_stratum else np.zeros(0, dtype=np.int64)
    return np.setdiff1d(np.arange(size), held_out), held_out


def stratified_subset(strata: np.ndarray, fraction: float, *, seed: int) -> np.ndarray:
    """Select sorted indices of a share of every stratum, rounded, at least one; pure.

    With the same seed a smaller share is a subset of a larger one.
    """
    order = Draws.for_samples([SampleKey(0, 0, seed)]).stream("fraction").permutation(len(strata))[0].numpy()
    members = [order[strata[order] == stratum] for stratum in np.unique(strata)]
    selected = [stratum_rows[: max(1, round(fraction * len(stratum_rows)))] for stratum_rows in members]
    return np.sort(np.concatenate(selected)) if selected else np.zeros(0, dtype=np.int64)
