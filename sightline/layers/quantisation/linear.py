"""Uniform quantisers: numbers as whole multiples of a step, of a tensor or of each of its channels.

A channel is an entry of the first axis. Rounding is half to even, as that of torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sightline.layers.quantisation.clustering import check_weight

__all__ = [
    "ActivationQuantiser",
    "Grid",
    "affine",
    "fixed_point",
    "kl_threshold",
    "percentile_range",
    "straight_through",
    "symmetric",
    "weight_grid",
]

_FEW_BITS = 5
"""Below so many bits clipping pays, and the threshold is searched for (HAQ)."""
_MANTISSA_BITS = 31
_OF_ZEROS = 1e-8
"""Threshold of numbers that are all zero."""


@dataclass(frozen=True)
class Grid:
    """The values step * (code - zero) for whole codes from `low` to `high`; `step` and `zero` broadcast."""

    step: Tensor
    zero: Tensor
    low: int
    high: int

    def codes(self, values: Tensor) -> Tensor:
        """The code of the nearest value of the grid, as whole numbers of the tensor's own type."""
        return torch.round(values / self.step + self.zero).clamp(self.low, self.high) + 0.0  # no -0

    def values(self, codes: Tensor) -> Tensor:
        return (codes - self.zero) * self.step

    def __call__(self, values: Tensor) -> Tensor:
        return self.values(self.codes(values))


def symmetric(threshold: Tensor, *, bits: int, has_lowest: bool = False) -> Grid:
    """2^(bits-1) - 1 steps to the threshold on each side of zero; `has_lowest` adds the one code that is left below.

    Source: HAQ (Wang et al. 2019), section 3.4; with `has_lowest` HAWQ (Dong et al. 2019), their code.
    """
    assert bits >= 2, "one bit leaves a symmetric grid no step"
    most = 2 ** (bits - 1) - 1
    step = torch.where(threshold > 0, threshold, _OF_ZEROS) / most
    return Grid(step, torch.zeros_like(threshold), -most - has_lowest, most)


def affine(low: Tensor, high: Tensor, *, bits: int) -> Grid:
    """2^bits - 1 steps from `low` to `high`, moved so that zero is on the grid. Source: HAWQ, their code."""
    step = torch.where(high > low, high - low, _OF_ZEROS) / (2**bits - 1)
    return Grid(step, torch.round(-low / step), 0, 2**bits - 1)


def weight_grid(weight: Tensor, *, bits: int, name: str, per_channel: bool = False) -> Grid:
    """The symmetric grid of a layer's weights: to the largest size from 5 bits on, else to `kl_threshold`.

    Raises UserError for weights that are empty or not finite, named `name`. Source: HAQ, section 3.4.
    """
    check_weight(weight, name)
    rows = weight.detach().reshape(len(weight) if per_channel else 1, -1)
    if bits < _FEW_BITS:
        threshold = rows.new_tensor([kl_threshold(row.cpu().double().numpy(), bits=bits) for row in rows])
    else:
        threshold = rows.abs().amax(dim=1)
    return symmetric(threshold.view(-1, *[1] * (weight.ndim - 1)) if per_channel else threshold[0], bits=bits)


def kl_threshold(data: np.ndarray, *, bits: int) -> float:
    """The clipping threshold at which a histogram of sizes survives best that only 2^(bits-1) of its bins are kept.

    Compared are cumulative distributions, the whole and the one clipped at each bin and interpolated from the kept
    ones, by the symmetric divergence of Kullback and Leibler. 0 for data of zeros; the largest size where bins are no
    more than those kept. Source: HAQ, section 3.4, and its code.
    """
    size = np.abs(data).ravel()
    if np.isclose(size.max(), 0.0):
        return 0.0
    counts, edges = np.histogram(size, bins="sqrt", range=(0.0, size.max()))
    whole, kept = np.cumsum(counts / counts.sum()), 2 ** (bits - 1)
    distances = []
    for num_bins in range(kept + 1, len(whole) + 1):
        rough = np.ones_like(whole)
        rough[: num_bins - 1] = whole[: num_bins - 1]
        fine, coarse = np.linspace(0, 1, num_bins), np.linspace(0, 1, kept)
        rough[:num_bins] = np.interp(fine, coarse, np.interp(coarse, fine, rough[:num_bins]))
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = (whole - rough) * np.log2(whole / rough)
        distances.append(np.where(whole == rough, 0.0, terms).sum())
    if not distances:
        return float(edges[-1])
    return float((kept + 1.5 + int(np.argmin(distances))) * (edges[1] - edges[0]))


def percentile_range(values: Tensor, *, low: float, high: float) -> tuple[Tensor, Tensor]:
    """The numbers at two percentiles of a flat tensor; the lower is 0 where `low` is 0. Source: HAWQ, their code."""
    upper = torch.kthvalue(values, round(len(values) * high * 0.01)).values
    if low == 0:
        return torch.zeros_like(upper), upper
    return -torch.kthvalue(-values, round(len(values) * (1 - low * 0.01))).values, upper


def fixed_point(factors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whole mantissas (of 31 bits) and exponents: factor = mantissa / 2^exponent. Source: HAWQ-V3 (Yao et al. 2021)."""
    mantissa, exponent = np.frexp(factors)
    scaled = mantissa * 2.0**_MANTISSA_BITS
    return (np.sign(scaled) * np.floor(np.abs(scaled) + 0.5)).astype(np.int64), _MANTISSA_BITS - exponent


def straight_through(values: Tensor, quantised: Tensor) -> Tensor:
    """`quantised`, bit by bit, whose gradient is that of `values`. Source: Bengio et al. 2013."""
    result: Tensor = _StraightThrough.apply(values, quantised)
    return result


class ActivationQuantiser(nn.Module):
    """Activations on a grid up to a range that `calibrate` measures and training may move.

    With `half_wave` numbers below zero become zero, and all bits count steps; else one of them is the sign. Off (the
    identity) where no step is left: 0 bits or less, 1 with the sign.
    Source: HAQ, section 3.4; the gradient at the range is that of PACT (Choi et al. 2018), eq. 3.
    """

    def __init__(self, *, bits: int, half_wave: bool = True, is_trainable: bool = True, most: float = 6.0) -> None:
        super().__init__()
        self.bits = bits if half_wave else bits - 1
        self.half_wave = half_wave
        self.most = most
        self.range = nn.Parameter(torch.tensor([most]), requires_grad=is_trainable)

    @torch.no_grad()
    def calibrate(self, values: Tensor) -> None:
        """Takes the range of these activations, at most `most`; below 5 bits the one of `kl_threshold`."""
        if self.bits > 0:
            largest = min(self.most, float(values.abs().max()))
            if self.bits < _FEW_BITS:
                largest = min(largest, kl_threshold(values.detach().cpu().double().numpy(), bits=self.bits))
            self.range.fill_(largest)

    def forward(self, values: Tensor) -> Tensor:
        """The activations on the grid, with straight-through gradients."""
        if self.bits <= 0:
            return values
        lowest = torch.zeros_like(self.range) if self.half_wave else -self.range
        if self.range.requires_grad:
            clipped = torch.minimum(torch.maximum(values, lowest), self.range)
        else:
            clipped = torch.clamp(values, float(lowest), float(self.range))
        step = self.range.detach().clamp(min=_OF_ZEROS) / (2**self.bits - 1)
        return straight_through(clipped, torch.round(clipped.detach() / step) * step)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, quantised: Tensor) -> Tensor:
        return quantised.view_as(quantised)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None
