"""Uniform quantisation: numbers as integer multiples of a step, per tensor or per channel.

A channel is an entry of the first axis. Rounding is half to even, as that of torch.

Half-precision storage of tensors that no policy covers: biases, norms and small weights.

Tensors of a model that quantisation may change, and the reasons why others are skipped.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from sightline.parts.quantisation.clustering import LEAST_NORMAL, check_weight

_FEW_BITS = 5
"""Number of bits below which clipping pays, and the threshold is searched for (HAQ)."""
_OF_ZEROS = 1e-8
"""Threshold of numbers that are all zero."""


@dataclass(frozen=True)
class QuantisationGrid:
    """Uniform grid: the values step * (code - zero) for codes from `low` to `high`; `step` and `zero` broadcast."""

    step: Tensor
    zero: Tensor
    low: int
    high: int

    def codes(self, values: Tensor) -> Tensor:
        """Return the code of the nearest grid value (...) of values (...), as whole numbers in the tensor's dtype."""
        return torch.round(values / self.step + self.zero).clamp(self.low, self.high) + 0.0  # no -0

    def values(self, codes: Tensor) -> Tensor:
        """Convert codes (...) to values (...)."""
        return (codes - self.zero) * self.step

    def __call__(self, values: Tensor) -> Tensor:
        return self.values(self.codes(values))


def symmetric_grid(threshold: Tensor, *, bits: int, has_lowest: bool = False) -> QuantisationGrid:
    """Make a grid of 2^(bits-1) - 1 steps to the threshold (...) on each side of zero; `has_lowest` adds a code below.

    Source: HAQ (Wang et al. 2019), section 3.4; with `has_lowest` HAWQ (Dong et al. 2019), their code.
    """
    assert bits >= 2, "one bit leaves a symmetric grid no step"
    most = 2 ** (bits - 1) - 1
    step = torch.where(threshold > 0, threshold, _OF_ZEROS) / most
    return QuantisationGrid(step, torch.zeros_like(threshold), -most - has_lowest, most)


def affine_grid(low: Tensor, high: Tensor, *, bits: int) -> QuantisationGrid:
    """Make a grid of 2^bits - 1 steps from `low` (...) to `high` (...), moved so that zero is on the grid.

    Source: HAWQ, their code.
    """
    step = torch.where(high > low, high - low, _OF_ZEROS) / (2**bits - 1)
    return QuantisationGrid(step, torch.round(-low / step), 0, 2**bits - 1)


def weight_grid(weight: Tensor, *, bits: int, name: str, per_channel: bool = False) -> QuantisationGrid:
    """Make the symmetric grid of a weight (any shape): to the largest magnitude from 5 bits on, else to `kl_threshold`.

    Raises UserError for weights that are empty or not finite, named `name`. Source: HAQ, section 3.4.
    """
    check_weight(weight, name)
    rows = weight.detach().reshape(len(weight) if per_channel else 1, -1)
    if bits < _FEW_BITS:
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


def straight_through(values: Tensor, quantised: Tensor) -> Tensor:
    """Straight-through estimator (STE): return `quantised` (...) with the gradient of `values` (...).

    The value is equal bit by bit. Source: Bengio et al. 2013.
    """
    result: Tensor = _StraightThrough.apply(values, quantised)
    return result


class _StraightThrough(torch.autograd.Function):
    surrogate_gradient = True

    @staticmethod
    def forward(ctx: Any, values: Tensor, quantised: Tensor) -> Tensor:
        return quantised.view_as(quantised)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass(frozen=True)
