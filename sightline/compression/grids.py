"""Uniform grids: numbers as integer multiples of a step, per tensor or per channel (an entry of the first axis)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sightline.compression.quantiser import Quantiser, check_weight, straight_through

FEW_BITS = 5
"""Number of bits below which clipping pays, and the threshold is searched for (HAQ)."""
OF_ZEROS = 1e-8
"""Threshold of numbers that are all zero."""


@dataclass(frozen=True)
class QuantisationGrid:
    """Uniform grid: the values step * code for codes from -most to `most`; `step` broadcasts."""

    step: Tensor
    most: int

    def codes(self, values: Tensor) -> Tensor:
        """Return the code of the nearest grid value (...) of values (...), as whole numbers in the tensor's dtype."""
        return torch.round(values / self.step).clamp(-self.most, self.most) + 0.0  # no -0

    def values(self, codes: Tensor) -> Tensor:
        """Convert codes (...) to values (...)."""
        return codes * self.step

    def __call__(self, values: Tensor) -> Tensor:
        return self.values(self.codes(values))


def symmetric_grid(threshold: Tensor, *, bits: int) -> QuantisationGrid:
    """Make a grid of 2^(bits-1) - 1 steps to the threshold (...) on each side of zero.

    Source: HAQ (Wang et al. 2019), section 3.4.
    """
    assert bits >= 2, "one bit leaves a symmetric grid no step"
    most = 2 ** (bits - 1) - 1
    return QuantisationGrid(torch.where(threshold > 0, threshold, OF_ZEROS) / most, most)


def weight_grid(weight: Tensor, *, bits: int, name: str, per_channel: bool = False) -> QuantisationGrid:
    """Make the symmetric grid of a weight (any shape): to the largest magnitude from 5 bits on, else to `kl_threshold`.

    Raises UserError for weights that are empty or not finite, named `name`. Source: HAQ, section 3.4.
    """
    check_weight(weight, name)
    rows = weight.detach().reshape(len(weight) if per_channel else 1, -1)
    if bits < FEW_BITS:
        threshold = rows.new_tensor([kl_threshold(row.cpu().double().numpy(), bits=bits) for row in rows])
    else:
        threshold = rows.abs().amax(dim=1)
    return symmetric_grid(threshold.view(-1, *[1] * (weight.ndim - 1)) if per_channel else threshold[0], bits=bits)


def kl_threshold(data: np.ndarray, *, bits: int) -> float:
    """Return the clipping threshold that loses least if a histogram of data (any shape) keeps 2^(bits-1) bins.

    Cumulative distributions are compared, the full one and the one clipped at each bin and interpolated from the
    remaining ones, by the symmetric divergence of Kullback and Leibler. 0 for data of zeros; the largest magnitude if
    there are no more than 2^(bits-1) bins. Source: HAQ, section 3.4, and its code.
    """
    size = np.abs(data).ravel()
    if np.isclose(size.max(), 0.0):
        return 0.0
    counts, edges = np.histogram(size, bins="sqrt", range=(0.0, size.max()))
    cumulative, num_kept = np.cumsum(counts / counts.sum()), 2 ** (bits - 1)
    distances = []
    for num_bins in range(num_kept + 1, len(cumulative) + 1):
        rough = np.ones_like(cumulative)
        rough[: num_bins - 1] = cumulative[: num_bins - 1]
        fine, coarse = np.linspace(0, 1, num_bins), np.linspace(0, 1, num_kept)
        rough[:num_bins] = np.interp(fine, coarse, np.interp(coarse, fine, rough[:num_bins]))
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = (cumulative - rough) * np.log2(cumulative / rough)
        distances.append(np.where(cumulative == rough, 0.0, terms).sum())
    if not distances:
        return float(edges[-1])
    return float((num_kept + 1.5 + int(np.argmin(distances))) * (edges[1] - edges[0]))


class UniformQuantiser(Quantiser):
    """Uniform quantisation-aware training.

    Weight = the nearest value of a symmetric grid, with straight-through gradients.
    """

    step: Tensor

    def __init__(self, grid: QuantisationGrid, *, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.register_buffer("step", grid.step)

    @property
    def grid(self) -> QuantisationGrid:
        return QuantisationGrid(self.step, 2 ** (self.bits - 1) - 1)

    def forward(self, weight: Tensor) -> Tensor:
        """Round a weight (any shape) to the grid, with straight-through gradients."""
        return straight_through(weight, self.grid(weight.detach()))

    def extra_repr(self) -> str:
        return f"bits={self.bits}"
