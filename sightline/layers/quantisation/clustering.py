"""k-means quantisation of a layer's weights: codes of few bits, and a codebook of numbers in half precision.

Weights are scalars, so clusters are intervals of their sorted order: sums over any interval come from prefix sums, no
cluster can be empty, and the minimal inertia is found by dynamic programming instead of by iterations from a start.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline.errors import UserError
from sightline.layers.quantisation.cluster_kernels import cut_sorted, sort_bits

__all__ = ["LEAST_NORMAL", "Clusters", "check_weight", "cluster_weight", "needs_float32"]

LEAST_NORMAL = 2.0**-14
"""Smallest normal number of half precision; below it, digits are lost."""


class Clusters(NamedTuple):
    """Centres (K,) or (channels, K), ascending, as stored in the artefact; `labels`, the code of each weight (uint8).

    Every centre has a member, except copies of the last one that fill a channel with fewer centres than others.
    `is_float32`: the codebook is stored in float32, because half precision cannot represent it.
    """

    centres: Tensor
    labels: Tensor
    is_float32: bool

    @property
    def weight(self) -> Tensor:
        """The centre of each weight, in the shape of the weights."""
        if self.centres.ndim == 1:
            return self.centres[self.labels.long()]
        return self.centres.gather(1, self.labels.flatten(1).long()).view(self.labels.shape)


def cluster_weight(weight: Tensor, *, bits: int, name: str, per_channel: bool = False) -> Clusters:
    """Cluster weights of any shape into at most 2^bits clusters; `per_channel`, each entry of the first axis by itself.

    The inertia of the float32 weights about the centres before rounding is minimal for up to 1024, or 512 a
    cluster, distinct weights, and within 1e-5 of it for more (measured; see the tests). Centres are then rounded to
    half precision, and those that became equal are merged. Same weights, same bits. `name` is the tensor's, for errors.
    Raises UserError for weights that are empty or not finite.
    Source: the objective of Han et al. 2016, section 3; the search of `cluster_kernels`.
    """
    assert 1 <= bits <= 8, f"{name}: {bits} bits"
    check_weight(weight, name)
    rows = weight.detach().cpu().float().numpy().reshape(len(weight) if per_channel else 1, -1)
    clusters = [_cluster(row, 2**bits) for row in rows]
    is_float32 = any(needs_float32(centres) for centres, _ in clusters)
    books, labels = zip(*[_round_centres(*row_clusters, is_float32) for row_clusters in clusters], strict=True)
    width = max(map(len, books))
    centres = torch.from_numpy(np.stack([np.pad(book, (0, width - len(book)), mode="edge") for book in books]))
    codes = torch.from_numpy(np.stack(labels)).view(weight.shape).to(weight.device)
    return Clusters((centres if per_channel else centres[0]).to(weight.device), codes, is_float32)


def check_weight(weight: Tensor, name: str) -> None:
    """Raise UserError if weights (any shape) are empty or not finite."""
    if not weight.numel():
        raise UserError(f"{name}: has no elements of shape {list(weight.shape)}; leave it out of the policy")
    weight = weight.detach()
    bad = ~torch.isfinite(weight.float())
    if bad.any():
        first = tuple(int(index) for index in bad.nonzero()[0])
        raise UserError(
            f"{name}: {int(bad.sum())} of {weight.numel()} weights are not finite, the first at {list(first)} "
            f"({float(weight[first])}); the training diverged, take an earlier checkpoint"
        )


def needs_float32(centres: np.ndarray) -> bool:
    """Return True if half precision overflows, rounds a centre to zero or loses digits of all centres (K,)."""
    size = np.abs(centres[centres != 0])
    with np.errstate(over="ignore", under="ignore"):
        half = size.astype(np.float16)
    return bool(size.size and (np.isinf(half).any() or (half == 0).any() or size.max() < LEAST_NORMAL))


def _cluster(values: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return centres (K,) float64 and the code of each value."""
    ordered = _sort_values(values)
    cuts = np.zeros(most + 1, np.int64)
    cuts = cuts[: cut_sorted(ordered, most, cuts) + 1]
    centres = np.add.reduceat(ordered.astype(np.float64), cuts[:-1]) / np.diff(cuts)
    labels, is_beyond = np.zeros(values.shape, np.uint8), np.empty(values.shape, bool)
    for start in ordered[cuts[1:-1]]:
        labels += np.greater_equal(values, start, out=is_beyond)
    return centres, labels


def _sort_values(values: np.ndarray) -> np.ndarray:
    if len(values) < 4096:
        return np.sort(values)
    bits = np.empty((2, len(values)), np.uint32)
    bits[0] = values.view(np.uint32)
    sort_bits(bits[0], bits[1], np.zeros((3, 2048), np.int64))
    return bits[1].view(np.float32)


def _round_centres(centres: np.ndarray, labels: np.ndarray, is_float32: bool) -> tuple[np.ndarray, np.ndarray]:
    """Round centres as the artefact stores them, and merge those that became equal."""
    stored = centres.astype(np.float32 if is_float32 else np.float16).astype(np.float32) + np.float32(0)  # no -0
    book, new = np.unique(stored, return_inverse=True)
    return book, labels if len(book) == len(stored) else new.astype(np.uint8)[labels]
