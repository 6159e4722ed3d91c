"""Copies of samples in training and evaluation: counted, kept on one side, or left out of training."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sightline.contract.dataset import Dataset


class SharedSamples(NamedTuple):
    """Evaluated samples that training has, too: number, and a pair of sample indices, that of training first."""

    total: int
    first: tuple[int, int]


def find_shared(
    train_set: Dataset, train_indices: np.ndarray, evaluated_set: Dataset, evaluated: np.ndarray
) -> SharedSamples | None:
    """Count the evaluated samples of which training has copies; None without any, or for sets that state no copies."""
    trained, other = train_set.copies, evaluated_set.copies
    if trained is None or other is None:
        return None
    first_by_digest = {trained.digests[index]: index for index in reversed(train_indices.tolist())}
    shared = [index for index in evaluated.tolist() if other.digests[index] and other.digests[index] in first_by_digest]
    return SharedSamples(len(shared), (first_by_digest[other.digests[shared[0]]], shared[0])) if shared else None


def divide_copies(
    train_set: Dataset,
    train_indices: np.ndarray,
    selection_set: Dataset,
    held_out: np.ndarray,
    test_set: Dataset | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the training and the held-out indices, so that copies are on one side.

    Samples that are held out of this set stay in training if it has copies of them; if all are such, training gives
    its own up. If the preparation says so, training leaves out what is evaluated.
    """
    copies = train_set.copies
    if copies is None:
        return train_indices, held_out
    digests = np.array(copies.digests, dtype=object)
    if selection_set is train_set:
        known = {digest for digest in digests[train_indices] if digest}
        is_copy = np.array([digest in known for digest in digests[held_out]], dtype=bool)
        if is_copy.all():  # nothing else is held out: training gives up its copies
            held_digests = {*digests[held_out]}
            is_held = np.array([digest in held_digests for digest in digests[train_indices]], dtype=bool)
            size = len(train_set) // train_set.repeats
            held_out = np.unique(np.concatenate([held_out, train_indices[is_held] % size]))
            train_indices = train_indices[~is_held]
        else:
            train_indices = np.sort(np.concatenate([train_indices, *_list_visits(train_set, held_out[is_copy])]))
            held_out = held_out[~is_copy]
    if copies.are_left_out:
        parts = [(selection_set, held_out), *([] if test_set is None else [(test_set, np.arange(len(test_set)))])]
        evaluated = {
            digest
            for dataset, indices in parts
            if (of_set := dataset.copies) is not None
            for digest in np.array(of_set.digests, dtype=object)[indices]
            if digest
        }
        train_indices = train_indices[[digest not in evaluated for digest in digests[train_indices]]]
    return train_indices, held_out


def _list_visits(dataset: Dataset, indices: np.ndarray) -> list[np.ndarray]:
    """Return indices of samples in each visit of an epoch."""
    repeats = dataset.repeats
    return [indices + visit * (len(dataset) // repeats) for visit in range(repeats)]
