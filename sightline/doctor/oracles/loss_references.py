"""Reference implementations of losses by their definitions, row by row in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

__all__ = ["cross_entropy", "focal", "lovasz", "mean_square", "nt_xent", "orthogonality"]


def nt_xent(anchors: np.ndarray, partners: np.ndarray, *, temperature: float) -> float:
    """Compute NT-Xent of anchors (M, D) and partners (M, D): the mean over 2M rows. Source: Chen et al. 2020, eq. 1."""
    rows = np.concatenate([anchors, partners])
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows / np.where(lengths > 0, lengths, 1.0)
    total = 0.0
    for index, row in enumerate(rows):
        similarity = rows @ row / temperature
        others = np.delete(similarity, index)
        highest = others.max()
        partner = similarity[(index + len(anchors)) % len(rows)]
        total += highest + math.log(np.exp(others - highest).sum()) - partner
    return total / len(rows)


def cross_entropy(
    logits: np.ndarray,
    label: np.ndarray,
    *,
    smoothing: float = 0.0,
    over_others: bool = True,
    weights: Sequence[float] | None = None,
    ignore_index: int | None = None,
) -> float:
    """Compute the weighted mean cross entropy of logits (N, C) and labels (N,) that are not ignored.

    The share `smoothing` is divided evenly among the other classes, or among all classes. Source: Szegedy et al. 2016,
    section 7.
    """
    num_classes = logits.shape[1]
    by_class = [1.0] * num_classes if weights is None else list(weights)
    total, count = 0.0, 0.0
    for row, target in zip(logits, label, strict=True):
        if ignore_index is not None and target == ignore_index:
            continue
        highest = max(row)
        normaliser = highest + math.log(math.fsum(math.exp(z - highest) for z in row))
        for c in range(num_classes):
            share = smoothing / (num_classes - 1 if over_others else num_classes) if smoothing else 0.0
            probability = 1.0 - smoothing + (0.0 if over_others else share) if c == target else share
            total += probability * by_class[c] * (normaliser - row[c])
        count += by_class[target]
    return total / count if count else 0.0


def focal(
    logits: np.ndarray,
    label: np.ndarray,
    *,
    gamma: float,
    weights: Sequence[float] | None,
    by_weights: bool,
    ignore_index: int | None,
) -> float:
    """Compute the focal loss of logits (N, C) and labels (N,): the mean of -w (1 - p)^gamma log p.

    The sum is divided by the weights or by the number of targets. Source: Lin et al. 2017, eq. 5.
    """
    by_class = [1.0] * logits.shape[1] if weights is None else list(weights)
    total, count = 0.0, 0.0
    for row, target in zip(logits, label, strict=True):
        if target != ignore_index:
            log_p = -math.log(math.fsum(math.exp(z - row[target]) for z in row))
            total += -by_class[target] * (1 - math.exp(log_p)) ** gamma * log_p
            count += by_class[target] if by_weights else 1.0
    return total / count if count else 0.0


def lovasz(images: Sequence[np.ndarray], labels: Sequence[np.ndarray], *, ignore_index: int | None) -> float:
    """Compute Lovász-softmax: the mean over images of the Lovász extension of 1 - IoU, an integral over error levels.

    `images` are logits (P, C), `labels` (P,). Source: Berman et al. 2018, eq. 8; Choquet's integral.
    """
    image_losses = []
    for logits, label in zip(images, labels, strict=True):
        is_counted = np.ones(len(label), dtype=bool) if ignore_index is None else label != ignore_index
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        p, counted_labels = (shifted / shifted.sum(axis=1, keepdims=True))[is_counted], label[is_counted]
        losses = []
        for number in np.unique(counted_labels):
            is_class = counted_labels == number
            errors = np.abs(is_class - p[:, number])
            order = np.argsort(-errors, kind="stable")
            missed = np.cumsum(is_class[order])
            added = np.cumsum(~is_class[order])
            level_loss = 1 - (is_class.sum() - missed) / (is_class.sum() + added)
            steps = errors[order] - np.append(errors[order][1:], 0.0)
            losses.append(math.fsum(steps * level_loss))
        image_losses += [math.fsum(losses) / len(losses)] if losses else []
    return math.fsum(image_losses) / len(image_losses) if image_losses else 0.0


def mean_square(output: np.ndarray, target: np.ndarray, weight: np.ndarray) -> float:
    """Compute the weighted mean squared error, sum w (o - t)^2 / sum w, of arrays of one shape."""
    total = math.fsum(w * (o - t) ** 2 for o, t, w in zip(output.ravel(), target.ravel(), weight.ravel(), strict=True))
    return total / math.fsum(weight.ravel())


def orthogonality(matrices: np.ndarray) -> float:
    """Compute the mean Frobenius norm of A A^T - I over matrices (B, K, K). Source: Qi et al. 2017, eq. 2, its root."""
    total = 0.0
    for matrix in matrices:
        size = len(matrix)
        squares = [
            (math.fsum(matrix[i] * matrix[j]) - (1.0 if i == j else 0.0)) ** 2 for i in range(size) for j in range(size)
        ]
        total += math.sqrt(math.fsum(squares))
    return total / len(matrices)