class WeightInfo:
    """One parameter: its first name in `model.named_parameters()`, and the other names if it is shared.

    `kind` is that of its layer: linear, convolution, transposed convolution, embedding, norm, or parameter of a module
    of another kind. `skip_reason` is the reason why it is not quantised, None for one that may be.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    shared: tuple[str, ...]
    skip_reason: str | None

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def quantisable_weights(model: nn.Module, *, min_params: int = 256) -> list[WeightInfo]:
    """List the weights that a policy may quantise, shared ones once, in the model's order.

    They are matrices and kernels of any module, including a bare `nn.Parameter`: fused layers read attributes and
    call no module. For a model that is not yet quantised.
    """
    return [weight for weight in list_weights(model, min_params=min_params) if weight.skip_reason is None]


def list_weights(model: nn.Module, *, min_params: int = 256) -> list[WeightInfo]:
    """List every parameter of a model, shared ones once, with the skip reason of those that are not quantised.

    These are biases, norms and scales, parameters added to every sample (tokens and positions: bare parameters whose
    first axis has one entry), embeddings that are renormalised where they are read or whose gradients are sparse, and
    weights with fewer than `min_params` elements, whose codebook would not pay.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    owners = dict(model.named_modules(remove_duplicate=False))
    weights = []
    for name, parameter in model.named_parameters():
        owner = owners[name.rpartition(".")[0]]
        kind = _kind(owner)
        skip_reason = _embedding_reason(owner) or _reason(kind, name, parameter, min_params)
        weights.append(WeightInfo(name, tuple(parameter.shape), kind, tuple(names[id(parameter)][1:]), skip_reason))
    return weights


def _kind(module: nn.Module) -> str:
    kinds: list[tuple[type | tuple[type, ...], str]] = [
        (nn.Linear, "linear"),
        (_ConvTransposeNd, "transposed convolution"),
        (_ConvNd, "convolution"),
        ((nn.Embedding, nn.EmbeddingBag), "embedding"),
        (_NORMS, "norm"),
    ]
    return next((kind for types, kind in kinds if isinstance(module, types)), "parameter")


def _embedding_reason(owner: nn.Module) -> str | None:
    """Return the reason why an embedding cannot be computed from codes, or None."""
    if not isinstance(owner, nn.Embedding | nn.EmbeddingBag):
        return None
    if owner.max_norm is not None:
        return "is renormalised where it is read"
    return "has sparse gradients" if owner.sparse else None


def _reason(kind: str, name: str, parameter: nn.Parameter, min_params: int) -> str | None:
    if kind == "norm":
        return kind
    if not parameter.is_floating_point():
        return f"{parameter.dtype}"
    if parameter.ndim < 2:
        return "bias" if name.rpartition(".")[2] == "bias" else "has one axis"
    if kind == "parameter" and parameter.shape[0] == 1:
        return "is added to every sample"
    return f"fewer than {min_params} elements" if parameter.numel() < min_params else None


_STATISTICS = ("running_mean", "running_var")


def halvable(model: nn.Module, *, but: Collection[str]) -> tuple[str, ...]:
    """List the state names of float32 parameters that no search covers, and of the running statistics of norms.

    `but` are the weights of a policy. For a model that is not quantised.
    """
    state = model.state_dict()
    names = [weight.name for weight in list_weights(model) if weight.skip_reason is not None]
    for path, module in model.named_modules():
        if isinstance(module, _NormBase) and module.track_running_stats:
            names += [f"{path}.{statistic}" if path else statistic for statistic in _STATISTICS]
    return tuple(name for name in names if name not in but and state[name].dtype == torch.float32)


@torch.no_grad()
def round_to_half(state: Mapping[str, Tensor], names: Iterable[str]) -> tuple[str, ...]:
    """Round the named tensors of a state (any shape) to half precision in place; return the names of those rounded.

    Half precision cannot represent numbers above 65504 or that are not finite, and loses the digits of those below
    2^-14: a tensor that has no larger one is left unchanged.
    """
    rounded = []
    for name in names:
        value = state[name]
        largest = float(value.abs().max()) if value.numel() else 0.0
        if largest == 0 or LEAST_NORMAL <= largest <= torch.finfo(torch.float16).max:
            value.copy_(value.half())
            rounded.append(name)
    return tuple(rounded)
