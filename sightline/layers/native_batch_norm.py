"""Batch norm by torch's own kernels on a GPU where everything else may use cuDNN."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

__all__ = ["Native", "disable_cudnn_batch_norm"]


class Native:
    """Turns cuDNN off for the forward pass; the backward pass takes the kernels that the forward pass took."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        before = torch.backends.cudnn.enabled
        torch.backends.cudnn.enabled = False
        try:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        finally:
            torch.backends.cudnn.enabled = before


def disable_cudnn_batch_norm(model: nn.Module) -> nn.Module:
    """The same model, whose batch norms leave cuDNN alone from now on: same state, same numbers but for rounding.

    The remedy for batch statistics that a version of cuDNN gets wrong.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, Native):
            plain: Any = type(module)
            module.__class__ = _native(plain)
    return model


@cache
def _native(norm: Any) -> Any:
    return type(norm.__name__, (Native, norm), {"__doc__": norm.__doc__})
