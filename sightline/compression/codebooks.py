"""Codebooks: a code of few bits for each weight, and a table of numbers in half precision."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline.compression.clustering import cut_sorted
from sightline.compression.half_precision import LEAST_NORMAL
from sightline.compression.quantiser import Quantiser, check_weight, straight_through


class Clusters(NamedTuple):
    """Centres (K,) or (channels, K), ascending, as stored in the artefact; `labels`, the code of each weight (uint8).

    Every centre has a member, except copies of the last one that fill a channel with fewer centres than others.
    `is_float32`: the codebook is stored in float32, because half precision cannot represent it.
    """

    centres: Tensor
    labels: Tensor
    is_float32: bool


def cluster_weight(weight: Tensor, *, bits: int, name: str, per_channel: bool = False) -> Clusters:
    """Cluster weights of any shape into at most 2^bits clusters; `per_channel`, each entry of the first axis by itself.

    The inertia of the float32 weights about the centres before rounding is minimal for up to 1024, or 512 a
    cluster, distinct weights, and within 1e-5 of it for more (measured; see the tests). Centres are then rounded to
    half precision, and those that became equal are merged. Same weights, same bits. `name` is the tensor's, for errors.
    Raises UserError for weights that are empty or not finite.
    Source: the objective of Han et al. 2016, section 3.
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


def needs_float32(centres: np.ndarray) -> bool:
    """Return True if half precision overflows, rounds a centre to zero or loses digits of all centres (K,)."""
    size = np.abs(centres[centres != 0])
    with np.errstate(over="ignore", under="ignore"):
        half = size.astype(np.float16)
    return bool(size.size and (np.isinf(half).any() or (half == 0).any() or size.max() < LEAST_NORMAL))


def _cluster(values: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return centres (K,) float64 and the code of each value."""
    ordered = np.sort(values)
    cuts = np.zeros(most + 1, np.int64)
    cuts = cuts[: cut_sorted(ordered, most, cuts) + 1]
    centres = np.add.reduceat(ordered.astype(np.float64), cuts[:-1]) / np.diff(cuts)
    labels, is_beyond = np.zeros(values.shape, np.uint8), np.empty(values.shape, bool)
    for start in ordered[cuts[1:-1]]:
        labels += np.greater_equal(values, start, out=is_beyond)
    return centres, labels


def _round_centres(centres: np.ndarray, labels: np.ndarray, is_float32: bool) -> tuple[np.ndarray, np.ndarray]:
    """Round centres as the artefact stores them, and merge those that became equal."""
    stored = centres.astype(np.float32 if is_float32 else np.float16).astype(np.float32) + np.float32(0)  # no -0
    book, new = np.unique(stored, return_inverse=True)
    return book, labels if len(book) == len(stored) else new.astype(np.uint8)[labels]


class Codebook(Quantiser):
    """Codebook quantisation: weight = centres[labels].

    Labels are fixed, centres (2^bits) or (channels, 2^bits) are trained.
    Unused entries repeat the last centre, so that the shapes follow from the policy alone. The gradient of
    a centre is the mean over its members, or their sum (`mean_gradient=False`, Han et al. 2016, eq. 3).
    Source: HAQ, section 3.4: with plain SGD its projection after each step is a step on the mean.
    """

    labels: Tensor
    is_float32: Tensor

    def __init__(self, clusters: Clusters, *, bits: int, mean_gradient: bool = True) -> None:
        super().__init__()
        self.bits = bits
        self.mean_gradient = mean_gradient
        self.shape = (*clusters.centres.shape[:-1], 2**bits)
        self.register_buffer("labels", clusters.labels)
        self.register_buffer("is_float32", torch.tensor(clusters.is_float32, device=clusters.labels.device))

    def forward(self, centres: Tensor) -> Tensor:
        """Look up the weights (any shape) from centres (K,) or (channels, K), in the centres' dtype."""
        look_up = _MeanLookUp if self.mean_gradient else _LookUp
        weight: Tensor = look_up.apply(self.as_stored(centres), self._flat_codes())
        return weight.view(self.labels.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return the centres (K,) or (channels, K) of an assigned weight.

        The means over the members, HAQ's projection.
        """
        sums, indices = weight.new_zeros(self.shape, dtype=torch.float64).flatten(), self._flat_codes()
        sums.index_add_(0, indices, weight.detach().flatten().double())
        means = sums / torch.bincount(indices, minlength=len(sums)).clamp(min=1)
        return means.to(weight.dtype).view(self.shape)

    def fill(self, centres: Tensor) -> Tensor:
        """Repeat the last of the centres (..., k) of a clustering up to 2^bits of them."""
        return torch.cat([centres, centres[..., -1:].expand(*self.shape[:-1], self.shape[-1] - centres.shape[-1])], -1)

    def rows(self, values: Tensor) -> Tensor:
        """View centres, labels or weights (any shape) as a row for each codebook."""
        return values.reshape(1 if len(self.shape) == 1 else self.shape[0], -1)

    def as_stored(self, centres: Tensor) -> Tensor:
        """Round the centres (K,) or (channels, K) as in the artefact, with straight-through gradients."""
        rounded = torch.where(self.is_float32, centres.float(), centres.half().float())
        return straight_through(centres, rounded.to(centres.dtype) + 0.0)  # no -0

    def extra_repr(self) -> str:
        return f"bits={self.bits}, mean_gradient={self.mean_gradient}"

    def _flat_codes(self) -> Tensor:
        """Return the flat index of each weight's centre."""
        codes = self.rows(self.labels).int()
        firsts = torch.arange(len(codes), dtype=torch.int32, device=codes.device) * self.shape[-1]
        return (codes + firsts[:, None]).flatten()


class _LookUp(torch.autograd.Function):
    """Look-up of centres by flat index; differentiable as often as needed."""

    @staticmethod
    def forward(ctx: Any, centres: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.shape = centres.shape
        return centres.flatten().index_select(0, indices)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (indices,) = ctx.saved_tensors
        (gradient,) = gradients
        return _add_up(gradient, indices, ctx.shape).to(gradient.dtype), None


class _MeanLookUp(_LookUp):
    """Look-up whose centres get the mean of their weights' gradients."""

    surrogate_gradient = True

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (indices,) = ctx.saved_tensors
        (gradient,) = gradients
        counts = torch.bincount(indices, minlength=ctx.shape.numel()).clamp(min=1)
        return (_add_up(gradient, indices, ctx.shape) / counts.view(ctx.shape)).to(gradient.dtype), None


def _add_up(gradient: Tensor, indices: Tensor, shape: torch.Size) -> Tensor:
    return gradient.new_zeros(shape.numel(), dtype=torch.float64).index_add(0, indices, gradient.double()).view(shape)
