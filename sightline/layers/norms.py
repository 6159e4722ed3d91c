"""Normalisation layers of backbones by name, and freezing of parts of a network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NormName = Literal["bn", "frozen_bn", "gn"]
_GROUPS = 32


class FrozenBatchNorm(nn.Module):
    """Frozen batch norm: running statistics in training too; scale and shift are buffers, so nothing is trained.

    Its state has the keys of `nn.BatchNorm2d`, so that weights are exchangeable. Source: He et al. 2016, Deep Residual
    Learning, appendix A (fixed batch norms in detection).
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, image: Tensor) -> Tensor:
        """Normalise a map by running statistics: (B, C, H, W) -> (B, C, H, W)."""
        return F.batch_norm(image, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}"


def make_group_norm(channels: int) -> nn.GroupNorm:
    """Make a group norm over 32 groups of channels; below 64 channels, over groups of at least two channels.

    On a map of one cell a group of one channel would be zero.
    """
    return nn.GroupNorm(math.gcd(_GROUPS, channels, channels // 2), channels)


NORMS: Mapping[NormName, Callable[[int], nn.Module] | None] = {
    "bn": None,
    "frozen_bn": FrozenBatchNorm,
    "gn": make_group_norm,
}
"""Norm layers by config name: functions of the number of channels; None: the network's own batch norm."""


def freeze_module(part: nn.Module) -> None:
    """Freeze a part of a network: its parameters become buffers, its batch norms frozen ones.

    Names and values of its state are unchanged.
    """
    for path, module in list(part.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            frozen = FrozenBatchNorm(module.num_features, eps=module.eps).to(module.running_mean)
            frozen.load_state_dict(module.state_dict())
            part.set_submodule(path, frozen)
    for module in part.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, parameter.detach())
