"""Half precision: a rounding of weights, and the storage of tensors that no policy covers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from sightline.compression.quantiser import Quantiser, straight_through
from sightline.compression.weights import list_weights

LEAST_NORMAL = 2.0**-14
"""Smallest normal number of half precision; below it, digits are lost."""


class HalfPrecision(Quantiser):
    """Half-precision rounding of a float weight, with straight-through gradients."""

    def forward(self, weight: Tensor) -> Tensor:
        """Round a weight (any shape) to half precision, with straight-through gradients."""
        return straight_through(weight, weight.detach().half().to(weight.dtype))


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
